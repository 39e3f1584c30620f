"""What every engine can do, whatever computes behind it: continue token ids with token ids.

Engines know nothing about Harmony. Prompts are rendered by `ossia.harmony.render`, completions read by its parser, so
that evaluation, chat and serving get the same tokens from every engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ossia.harmony.tokenizer.vocabulary import STOP_TOKENS

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens. The same values give the same tokens on the same engine and machine."""

    temperature: float = 0.0
    """0 takes the most likely token; else the logits are divided by it."""

    top_p: float = 1.0
    """Sample among the most likely tokens that together hold this probability (Holtzman et al. 2019)."""

    max_new_tokens: int = 1024
    """Longest completion, the stop token included."""

    seed: int = 0
    """Seeds the sampling. Prompt number i of a batch gets its own stream, made from (seed, i)."""

    stop: frozenset[int] = STOP_TOKENS
    """A completion ends with the first of these ids, which belongs to it."""

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.max_new_tokens < 1:
            raise ValueError(f"temperature >= 0, 0 < top_p <= 1 and max_new_tokens >= 1 are needed: {self}")


@dataclass(frozen=True)
class Completion:
    """What the model wrote: `ids` with the stop token, if it came to one, and why it ended."""

    ids: tuple[int, ...]
    finish: Finish


OnCompletion = Callable[[int, Completion], None]
"""Told the index of every prompt and its completion as soon as it is there, in any order."""


class Engine(Protocol):
    """Continues prompts."""

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[int]:
        """Yield the ids of one completion as they are made, the stop token included. Equals `batch([prompt])[0]`."""
        ...

    def batch(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, on_progress: OnCompletion | None = None
    ) -> list[Completion]:
        """Continue many prompts and return the completions in their order."""
        ...


def completion(ids: Sequence[int], stop: frozenset[int]) -> Completion:
    """Cut ids after the first stop token; without one the completion ended for its length."""
    for count, token in enumerate(ids, start=1):
        if token in stop:
            return Completion(tuple(ids[:count]), "stop")
    return Completion(tuple(ids), "length")
