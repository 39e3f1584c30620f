"""The order in which training meets the examples: conversations are shuffled, the turns of one stay together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch.utils.data import Sampler

from ossia.sequences.order import epoch


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
        return epoch(self.conversations, self.examples_per_step, self.seed, number)
