"""Adapters that stock PEFT wrote on stock transformers. Other tests compare Ossia with them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from ossia.checkpoint.reader import CheckpointReader
from ossia.checkpoint.tiny import MICRO, write_tiny

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
_EXPERT_PATTERNS = {
    "rank_pattern": {"gate_up_proj": 2, "down_proj": 2},
    "alpha_pattern": {"gate_up_proj": 8, "down_proj": 8},
}
PROMPT = torch.arange(40)[None] * 7 % MICRO.vocabulary


def float_weights(folder: Path) -> dict[str, Tensor]:
    """Return the float32 weights with transformers' names. transformers' own converter dequantises MXFP4 experts."""
    reader = CheckpointReader(folder)
    weights = {}
    for name in reader.names():
        if name.endswith("_blocks"):
            scales = reader.get(name.replace("_blocks", "_scales"))
            weights[name.removesuffix("_blocks")] = convert_moe_packed_tensors(reader.get(name), scales).float()
        elif not name.endswith("_scales"):
            weights[name] = reader.get(name).float()
    return weights


def stock_model(folder: Path) -> Any:
    """Return transformers' model in float32 with the weights of a checkpoint."""
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    model = GptOssForCausalLM(GptOssConfig(**config))
    model.load_state_dict(float_weights(folder))
    return model.eval()


def stock_adapter(
    base: Path,
    folder: Path,
    targets: Iterable[str] | str = (*ATTENTION, *EXPERTS),
    step: float = 2**-6,
    parameters: Iterable[str] | None = None,
    **settings: Any,
) -> PeftModel:
    """Write a random adapter for the checkpoint `base` into `folder` with PEFT, and return the adapted model.

    `parameters` are PEFT's target parameters, and `targets` are its target modules. A single string is a regular
    expression. Without `parameters`, the targets of the experts and of the router are parameters. The adapter's numbers
    are small multiples of `step`, a power of two. So products of A and B are exact in float32 in any order of
    summation.
    """
    targets = targets if isinstance(targets, str) else list(targets)
    if parameters is None:
        parameters = [name for name in targets if "experts" in name or "router" in name]
        targets = [name for name in targets if name not in parameters]
    settings = {"r": 4, "lora_alpha": 8, **_EXPERT_PATTERNS} | settings
    config = LoraConfig(
        task_type="CAUSAL_LM",
        target_modules=targets,
        target_parameters=list(parameters) or None,
        **settings,
    )
    model = peft_model(stock_model(base), config)
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = torch.randint(-4, 5, parameter.shape, generator=generator) * step
    model.save_pretrained(str(folder))
    return model.eval()


def stock_adapter_with_swapped_experts(base: Path, folder: Path) -> PeftModel:
    """Write an adapter of experts in PEFT's other convention, and return the adapted model.

    Without transformers' attribute `is_transposed`, PEFT swaps the axes of experts.
    """
    stock = stock_model(base)
    experts = [layer.mlp.experts for layer in stock.model.layers]
    for module in experts:
        module.is_transposed = False
    model = peft_model(stock, LoraConfig(r=2, lora_alpha=8, target_modules=[], target_parameters=EXPERTS))
    for module in experts:
        module.is_transposed = True  # transformers' own forward pass depends on it
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(str(folder))
    return model


def peft_model(model: Any, config: LoraConfig) -> PeftModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns about transformers' newest names
        return get_peft_model(model, config)


def make_base(folder: Path) -> Path:
    return write_tiny(folder, MICRO)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=PROMPT).logits[0]
