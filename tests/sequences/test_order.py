"""Tests of the order of examples: the grouping into conversations, and the effect of seed and epoch."""

from __future__ import annotations

from dataclasses import dataclass, field

from ossia.sequences.order import conversations_of, epoch, steps_of


@dataclass
class Turn:
    conversation: object
    turn: int = 0
    ids: list[int] = field(default_factory=lambda: [1, 2])
    weights: list[float] = field(default_factory=lambda: [0.0, 1.0])
    channels: list[str | None] = field(default_factory=lambda: [None, None])

    def __len__(self) -> int:
        return len(self.ids)


def test_turns_that_rise_are_one_conversation_and_a_repeat_begins_anew() -> None:
    assert conversations_of([Turn("a", 0), Turn("a", 1), Turn("a", 3)]) == [[0, 1, 2]]
    assert conversations_of([Turn("a", 0), Turn("a", 1), Turn("a", 0), Turn("a", 1)]) == [[0, 1], [2, 3]]
    assert conversations_of([Turn("a", 0), Turn("a", 0), Turn("a", 0)]) == [[0], [1], [2]]  # a weight of three
    assert conversations_of([Turn("a", 1), Turn("a", 1)]) == [[0], [1]]
    assert conversations_of([Turn("a", 0), Turn("b", 1)]) == [[0], [1]]
    assert conversations_of([Turn(None, 0), Turn(None, 1)]) == [[0], [1]]


def test_seed_and_epoch_both_decide_about_the_order() -> None:
    alone = [[number] for number in range(30)]
    orders = {tuple(map(tuple, epoch(alone, 30, seed, number))) for seed in (0, 1) for number in (0, 1)}
    assert len(orders) == 4
    assert list(epoch(alone, 30, 1, 1)) == list(epoch(alone, 30, 1, 1))
    assert [len(step) for step in epoch(alone, 8, 0, 0)] == [8, 8, 8, 6]
    assert [len(step) for step in epoch(alone, 15, 0, 0)] == [15, 15]


def test_steps_hold_the_examples_of_the_epoch_that_is_asked_for() -> None:
    examples = [Turn(name) for name in "abcdefghij"]
    for number in (0, 1):
        wanted = [[examples[index] for index in step] for step in epoch([[i] for i in range(10)], 4, 3, number)]
        assert list(steps_of(examples, 4, 3, number)) == wanted
    assert list(steps_of(examples, 4, 3)) == list(steps_of(examples, 4, 3, 0))
