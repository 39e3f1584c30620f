"""Tests of weights per turn and per conversation, and of their sums."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from ossia.sequences.weighting import weighted


@dataclass
class Turn:
    weights: list[float]
    conversation: object = None
    turn: int = 0

    @property
    def ids(self) -> list[int]:
        return list(range(len(self.weights)))

    @property
    def channels(self) -> list[str | None]:
        return [None] * len(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


def trained(examples: list[Turn], weighting: str) -> list[float]:
    """Return the sum of each example's weights, without the first token, which is never predicted."""
    return [sum(example.weights[1:]) for example in weighted(examples, weighting)]  # type: ignore[arg-type]


def test_the_weight_of_a_first_token_counts_for_nothing() -> None:
    examples = [Turn([1.0, 1.0, 1.0]), Turn([0.0, 1.0, 1.0]), Turn([5.0, 0.5, 0.0])]
    assert trained(examples, "turn") == pytest.approx([1.0, 1.0, 1.0])


def test_what_trains_nothing_has_no_share() -> None:
    examples = [Turn([0.0, 1.0]), Turn([1.0, 0.0]), Turn([0.0, 3.0])]
    assert trained(examples, "turn") == pytest.approx([1.5, 0.0, 1.5])


def test_turns_of_a_conversation_share_its_weight_by_their_tokens() -> None:
    examples = [Turn([0.0, 1.0], "a", 0), Turn([0.0, 1.0, 1.0, 1.0], "a", 1), Turn([0.0, 1.0], "b", 0)]
    assert trained(examples, "conversation") == pytest.approx([3 / 8, 9 / 8, 12 / 8])
    assert trained(examples, "turn") == pytest.approx([1.0, 1.0, 1.0])
    assert trained(examples, "token") == [1.0, 3.0, 1.0]
