"""The order in which training meets its examples. No torch, so that data and plan can foretell the steps."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

from ossia.sequences.example import TrainingExample

_E = TypeVar("_E", bound=TrainingExample)


def conversations_of(examples: Sequence[TrainingExample]) -> list[list[int]]:
    """Group the indices of examples that follow each other as turns of one conversation.

    Compiled examples name their `conversation` and their `turn`; one without them is a conversation of its own, and a
    repeated conversation begins anew with its first turn.
    """
    groups: list[list[int]] = []
    before: tuple[object, int] = (None, 0)
    for index, example in enumerate(examples):
        conversation, turn = getattr(example, "conversation", None), getattr(example, "turn", 0)
        same = conversation is before[0] or conversation == before[0]
        if conversation is not None and same and turn > before[1]:
            groups[-1].append(index)
        else:
            groups.append([index])
        before = conversation, turn
    return groups


def epoch(
    conversations: Sequence[Sequence[int]], examples_per_step: int, seed: int, number: int
) -> Iterator[list[int]]:
    """Yield the steps of epoch `number`, as indices: conversations shuffled, the examples of each together."""
    order = list(conversations)
    random.Random(f"{seed} {number}").shuffle(order)
    examples = [example for conversation in order for example in conversation]
    for start in range(0, len(examples), examples_per_step):
        yield examples[start : start + examples_per_step]


def steps_of(examples: Sequence[_E], examples_per_step: int, seed: int, number: int = 0) -> Iterator[list[_E]]:
    """Yield the examples of each step of epoch `number`."""
    for step in epoch(conversations_of(examples), examples_per_step, seed, number):
        yield [examples[index] for index in step]
