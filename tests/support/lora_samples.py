"""A small model, its adapters and the same model in stock transformers, for tests of LoRA and of the model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GptOssForCausalLM

from ossia.adapters import apply as lora
from ossia.checkpoint.tiny import MICRO
from ossia.model.experts import PackedExperts
from ossia.model.load import load_model

Rows = list[tuple[list[int], list[float]]]
TARGETS = ["attention", "experts", "router", "embeddings", "head"]
LENGTHS = (150, 7, 63)  # one is longer than the published window of 128


def random_rows() -> Rows:
    """Return rows of random token ids and the weight of each token."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for length in LENGTHS:
        ids = torch.randint(MICRO.vocabulary, (length,), generator=generator).tolist()
        weights = torch.rand(length, generator=generator).tolist()
        made.append((ids, [0.0] * 4 + weights[4:]))
    return made


def base_model(folder: Path) -> Any:
    return load_model(folder, dtype="float32", device="cpu")


def stock(folder: Path) -> GptOssForCausalLM:
    """Return transformers' model on the dequantised weights, with eager attention and eager experts."""
    model = GptOssForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    assert not hasattr(model, "hf_quantizer") or not isinstance(model.model.layers[0].mlp.experts, PackedExperts)
    return model.float()


def adapted(folder: Path, targets: Iterable[str] = ("attention", "experts"), **settings: Any) -> PeftModel:
    """Return an Ossia model with random adapters. Neither A nor B is zero."""
    torch.manual_seed(0)
    ranks = {"rank": 4, "expert_rank": 2, "router_rank": 3, "vocabulary_rank": 5} | settings
    model = lora.attach_adapter(base_model(folder), targets=list(targets), **ranks)
    for _, parameter in lora.trainable_parameters(model):
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def reference_loss(model: Any, rows: Rows) -> Tensor:
    """Return the loss of the rows, computed from full logits, one sequence at a time."""
    total, denominator = torch.zeros(()), 0.0
    for ids, weights in rows:
        log_p = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        chosen = log_p.gather(1, torch.tensor(ids)[1:, None])[:, 0]
        total = total - (chosen * torch.tensor(weights)[1:]).sum()
        denominator += sum(weights[1:])
    return total / denominator


def relative(mine: Tensor, other: Tensor) -> float:
    return float((mine - other).norm() / other.norm())
