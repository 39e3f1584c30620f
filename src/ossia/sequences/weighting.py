"""Equal weights in the loss for every supervised token, every turn, or every conversation.

Weights of turns and conversations are computed once for the whole data set, with a mean of one per example. The loss
of a step is divided by the number of its examples. So a conversation that fills several steps counts as much as one
that shares a step with others. The division of examples into steps and micro-batches does not change their weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ossia.sequences.example import TrainingExample
from ossia.sequences.order import conversations_of

Weighting = Literal["token", "turn", "conversation"]
"""The unit of equal weight; a turn is one example. Its weight is divided among the unit's supervised tokens."""


@dataclass(frozen=True)
class Weighted:
    """An example with its weights multiplied by a factor."""

    example: TrainingExample
    factor: float

    def __len__(self) -> int:
        return len(self.example)

    @property
    def conversation(self) -> Any:
        """The example's conversation, or None without one (`ossia.sequences.order.conversations_of`)."""
        return getattr(self.example, "conversation", None)

    @property
    def turn(self) -> int:
        """The example's turn within its conversation; 0 without one."""
        return int(getattr(self.example, "turn", 0))

    @property
    def ids(self) -> Sequence[int]:
        return self.example.ids

    @property
    def channels(self) -> Sequence[str | None]:
        return self.example.channels

    @property
    def weights(self) -> Sequence[float]:
        return [weight * self.factor for weight in self.example.weights]


def weighted(examples: Sequence[TrainingExample], weighting: Weighting) -> list[TrainingExample]:
    """Return the examples with new weights, which have the same sum in each turn or each conversation.

    Only the proportions of the former weights remain within a turn or conversation. A turn or conversation without
    supervised tokens keeps its weights. "token" leaves all weights unchanged.
    """
    if weighting == "token":
        return list(examples)
    turns = [[index] for index in range(len(examples))]
    groups = turns if weighting == "turn" else conversations_of(examples)
    totals = [sum(sum(examples[index].weights[1:]) for index in group) for group in groups]  # first tokens are given
    share = len(examples) / max(1, sum(total > 0 for total in totals))
    made = list(examples)
    for group, total in zip(groups, totals, strict=True):
        for index in group:
            if total > 0:
                made[index] = Weighted(examples[index], share / total)
    return made
