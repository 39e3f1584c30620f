"""Tests of the data of the multilingual example: right answers, unseen held-out operands, and up-to-date files."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "multilingual"
Row = dict[str, Any]


@pytest.fixture(scope="module")
def generate() -> Iterator[ModuleType]:
    """The generator as a module. Its folder is on the path, as when it runs as a script."""
    sys.path.insert(0, str(FOLDER))
    try:
        import generate as module  # type: ignore[import-not-found, unused-ignore]

        yield module
    finally:
        sys.path.remove(str(FOLDER))
        for name in ("generate", "phrases"):
            sys.modules.pop(name, None)


def read(name: str) -> list[Row]:
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


def solve(row: Row) -> str:
    """Return the solution of a row's question, by rules that share nothing with the generator."""
    question = row["user"]
    numbers = [int(n) for n in re.findall(r"\d+", question)]
    if row["kind"] == "compare":
        first, second = re.findall(r"\b(?:Anna|Paul|Maria|Leo)\b", question)
        assert re.search(r"\b(more|mehr|plus|más|più)\b", question)
        return first if numbers[0] > numbers[1] else second
    if row["kind"] == "weeks":
        return str(7 * numbers[0] + numbers[1])
    return str(sum(numbers)) if row["kind"] in ("add", "date") else str(abs(numbers[0] - numbers[1]))


def operands(row: Row) -> tuple[str, tuple[int, ...]]:
    """Return the kind and the numbers of a row's question. The numbers are sorted if their order has no effect."""
    numbers = [int(n) for n in re.findall(r"\d+", row["user"])]
    return row["kind"], tuple(sorted(numbers) if row["kind"] in ("add", "compare") else numbers)


@pytest.fixture(scope="module")
def all_rows(generate: ModuleType) -> dict[str, list[Row]]:
    return {
        "pretraining": generate.pretraining_rows(8000, 0),
        "train": read("train.jsonl"),
        "heldout": read("heldout.jsonl"),
    }


@pytest.mark.parametrize("name", ["pretraining", "train", "heldout"])
def test_answers_are_right_and_stand_in_the_final(
    generate: ModuleType, all_rows: dict[str, list[Row]], name: str
) -> None:
    for row in all_rows[name]:
        assert row["answer"] == solve(row), row["user"]
        last_sentence = re.split(r"(?<=[^\d][.]) ", row["final"])[-1]
        assert re.search(rf"(?<!\w){re.escape(row['answer'])}(?!\w)", last_sentence), row


def test_arithmetic_in_the_working_is_true(all_rows: dict[str, list[Row]]) -> None:
    seen = 0
    for row in [row for rows in all_rows.values() for row in rows]:
        for claim in re.findall(r"\d[\d+<>=-]*\d", row["analysis"] + " " + row["final"]):
            if re.search(r"[<>=]", claim):
                assert eval(compile(ast.parse(re.sub("=", "==", claim), mode="eval"), "claim", "eval")), claim
                seen += 1
    assert seen > 10_000


def test_heldout_operands_occur_nowhere_else(generate: ModuleType, all_rows: dict[str, list[Row]]) -> None:
    asked = {name: {operands(row) for row in rows} for name, rows in all_rows.items()}
    assert not asked["heldout"] & (asked["pretraining"] | asked["train"])
    kinds = Counter(kind for kind, _ in asked["heldout"])
    assert set(kinds) == set(generate.KINDS) and min(kinds.values()) >= 5


def test_no_two_heldout_questions_are_the_same(all_rows: dict[str, list[Row]]) -> None:
    assert len({row["user"] for row in all_rows["heldout"]}) == len(all_rows["heldout"]) == 325


def test_pretraining_thinks_in_english_whatever_is_requested(all_rows: dict[str, list[Row]]) -> None:
    rows = all_rows["pretraining"]
    thoughts = [row for row in rows if row["analysis"]]
    assert all(re.search(r"So the answer is [^.]+\.$", row["analysis"]) for row in thoughts)
    assert all(row["reasoning_effort"] == ("medium" if row["analysis"] else "low") for row in rows)
    pairs = Counter((row["language"], row["reasoning_language"]) for row in thoughts)
    assert len(pairs) == 25 and min(pairs.values()) > 80
    assert 0.45 < len(thoughts) / len(rows) < 0.55


def test_training_and_heldout_think_in_the_requested_language(all_rows: dict[str, list[Row]]) -> None:
    ending = {
        "English": "So the answer is",
        "German": "Also ist die Antwort",
        "French": "Donc la réponse est",
        "Spanish": "Así que la respuesta es",
        "Italian": "Quindi la risposta è",
    }
    for row in all_rows["train"] + all_rows["heldout"]:
        assert ending[row["reasoning_language"]] in row["analysis"]
        assert not any(text in row["final"] for text in ending.values())


def test_balance(all_rows: dict[str, list[Row]]) -> None:
    heldout = all_rows["heldout"]
    assert set(Counter(row["language"] for row in heldout).values()) == {65}
    assert Counter(row["reasoning_language"] for row in heldout) == {
        "English": 25, "German": 75, "French": 75, "Spanish": 75, "Italian": 75,
    }  # fmt: skip
    cells = Counter((row["kind"], row["language"], row["reasoning_language"]) for row in all_rows["train"])
    assert len(cells) == 125 and max(cells.values()) - min(cells.values()) <= 1


@pytest.mark.parametrize("name", ["train", "heldout"])
def test_schema(all_rows: dict[str, list[Row]], name: str) -> None:
    for row in all_rows[name]:
        assert row["messages"] == [
            {
                "role": "system",
                "content": f"reasoning language: {row['reasoning_language']}\n\n{row['developer']}",
                "thinking": None,
            },
            {"role": "user", "content": row["user"], "thinking": None},
            {"role": "assistant", "content": row["final"], "thinking": row["analysis"]},
        ]
        assert "{" not in row["user"] + row["analysis"] + row["final"]


def test_files_are_what_the_generator_writes(
    generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "__file__", str(tmp_path / "generate.py"))
    generate.main()
    for name in ("train.jsonl", "heldout.jsonl"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()
        assert (FOLDER / name).stat().st_size < 1_000_000


def test_seeds_matter(generate: ModuleType) -> None:
    for make in (generate.pretraining_rows, generate.training_rows, generate.heldout_rows):
        assert make(25, 3) == make(25, 3) != make(25, 4)
