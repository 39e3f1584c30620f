"""The split into training and validation: how many conversations are held back, which, and what both sides share."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from ossia.config import DataSection
from ossia.data.prepare import PreparedData, hold_back, prepare
from ossia.data.rendered import Rendered
from ossia.errors import UserError
from ossia.harmony.tokenizer.vocabulary import Vocabulary

WORDS = ["river", "stone", "lamp", "chair", "window", "bread", "copper", "violin", "garden", "winter", "signal"]


def row(number: int, extra: str = "") -> dict[str, Any]:
    """A conversation of its own words, long enough to be compared with others."""
    words = random.Random(number).choices(WORDS, k=60)
    return {
        "messages": [
            {"role": "user", "content": f"Question {number}: {' '.join(words[:9])}?{extra}"},
            {"role": "assistant", "content": f"{' '.join(words)} {number}{extra}"},
        ]
    }


def written(path: Path, rows: Iterable[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prepared(vocabulary: Vocabulary, **settings: Any) -> PreparedData:
    return prepare(DataSection(cache=False, **settings), vocabulary, seed=0)


@pytest.fixture(scope="module")
def vocabulary(tokenizer_folder: Path) -> Vocabulary:
    return Vocabulary.load(tokenizer_folder)


def test_rows_that_were_written_twice_are_not_validated_on(vocabulary: Vocabulary, tmp_path: Path) -> None:
    rows = [row(number) for number in range(30)]
    for order in ([*rows, *rows], [each for one in rows for each in (one, one)]):
        found = prepared(vocabulary, train=[written(tmp_path / "twice.jsonl", order)], validation_share=0.2)
        trained = {tuple(example.ids) for example in found.train}
        assert not trained & {tuple(example.ids) for example in found.validation}
        assert (len(found.train), len(found.validation)) == (48, 6)
        assert not found.warnings


def test_what_training_and_validation_files_share_is_counted(vocabulary: Vocabulary, tmp_path: Path) -> None:
    train = written(tmp_path / "train.jsonl", (row(number) for number in range(20)))
    nearly = row(3)
    nearly["messages"][0]["content"] += " Now."
    nearly["messages"][1]["content"] += " Really."
    question = row(4)
    question["messages"][1]["content"] = "Something else altogether."
    held = [row(1), row(2), nearly, question, row(77), row(78)]
    found = prepared(vocabulary, train=[train], validation=[written(tmp_path / "held.jsonl", held)])
    (warning,) = found.warnings
    assert warning.startswith("leak: 4 of 6 validation conversations are in the training data too")
    for words in ("2 the same conversation", "1 nearly the same conversation", "1 the same question", "held.jsonl:1"):
        assert words in warning
    assert f"warning: {warning}" in list(found.remarks())


def test_near_duplicates_across_the_split_are_counted(vocabulary: Vocabulary, tmp_path: Path) -> None:
    rows = [row(number, extra) for number in range(10) for extra in ("", " Indeed.")]
    found = prepared(vocabulary, train=[written(tmp_path / "near.jsonl", rows)], validation_share=0.3)
    assert "nearly the same conversation" in found.warnings[0]


@pytest.mark.parametrize("rows", [[], [{"messages": []}], [{"nothing": 1}, {"messages": [{"role": "user"}]}]])
def test_validation_data_without_a_usable_row_are_refused(
    vocabulary: Vocabulary, tmp_path: Path, rows: list[Any]
) -> None:
    train = written(tmp_path / "train.jsonl", [row(1), row(2)])
    with pytest.raises(UserError, match="no row of the validation data can be used") as refused:
        prepared(vocabulary, train=[train], validation=[written(tmp_path / "held.jsonl", rows)])
    assert "held.jsonl" in str(refused.value)


@pytest.mark.parametrize(
    ("conversations", "share", "held"),
    [
        (20, 0.25, 5),
        (3, 0.5, 2),
        (20, 0.0, 0),
        (20, 0.01, 1),  # at least one is held back
        (2, 0.01, 1),
        (2, 0.99, 1),  # at least one stays
        (4, 0.99, 3),
        (1, 0.5, 0),
        (1, 0.01, 0),
        (0, 0.5, 0),
    ],
)
def test_at_least_one_is_held_back_and_at_least_one_stays(conversations: int, share: float, held: int) -> None:
    given = [Rendered(f"d:{number}") for number in range(conversations)]
    rest, chosen = hold_back(given, share, seed=0)
    assert (len(rest), len(chosen)) == (conversations - held, held)
    assert [one for one in given if one in rest] == rest
    assert [one for one in given if one in chosen] == chosen
    assert {id(one) for one in rest} | {id(one) for one in chosen} == {id(one) for one in given}


def test_the_seed_chooses_who_is_held_back() -> None:
    given = [Rendered(f"d:{number}") for number in range(100)]

    def chosen(seed: int) -> list[str]:
        return [one.source for one in hold_back(given, 0.1, seed)[1]]

    assert chosen(0) == chosen(0)
    assert len({tuple(chosen(seed)) for seed in range(5)}) == 5
