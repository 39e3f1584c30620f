"""Pre-training of a small gpt-oss from scratch, for the demo and for anyone who needs a tiny trained model.

Three methods reduce the time to minutes on two cores. None of them changes the result.

* The softmax has a row for each token in use. All other tokens share one row of the embedding and one of the head. The
  log of their number is added to their logit, so the softmax over 201,088 tokens is exact.
* Examples of a step share the beginning of their prompts as the trunk of a tree.
* The experts are trained with their weights rounded to MXFP4, so packing them loses nothing.

Shapes: V vocabulary, U tokens in use, D hidden size.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GptOssConfig

from ossia.checkpoint.layout import Shape, config_json
from ossia.checkpoint.tiny import write_tiny
from ossia.kernels.reference.mxfp4 import fake_quantise
from ossia.model.batch import FlatBatch, from_branches
from ossia.model.experts import QuantisationAwareExperts
from ossia.model.loss import Head, linear_cross_entropy
from ossia.model.modeling import OssiaForCausalLM
from ossia.sequences.example import TrainingExample

OnStep = Callable[[int, int, float], None]
"""Called with (step from 1, number of steps, loss in nats per unit of weight)."""


@dataclass(frozen=True)
class ScratchSettings:
    """Settings of the pre-training."""

    tokens_per_step: int = 4096
    """Most tokens of a step, with every branch counted as long as the longest. The shared trunk is not counted."""
    epochs: int = 1
    learning_rate: float = 3e-3
    warmup_steps: int = 50
    weight_decay: float = 0.1
    seed: int = 0


def pretrain(
    examples: Sequence[TrainingExample],
    shape: Shape,
    folder: Path,
    settings: ScratchSettings,
    *,
    reserve: Sequence[TrainingExample] = (),
    on_step: OnStep = lambda step, steps, loss: None,
) -> None:
    """Train a model of this shape on the examples, and write it to `folder` in gpt-oss's published layout.

    Args:
        examples: compiled training examples.
        reserve: further examples, which are not trained. Their tokens get their own rows, so that a later fine-tune can
            learn them.
        on_step: called after every step.
    """
    ids = sorted({token for example in (*examples, *reserve) for token in example.ids})
    torch.manual_seed(settings.seed)
    model = _model(shape, len(ids) + 1)
    unused = math.log(shape.vocabulary - len(ids))
    log_count_U = torch.tensor([0.0] * len(ids) + [unused])
    steps = _steps(examples, {token: row for row, token in enumerate(ids)}, settings)
    optimiser = _optimiser(model, settings)
    model.train()
    for step, batch in enumerate(steps, 1):
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * _rate(step, len(steps), settings.warmup_steps)
        hidden_TD = model(**_without_targets(batch)).hidden
        head = Head(model.lm_head.weight, log_count_U)
        total, _ = linear_cross_entropy(hidden_TD[batch.rows_S], head, batch.targets_S, batch.weights_S)
        loss = total / batch.weights_S.sum()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        on_step(step, len(steps), loss.item())
    write_tiny(folder, shape, weights=_published(model, ids, shape.vocabulary))


def _model(shape: Shape, rows: int) -> OssiaForCausalLM:
    config = GptOssConfig(**config_json(shape.replace(vocabulary=rows), mxfp4=False))
    model = OssiaForCausalLM(config).float()
    for layer in model.model.layers:
        layer.mlp.experts = QuantisationAwareExperts(config)
    return model


def _steps(examples: Sequence[TrainingExample], row_of: dict[int, int], settings: ScratchSettings) -> list[FlatBatch]:
    """Return the batches of all epochs. The examples of a step have similar lengths and a common prefix.

    The steps are in random order.
    """
    shuffler = random.Random(settings.seed)
    steps = []
    for _ in range(settings.epochs):
        order = list(examples)
        shuffler.shuffle(order)
        # Sort by the start of the prompt, then by length. Equal keys keep the random order of the shuffle.
        order.sort(key=lambda example: (tuple(example.ids[:48]), len(example) // 4))
        groups: list[list[TrainingExample]] = [[]]
        for example in order:
            trunk = _common([*groups[-1][:1], example])
            longest = max(map(len, (*groups[-1], example)))
            if groups[-1] and (longest - trunk) * (len(groups[-1]) + 1) > settings.tokens_per_step:
                groups.append([])
            groups[-1].append(example)
        steps += groups
    shuffler.shuffle(steps)
    return [
        from_branches(
            [([row_of[token] for token in example.ids], example.weights) for example in group], _common(group)
        )
        for group in steps
    ]


def _common(examples: Sequence[TrainingExample]) -> int:
    """Return the length of the longest common prefix with no supervised token in it or directly after it.

    `from_branches` needs an unsupervised token after the prefix.
    """
    columns = zip(*(example.ids for example in examples), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
    first = min(next(i for i, weight in enumerate(example.weights) if weight) for example in examples)
    return min(shared, first - 1)


def _optimiser(model: nn.Module, settings: ScratchSettings) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), fused=True)


def _rate(step: int, steps: int, warmup: int) -> float:
    return min(1.0, step / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _without_targets(batch: FlatBatch) -> dict[str, Tensor]:
    return {name: value for name, value in batch.inputs().items() if name not in ("rows", "targets", "weights")}


def _published(model: OssiaForCausalLM, ids: Sequence[int], vocabulary: int) -> dict[str, Tensor]:
    """Return the weights with a row for every token and rounded experts, under transformers' names and axes."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            full_VD = tensor[-1].expand(vocabulary, -1).clone()
            full_VD[torch.tensor(ids)] = tensor[:-1]
            tensors[name] = full_VD
        elif name.endswith(("gate_up_proj", "down_proj")):
            tensors[name] = fake_quantise(tensor, "floor").transpose(-1, -2).contiguous()
        else:
            tensors[name] = tensor
    return tensors
