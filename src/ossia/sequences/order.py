"""The order of the examples in training. Without torch, so that data and plan can compute the steps in advance."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

from ossia.sequences.example import TrainingExample

_E = TypeVar("_E", bound=TrainingExample)


def conversations_of(examples: Sequence[TrainingExample]) -> list[list[int]]:
    """Return the indices of the examples in groups, one for each conversation.

    A conversation is a sequence of consecutive examples with the same `conversation` and rising `turn`. An example
    without these attributes is a group by itself. The repetition of a conversation begins a new group.
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
    """Yield the steps of epoch `number`, each as a list of indices of examples.

    Conversations are shuffled by `seed` and `number`. The examples of a conversation stay together and in order. The
    last step may have fewer than `examples_per_step` examples.
    """
    order = list(conversations)
    random.Random(f"{seed} {number}").shuffle(order)
    examples = [example for conversation in order for example in conversation]
    for start in range(0, len(examples), examples_per_step):
        yield examples[start : start + examples_per_step]


def steps_of(examples: Sequence[_E], examples_per_step: int, seed: int, number: int = 0) -> Iterator[list[_E]]:
    """Yield the examples of each step of epoch `number`, in the order of `epoch`."""
    for step in epoch(conversations_of(examples), examples_per_step, seed, number):
        yield [examples[index] for index in step]
