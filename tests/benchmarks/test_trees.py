"""Tests of the benchmark of prefix sharing: the sizes of its sets, and equal losses of both sides of Ossia."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import tree_sets, trees

from ossia.checkpoint.synthetic import write_synthetic
from ossia.sequences.sharing import saving


def rows_of(file: Path) -> list[trees.Row]:
    return [trees.Row(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[trees.Row]]:
    files = tree_sets.write_sets(tmp_path_factory.mktemp("sets"), vocabulary=16_768)
    return {name: rows_of(file) for name, file in files.items()}


def test_sets_are_what_the_issue_asks_for(sets: dict[str, list[trees.Row]]) -> None:
    assert {name: len(rows) for name, rows in sets.items()} == {"chats": 10, "agents": 20, "loops": 8, "single": 32}
    first, second = (rows[0].ids for rows in (sets["agents"], sets["loops"]))
    assert 1400 < next(place for place, weight in enumerate(sets["agents"][0].weights) if weight) < 1700
    assert first[:10] == second[:10]
    assert all(max(row.ids) < 16_768 and any(row.weights) for rows in sets.values() for row in rows)
    assert max(len(row) for rows in sets.values() for row in rows) <= trees.TOKENS_PER_MICRO_BATCH


def test_the_token_ratios_leave_room_for_the_targets(sets: dict[str, list[trees.Row]]) -> None:
    for name, rows in sets.items():
        unshared, shared = saving([rows])
        target = trees.TARGETS[name]["unshared"] or 0
        assert unshared / shared > target / 0.85 or name == "single"


def test_a_sample_is_spread_over_the_lengths() -> None:
    rows = ["x" * length for length in (5, 1, 4, 2, 3, 6)]
    assert trees.sampled(rows, 1) == [2]  # of six, the fourth by length
    assert [len(rows[index]) for index in trees.sampled(rows, 6)] == [2, 5]
    assert sorted(trees.sampled(rows, 1000)) == list(range(6))


def test_sharing_gives_the_same_losses_on_fewer_tokens(tmp_path: Path) -> None:
    width = trees.WIDTHS["small"]
    path = write_synthetic(tmp_path / "model", width.shape)
    rows = rows_of(tree_sets.write_sets(tmp_path, width.shape.vocabulary, width.scale)["loops"])
    alone, shared = (trees._ossia(rows, 4, path, width, "cpu", share) for share in (False, True))
    assert alone["tokens"] == alone["example_tokens"] == sum(map(len, rows)) > 1.5 * shared["tokens"]
    assert len(alone["losses"]) == 2
    assert shared["losses"] == pytest.approx(alone["losses"], rel=2e-4)  # bfloat16
