"""Repairs: every one makes the row usable, says what it did, and changes nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ossia.data import DataSettings, load_conversations
from ossia.data.fix import FIXES, fix_row, write_fixed
from ossia.data.sources import Row, read_rows
from ossia.errors import UserError

U: dict[str, Any] = {"role": "user", "content": "What is 1+1?"}
A: dict[str, Any] = {"role": "assistant", "content": "2", "thinking": "easy"}


def call(id: str, arguments: str = "{}") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": "f", "arguments": arguments}}


GONE = "a last message that nothing answers: removed"


def asking(*calls: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [U, {"role": "assistant", "thinking": "t", "tool_calls": list(calls)}], "tools": TOOLS}


TOOLS = [{"type": "function", "function": {"name": "f"}}]
GOOD = {"messages": [U, A], "id": 7}
REPAIRS: dict[str, tuple[Any, Any, list[str]]] = {
    # code -> row, repaired row, changes
    "unknown-role": (
        {"messages": [{**U, "role": "human"}, {**A, "role": "Asistant"}], "id": 7},
        GOOD,
        ["messages[0].role: role 'human' -> 'user'", "messages[1].role: role 'Asistant' -> 'assistant'"],
    ),
    "arguments-not-json": (
        asking(call("1", "{'x': True, }")),
        asking(call("1", '{"x": true}')),
        ["messages[1].tool_calls[0].function.arguments: arguments rewritten as JSON"],
    ),
    "result-without-call": (
        {"messages": [U, {"role": "tool", "tool_call_id": "9", "content": "x"}, A], "id": 7},
        GOOD,
        ["messages[1]: a tool result without a call: removed"],
    ),
    "call-without-result": (
        asking(call("1"), call("2")),
        asking(call("1")),
        ["messages[1].tool_calls[1]: a parallel call without a result: removed"],
    ),
    "last-not-assistant": (
        {"messages": [U, A, U, U], "id": 7},
        GOOD,
        [f"messages[3]: {GONE}", f"messages[2]: {GONE}"],
    ),
    "unfinished-turn": (
        {"messages": [U, A, U, {"role": "assistant", "content": None, "thinking": "t"}], "id": 7},
        GOOD,
        ["messages[3]: a turn without an answer: removed", f"messages[2]: {GONE}"],
    ),
    "empty-final": (
        {"messages": [U, A, U, {"role": "assistant", "content": " "}], "id": 7},
        GOOD,
        ["messages[3]: an empty answer: removed", f"messages[2]: {GONE}"],
    ),
    "weight": (
        {"messages": [U, {**A, "weight": "1"}], "id": 7},
        {"messages": [U, {**A, "weight": 1}], "id": 7},
        ["messages[1].weight: weight '1' -> 1"],
    ),
    "effort": (
        {**GOOD, "reasoning_effort": "HIGH"},
        {**GOOD, "reasoning_effort": "high"},
        ["reasoning_effort: reasoning_effort 'HIGH' -> high"],
    ),
    "special-tokens": (
        {"messages": [U, {**A, "content": "2<|im_end|> <|endoftext|>"}], "id": 7},
        GOOD,
        ["messages[1]: control tokens at the end of the text removed"],
    ),
    "lone-surrogate": (
        {"messages": [U, {**A, "content": "2 \ud83d"}]},
        {"messages": [U, {**A, "content": "2 \ufffd"}]},
        ["messages[1]: halves of surrogate pairs -> U+FFFD"],
    ),
}  # fmt: skip


def test_every_repair_has_a_case() -> None:
    assert set(REPAIRS) == set(FIXES)


@pytest.mark.parametrize("code", REPAIRS)
def test_a_repaired_row_is_usable_and_otherwise_the_same(code: str) -> None:
    row, expected, changes = REPAIRS[code]
    fixed = fix_row(Row(row, "d.jsonl", 3), DataSettings())
    assert (fixed.value, fixed.changes, fixed.problems) == (expected, changes, [])
    again = fix_row(Row(expected, "d.jsonl", 3), DataSettings())
    assert again.value == expected and again.changes == []


@pytest.mark.parametrize(
    "line",
    ["{'messages': [{'role': 'user', 'content': 'a' or 'b'}]}", "{1: 2", "nan", "[1, 2"],
)
def test_what_no_program_can_know_is_left_alone(tmp_path: Path, line: str) -> None:
    (tmp_path / "d.jsonl").write_text(line + "\n")
    (row,) = read_rows(tmp_path / "d.jsonl")
    fixed = fix_row(row, DataSettings())
    assert fixed.value is None and [problem.code for problem in fixed.problems] == ["not-json"]


@pytest.mark.parametrize("line", [str(GOOD), json.dumps(GOOD) + ",", json.dumps(GOOD)[:-1] + ",}"])
def test_nearly_json_is_read(tmp_path: Path, line: str) -> None:
    (tmp_path / "d.jsonl").write_text(line + "\n")
    (row,) = read_rows(tmp_path / "d.jsonl")
    assert row.value is None
    assert fix_row(row, DataSettings()).value == GOOD


def test_special_tokens_inside_a_text_stay() -> None:
    row = {"messages": [{**U, "content": "What does <|end|> mean?"}, A]}
    fixed = fix_row(Row(row, "d", 1), DataSettings())
    assert (fixed.value, fixed.changes) == (row, [])


def test_the_copy_says_what_changed_and_keeps_the_rest_beside_it(tmp_path: Path) -> None:
    unfixable = {"messages": [U]}
    rows = [GOOD, REPAIRS["unknown-role"][0], GOOD, unfixable]
    source, to = tmp_path / "d.jsonl", tmp_path / "fixed.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    before = source.read_bytes()
    written = write_fixed(source, DataSettings(), to)
    assert source.read_bytes() == before
    assert (written.rows, written.unchanged, written.repaired, written.left_out) == (5, 1, 0, 4)
    assert [json.loads(line) for line in to.read_text().splitlines()] == [GOOD]
    rejected = [json.loads(line) for line in (tmp_path / "fixed.rejected.jsonl").read_text().splitlines()]
    assert [entry["from"].rpartition(":")[2] for entry in rejected] == ["2", "3", "4", "5"]
    assert rejected[2]["row"] == unfixable and "nothing to train" in rejected[2]["why"][0]
    assert rejected[3]["row"] == "{broken"
    assert any("d.jsonl:3: left out: the same conversation" in line for line in written.lines)
    assert not load_conversations(to).problems
    with pytest.raises(UserError, match="exists already"):
        write_fixed(source, DataSettings(), to)


def test_repairs_follow_the_place_in_other_formats(tmp_path: Path) -> None:
    row = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a</s>"}]}
    fixed = fix_row(Row(row, "d", 1), DataSettings())
    assert fixed.value is not None and fixed.value["conversations"][1]["value"] in ("a", "a</s>")


def test_no_repair_makes_a_row_worse() -> None:
    """Its only answer stands on commentary, because its header lost the channel: usable, though with a warning."""
    text = "<|start|>user<|message|>Hi<|end|><|start|>assistant<|message|>Hello to you.<|end|>"
    fixed = fix_row(Row({"text": text, "note": 1}, "d", 1), DataSettings())
    assert (fixed.value, fixed.changes) == ({"text": text, "note": 1}, [])


def test_what_json_has_not_is_written_as_null(tmp_path: Path) -> None:
    lines = [json.dumps({**GOOD, "score": float("nan")}), "[1, 2]", '{"messages": [], "x": 1e999}']
    (tmp_path / "d.jsonl").write_text("".join(line + "\n" for line in lines))
    written = write_fixed(tmp_path / "d.jsonl", DataSettings(), tmp_path / "fixed.jsonl")
    strict = json.JSONDecoder(parse_constant=lambda name: pytest.fail(name))
    assert strict.decode((tmp_path / "fixed.jsonl").read_text()) == {**GOOD, "score": None}
    rejected = [strict.decode(line) for line in (tmp_path / "fixed.rejected.jsonl").read_text().splitlines()]
    assert [entry["row"] for entry in rejected] == ["[1, 2]", {"messages": [], "x": None}]
    assert any("NaN" in line for line in written.lines)
