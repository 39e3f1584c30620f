"""What counts the same in the loss: every token, every turn, or every conversation.

Weights are settled once for the whole data set, so they do not depend on how examples fall into steps and passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ossia.train.order import conversations_of
from ossia.train.steps import Trainable

Weighting = Literal["token", "turn", "conversation"]
"""An example is an assistant turn. A turn's weight, or a conversation's, is shared by its trained tokens."""


@dataclass(frozen=True)
class Weighted:
    """An example whose weights are multiplied with a factor."""

    example: Trainable
    factor: float

    def __len__(self) -> int:
        return len(self.example)

    @property
    def conversation(self) -> Any:
        """As the order of the examples asks for it (`ossia.train.order.conversations_of`)."""
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


def weighted(examples: Sequence[Trainable], weighting: Weighting) -> list[Trainable]:
    """Return the examples with weights such that those of each turn, or conversation, sum to one.

    Weights between zero and one keep their proportions within it. What trains nothing stays as it is.
    """
    if weighting == "token":
        return list(examples)
    turns = [[index] for index in range(len(examples))]
    made = list(examples)
    for group in turns if weighting == "turn" else conversations_of(examples):
        total = sum(sum(examples[index].weights[1:]) for index in group)  # nothing predicts a first token
        for index in group:
            if total:
                made[index] = Weighted(examples[index], 1 / total)
    return made
