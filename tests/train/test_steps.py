"""Tests of the parts of a step at their bounds: full micro-batches, fingerprints of examples, and obstacles."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from torch import nn

from ossia.errors import UserError
from ossia.sequences.tree import alone
from ossia.train.steps import Collator, cut, fingerprint, micro_batches_of, model_obstacles, shared_out


@dataclass(frozen=True)
class Row:
    ids: list[int]
    weights: list[float] = field(default_factory=list)
    channels: list[str | None] = field(default_factory=list)
    turn: int = 0

    def __len__(self) -> int:
        return len(self.ids)


def row(length: int, turn: int = 0) -> Row:
    return Row(list(range(length)), [0.0, *[1.0] * (length - 1)], [None] * length, turn)


def test_micro_batches_are_filled_to_the_last_token() -> None:
    rows = [row(length) for length in (4, 4, 4, 4, 5, 3)]
    assert [[len(one) for one in group] for group in cut(rows, 11)] == [[3, 4, 4], [4, 4], [5]]
    assert [[len(one) for one in group] for group in cut(rows, 24)] == [[3, 4, 4, 4, 4, 5]]
    assert [[len(one) for one in group] for group in cut(rows, 23)] == [[3, 4, 4, 4, 4], [5]]
    assert list(cut([], 10)) == []
    assert [len(group) for group in cut(rows, 5)] == [1] * 6
    with pytest.raises(UserError, match="an example has 5 tokens, a micro-batch holds 4"):
        list(cut(rows, 4))


def test_an_example_may_fill_a_micro_batch() -> None:
    assert [batch["input_ids"].numel() for batch in Collator(64)([row(64)])["micro_batches"]] == [64]
    with pytest.raises(UserError, match="an example has 65 tokens, a micro-batch holds 64"):
        Collator(64)([row(65)])


def test_the_fingerprint_sees_every_part_of_an_example() -> None:
    """The turn counts too, because the order of an epoch uses it to keep conversations together."""
    known = [row(5), row(6, turn=1)]
    others = [
        [row(5), row(6, turn=0)],
        [row(5), row(6, turn=2)],
        [row(5), replace(known[1], weights=[0.0, 0.5, *[1.0] * 4])],
        [row(5), replace(known[1], ids=[0, 1, 2, 3, 4, 6])],
        [row(6, turn=1), row(5)],
        [row(5)],
    ]
    prints = {fingerprint(known, []), *(fingerprint(other, []) for other in others)}
    assert len(prints) == 1 + len(others)
    assert fingerprint([row(5)], [row(6, turn=1)]) not in prints
    assert fingerprint([row(5), row(6, turn=1)], []) in prints


def test_micro_batches_of_several_processes_are_a_multiple_of_theirs() -> None:
    trees = alone([row(length) for length in (30, 30, 30, 10, 10, 10)])
    assert [len(micro_batches_of(trees, 60, 30, processes)) for processes in (1, 2, 3, 4)] == [2, 2, 3, 4]
    shares = shared_out(micro_batches_of(trees, 60, 30, 3), 3)
    assert [sum(tree.tokens for group in share for tree in group) for share in shares] == [40, 40, 40]


def test_the_largest_dropout_of_a_model_counts() -> None:
    """Layers without dropout do not hide it."""
    model = nn.Sequential(nn.Dropout(0.0), nn.Dropout(0.3), nn.Dropout(0.1))
    assert model_obstacles(model).dropout == 0.3
    assert model_obstacles(nn.Linear(1, 1)).dropout == 0.0
