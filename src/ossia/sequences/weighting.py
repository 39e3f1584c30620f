"""What counts the same in the loss: every token, every turn, or every conversation.

Weights of turns and conversations are settled once for the whole data set, one per example on average, and a step
divides by the number of its examples. So a conversation that fills several steps counts no more than one that shares a
step with others, and how examples fall into steps and micro-batches does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ossia.sequences.example import TrainingExample
from ossia.sequences.order import conversations_of

Weighting = Literal["token", "turn", "conversation"]
"""An example is an assistant turn. A turn's weight, or a conversation's, is shared by its trained tokens."""


@dataclass(frozen=True)
class Weighted:
    """An example whose weights are multiplied with a factor."""

    example: TrainingExample
    factor: float

    def __len__(self) -> int:
        return len(self.example)

    @property
    def conversation(self) -> Any:
        """As the order of the examples asks for it (`ossia.sequences.order.conversations_of`)."""
        return getattr(self.example, "conversation", None)

    @property
    def turn(self) -> int:
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
    """Return the examples with weights such that those of each turn, or conversation, have the same sum.

    Weights that are not one keep their proportions within it, and only those. What trains nothing stays as it is.
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
