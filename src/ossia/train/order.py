"""The order in which training meets the examples: conversations are shuffled, the turns of one stay together."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from torch.utils.data import Sampler

from ossia.train.steps import Trainable


class ConversationOrder(Sampler[list[int]]):
    """Yields each step's examples, as indices: a new permutation of the conversations in every epoch.

    The order is the same whether prefixes are shared or not, so sharing changes what is computed and nothing about the
    optimisation. It has a price of its own, paid in both cases: the turns of a conversation mostly fall into one step,
    so a step sees fewer conversations than if examples were shuffled one by one, and its gradient varies more. With
    conversations of n turns, `examples_per_step` of k means about k / n conversations. A conversation at the edge of a
    step goes on in the next one. The last step of an epoch may have fewer examples.
    """

    def __init__(
        self, conversations: Sequence[Sequence[int]], examples_per_step: int, seed: int, steps_done: Callable[[], int]
    ) -> None:
        """
        Args:
            conversations: indices of the examples of each.
            steps_done: optimiser steps of the run so far, asked at the beginning of an epoch; a resumed run begins in
                the middle of one, and its caller skips the steps that were done.
        """
        self.conversations, self.examples_per_step, self.seed = conversations, examples_per_step, seed
        self.steps_done = steps_done
        self.examples = sum(map(len, conversations))

    def __len__(self) -> int:
        return -(-self.examples // self.examples_per_step)

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.epoch(self.steps_done() // len(self))

    def epoch(self, number: int) -> Iterator[list[int]]:
        """The steps of one epoch."""
        order = list(self.conversations)
        random.Random(f"{self.seed} {number}").shuffle(order)
        examples = [example for conversation in order for example in conversation]
        for start in range(0, len(examples), self.examples_per_step):
            yield examples[start : start + self.examples_per_step]


def conversations_of(examples: Sequence[Trainable]) -> list[list[int]]:
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
