"""From examples to optimiser steps.

A step is a number of examples. Its loss is the mean over all their supervised tokens, with one denominator, however the
examples are cut into passes. A pass is one flat batch of at most `tokens_per_pass` tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ossia.errors import UserError
from ossia.model.batch import from_rows


class Trainable(Protocol):
    """What training needs of an example of n tokens. All three sequences have one entry per token.

    weights[i] is the weight of predicting ids[i]; channels[i] names the channel that the token belongs to. They may be
    put together anew at each access; `len` is cheap.
    """

    def __len__(self) -> int: ...
    @property
    def ids(self) -> Sequence[int]: ...
    @property
    def weights(self) -> Sequence[float]: ...
    @property
    def channels(self) -> Sequence[str | None]: ...


@dataclass(frozen=True)
class Collator:
    """Makes a step's batch: {"passes": [inputs of the model, ...], "channels": [names per triple, ...]}."""

    tokens_per_pass: int

    def __call__(self, examples: Sequence[Trainable]) -> dict[str, list[Any]]:
        passes, channels = [], []
        for group in cut(examples, self.tokens_per_pass):
            passes.append(from_rows((example.ids, example.weights) for example in group).inputs())
            channels.append([name or "other" for example in group for name in _supervised_channels(example)])
        return {"passes": passes, "channels": channels}


def unsupervised(examples: Iterable[Trainable]) -> dict[str, torch.Tensor]:
    """A pass over the examples that asks for hidden states only."""
    inputs = from_rows((example.ids, example.weights) for example in examples).inputs()
    return {name: value for name, value in inputs.items() if name not in ("rows", "targets", "weights")}


def idle_pass() -> dict[str, torch.Tensor]:
    """One token without supervision: the pass of a process that has no work left while others have."""
    return from_rows([([0], [0.0])]).inputs()


def cut(examples: Iterable[Trainable], tokens_per_pass: int) -> Iterator[list[Trainable]]:
    """Group examples into passes of at most `tokens_per_pass` tokens, similar lengths together.

    Raises:
        UserError: one example alone is longer than a pass.
    """
    group: list[Trainable] = []
    total = 0
    for example in sorted(examples, key=len):
        if len(example) > tokens_per_pass:
            raise UserError(
                f"an example has {len(example)} tokens, a pass holds {tokens_per_pass}",
                do=f"--set train.tokens_per_pass={len(example)}, or a smaller data.max_tokens",
            )
        if total + len(example) > tokens_per_pass and group:
            yield group
            group, total = [], 0
        group.append(example)
        total += len(example)
    if group:
        yield group


def prompt_of(example: Trainable) -> list[int]:
    """Return the tokens before the first supervised one: what the model would be asked to continue."""
    first = next(i for i, weight in enumerate(example.weights) if weight)
    return list(example.ids[:first])


def fingerprint(*sets: Sequence[Trainable]) -> str:
    """Return a hash of the examples' tokens and weights, to tell whether a resumed run sees the same data."""
    digest = hashlib.sha256()
    for examples in sets:
        digest.update(f"{len(examples)};".encode())
        for example in examples:
            digest.update(torch.tensor(list(example.ids), dtype=torch.int32).numpy().tobytes())
            digest.update(torch.tensor(list(example.weights), dtype=torch.float32).numpy().tobytes())
    return digest.hexdigest()


def _supervised_channels(example: Trainable) -> Iterator[str | None]:
    pairs = zip(example.channels, example.weights, strict=True)
    return (channel for i, (channel, weight) in enumerate(pairs) if i and weight)
