"""Tests of calling `ossia.workflows.data` from Python: arguments, results and events."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ossia.config import DataSection, DataSource, Recipe
from ossia.errors import UserError
from ossia.events import Event, Note, Progress
from ossia.workflows import data

GOOD = {"prompt": "What is the capital of France?", "completion": "<think>Easy.</think>The capital is Paris."}
OTHER = {"messages": [{"role": "user", "content": "Say hi"}, {"role": "assistant", "content": "Hi"}]}
BAD = {"messages": [{"role": "user", "content": "Say hello"}, {"role": "asistant", "content": "Hello"}]}
PAIR = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}


def written(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def progress(seen: list[Event]) -> list[Progress]:
    return [event for event in seen if isinstance(event, Progress)]


def test_check_returns_what_is_wrong_and_reports_progress(tmp_path: Path) -> None:
    train = written(tmp_path / "train.jsonl", GOOD, BAD, OTHER)
    test = written(tmp_path / "test.jsonl", GOOD)
    seen: list[Event] = []
    found = data.check(train, against=test, on_event=seen.append)
    assert (found.rows, found.usable) == (4, 3)
    assert found.formats == Counter({"prompt-completion": 2, "openai": 2})
    assert [(problem.line, problem.code) for problem in found.errors] == [(2, "unknown-role")]
    assert any(problem.where == f"{test}:1" and f"{train}:1" in problem.what for problem in found.warnings)
    assert len(found.problems) == len(found.errors) + len(found.warnings)
    assert found.is_mendable
    assert found.as_dict()["errors"] == 1 and found.as_dict()["problems"][0]["where"]
    ends = [(event.title, event.unit) for event in progress(seen) if event.finished]
    assert ends == [("compiling", "MB"), ("compiling", "MB"), ("searching near-duplicates", "")]
    assert seen[-1] == progress(seen)[-1] and progress(seen)[-1].done == progress(seen)[-1].total == 2
    compiled = [event.done for event in progress(seen) if event.title == "compiling" and event.finished]
    sizes = [Path(train).stat().st_size, Path(test).stat().st_size]
    assert [done * 1e6 for done in compiled] == pytest.approx(sizes, abs=2)


def test_check_without_near_duplicates_does_not_search(tmp_path: Path) -> None:
    nearly = {**GOOD, "completion": GOOD["completion"] + " " + "It lies on the river Seine, north of Orleans. " * 6}
    again = {**nearly, "completion": nearly["completion"] + "Yes."}
    train = written(tmp_path / "train.jsonl", nearly, again)
    assert "near-duplicate" in [problem.code for problem in data.check([train]).warnings]
    seen: list[Event] = []
    found = data.check(Path(train), similar=False, on_event=seen.append)
    assert "near-duplicate" not in [problem.code for problem in found.problems]
    assert {event.title for event in progress(seen)} == {"compiling"}


def test_a_recipe_brings_its_data_and_settings(tmp_path: Path) -> None:
    train, held_out = written(tmp_path / "train.jsonl", GOOD, OTHER), written(tmp_path / "test.jsonl", GOOD)
    source = DataSource(path=train, weight=3.0)
    recipe = Recipe(data=DataSection(train=[source], validation=[held_out], cache=False))
    found = data.check(recipe)
    assert (found.rows, found.usable) == (3, 3)  # each row counts once, with any weight
    assert any("the training data have the same conversation" in problem.what for problem in found.warnings)
    assert data.check(recipe, overrides=["data.validation=[]"]).rows == 2
    assert data.count_tokens(recipe).statistics.rows == 7  # three times two, and the held-out one


def test_wrong_input_is_named(tmp_path: Path) -> None:
    train, empty = written(tmp_path / "train.jsonl", GOOD), written(tmp_path / "empty.jsonl")
    with pytest.raises(UserError, match="the files are named already"):
        data.check(train, overrides=[f"data.train={train}"])
    with pytest.raises(UserError, match="there are no rows"):
        data.check(empty)
    with pytest.raises(UserError, match="the recipe has no training data"):
        data.check(Recipe())
    bad = written(tmp_path / "bad.jsonl", BAD)
    with pytest.raises(UserError, match="no row can be used") as raised:
        data.count_tokens(bad, overrides=["data.max_tokens=99"])
    assert raised.value.do == f"ossia data check {bad} --set data.max_tokens=99"


def test_count_tokens_tells_lengths_and_languages(tmp_path: Path) -> None:
    train = written(tmp_path / "train.jsonl", GOOD, BAD, OTHER)
    seen: list[Event] = []
    found = data.count_tokens(train, at=[8, 4096], overrides=["train.examples_per_step=2"], on_event=seen.append)
    assert found.statistics.rows == 2 and found.statistics.over == {8: 2, 4096: 0}
    assert found.examples_per_step == 2 and found.limit == DataSection().max_tokens
    assert found.languages["user"] == {"en": 1}
    assert [event.message for event in seen if isinstance(event, Note)] == [
        "1 rows cannot be used (ossia data check lists them)"
    ]
    assert [event.title for event in progress(seen) if event.finished] == ["compiling", "counting"]
    assert json.loads(json.dumps(found.as_dict()))["languages"]["user"] == {"en": 1}


def test_conversations_are_read_one_by_one(tmp_path: Path) -> None:
    train = written(tmp_path / "train.jsonl", GOOD, BAD, OTHER, PAIR)
    assert [done.row.line for done in data.read_conversations(train).rows] == [1, 3, 4]
    assert [done.row.line for done in data.read_conversations(train, limit=2).rows] == [1, 3]
    with pytest.raises(UserError, match="row 2 cannot be used"):
        list(data.read_conversations(train, row=2).rows)
    with pytest.raises(UserError, match="there is no row 9"):
        list(data.read_conversations(train, row=9).rows)
    opened = data.read_conversations(train, row=4)
    (pair,) = opened.rows
    both = list(opened.examples(pair))
    assert [is_rejected for _, is_rejected in both] == [False, True]
    assert ["4" in opened.vocabulary.decode(both[0][0].ids), "5" in opened.vocabulary.decode(both[1][0].ids)] == [
        True
    ] * 2
    (shown,) = data.examples_as_json(pair)
    assert shown["input_ids"] == both[0][0].ids and shown["row"] == 4
    tree = data.tree_as_json(pair)
    assert [id for node in tree["nodes"] for id in node["input_ids"]] == both[0][0].ids


def test_a_page_is_written_for_what_was_read(tmp_path: Path) -> None:
    opened = data.read_conversations(written(tmp_path / "train.jsonl", GOOD, BAD, OTHER))
    assert data.write_page(tmp_path / "page.html", "both", opened.rows, opened.vocabulary) == 2
    assert "Paris" in (tmp_path / "page.html").read_text(encoding="utf-8")
    (tmp_path / "letter.html").write_text("dear")
    with pytest.raises(UserError, match="exists already"):
        data.write_page(tmp_path / "letter.html", "", (), opened.vocabulary)


def test_a_copy_is_repaired_and_says_how_it_is_read(tmp_path: Path) -> None:
    train = written(tmp_path / "train.jsonl", OTHER, BAD)
    made = data.repair(train, tmp_path / "fixed.jsonl", overrides=["data.format=openai"])
    assert (made.written.rows, made.written.unchanged, made.written.repaired) == (2, 1, 1)
    assert made.settings is not None and made.settings.format == "openai"
    assert not data.check(tmp_path / "fixed.jsonl").errors
    two = [DataSource(path=train, format="openai"), DataSource(path=written(tmp_path / "more.jsonl", GOOD))]
    assert data.repair(two, str(tmp_path / "mixed.jsonl")).settings is None


def test_arguments_of_the_next_command() -> None:
    assert (
        data.command_arguments(["a b.jsonl"], ["data.strict=true"], "m")
        == "'a b.jsonl' --set data.strict=true --model m"
    )
    assert data.is_recipe(["tiny-demo"]) and data.is_recipe(["my.yaml"])
    assert not data.is_recipe(["a.jsonl"]) and not data.is_recipe(["tiny-demo", "a.jsonl"])
