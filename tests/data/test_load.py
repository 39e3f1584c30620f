"""Tests of files, formats and checks: every format, and every kind of bad row with its file and row number."""

from __future__ import annotations

import csv
import gzip
import importlib.machinery
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from ossia.config import DataSection, DataSource
from ossia.data import compile_sources, load_conversations
from ossia.data.formats import detect, to_conversation
from ossia.data.sources import read_rows, total_bytes
from ossia.errors import UserError
from ossia.harmony.conversation import (
    Message,
    ToolDescription,
    answer,
    call,
    developer,
    preamble,
    thought,
    tool_result,
    user,
)
from ossia.harmony.from_openai import conversation_from_chat
from ossia.harmony.tokenizer.vocabulary import Vocabulary

GOOD: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "What is 1+1?"},
        {"role": "assistant", "content": "2", "thinking": "easy"},
    ]
}
TURN = (user("What is 1+1?"), thought("easy"), answer("2"))
TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"x": {}}}},
}


NUMBER = {
    "type": "function",
    "function": {
        "name": "n",
        "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
    },
}


def tool_call(id: str, name: str = "f", arguments: Any = "{}") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def write(path: Path, *rows: Any) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


# ---------------------------------------------------------------------------------------------------------- formats


def test_openai_with_everything() -> None:
    row = {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "eve"},
            {
                "role": "assistant",
                "content": "Wait.",
                "reasoning_content": "hm",
                "tool_calls": [tool_call("1", "f", '{"x": 1}'), tool_call("2", "g", {"y": "é"})],
            },
            {"role": "tool", "tool_call_id": "2", "content": "two"},
            {"role": "tool", "tool_call_id": "1", "content": {"one": 1}},
            {"role": "assistant", "content": "Done.", "reasoning": "ok", "weight": 0},
            {"role": "system", "content": "Now rhyme."},
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": "d", "weight": 1},
        ],
        "tools": [TOOL, {"name": "g", "parameters": {"type": "object", "properties": {}}}],
        "reasoning_effort": "high",
        "id": 7,
    }
    found = to_conversation(row)
    assert found.messages == (
        user("ab", "eve"), thought("hm"), preamble("Wait."),
        call("g", '{"y": "é"}'), tool_result("g", "two"), call("f", '{"x": 1}'), tool_result("f", '{"one": 1}'),
        thought("ok", 0.0), answer("Done.", 0.0), developer("Now rhyme."), user("c"), answer("d", 1.0),
    )  # fmt: skip
    assert found.instructions == "Be kind.\n\nBe brief."
    parameters = TOOL["function"]["parameters"]
    assert found.tools == (ToolDescription("f", "d", parameters), ToolDescription("g", "", None))
    assert (
        found.system is not None
        and found.system.effort == "high"
        and found.extra == {"reasoning_effort": "high", "id": 7}
    )


def test_legacy_functions_and_tools_as_json_text() -> None:
    messages = [
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}},
        {"role": "function", "name": "f", "content": "r"},
        {"role": "assistant", "content": "a"},
    ]
    expected = (user("u"), call("f", '{"x": 1}'), tool_result("f", "r"), answer("a"))
    old = to_conversation({"messages": messages, "functions": [TOOL["function"]]})
    assert (old.messages, old.tools[0].name) == (expected, "f")
    assert to_conversation({"messages": messages, "tools": json.dumps([TOOL])}).tools == old.tools


def test_harmony_messages_are_taken_over() -> None:
    messages = [
        {"role": "user", "content": "u"},
        {"role": "assistant", "channel": "analysis", "content": "t"},
        {"role": "assistant", "channel": "analysis", "recipient": "python", "content_type": "code", "content": "1"},
        {"role": "tool", "name": "python", "content": "r"},
        {"role": "assistant", "channel": "final", "content": "a"},
    ]
    python = Message("assistant", "1", "analysis", "python", "code")
    result = Message("tool", "r", "analysis", "assistant", name="python")
    assert to_conversation({"messages": messages}).messages == (user("u"), thought("t"), python, result, answer("a"))


def test_multilingual_thinking_from_messages_and_from_strings() -> None:
    strings = {
        "reasoning_language": "French",
        "developer": "Be kind.",
        "user": "u",
        "analysis": "réfléchir",
        "final": "f",
    }
    messages = [
        {"role": "system", "content": "reasoning language: French\n\nBe kind.", "thinking": None},
        {"role": "user", "content": "u", "thinking": None},
        {"role": "assistant", "content": "f", "thinking": "réfléchir"},
    ]
    assert detect(strings) == detect({**strings, "messages": messages}) == "multilingual-thinking"
    short, long = to_conversation(strings), to_conversation({**strings, "messages": messages})
    assert short == long
    assert short.instructions == "reasoning language: French\n\nBe kind."
    assert short.messages == (user("u"), thought("réfléchir"), answer("f")) and short.extra == {
        "reasoning_language": "French"
    }


def test_prompt_completion() -> None:
    assert to_conversation({"prompt": "u", "completion": "a"}).messages == (user("u"), answer("a"))
    row = {"system": "s", "prompt": "u", "completion": "a", "reasoning": "t", "label": 1}
    found = to_conversation(row)
    assert (
        found.messages == (user("u"), thought("t"), answer("a"))
        and found.instructions == "s"
        and found.extra["label"] == 1
    )
    lists = {"prompt": GOOD["messages"][:1], "completion": GOOD["messages"][1:]}
    assert (
        to_conversation({**lists, "chat_template_kwargs": {"reasoning_effort": "low", "model_identity": "I."}}).messages
        == TURN
    )


def test_unknown_and_wrong_formats_name_the_keys() -> None:
    with pytest.raises(UserError, match="question, reply"):
        detect({"question": "x", "reply": "y"})
    with pytest.raises(UserError, match=r"prompt-completion.*keys: messages"):
        to_conversation(GOOD, DataSection(format="prompt-completion"))


def test_system_settings_reach_the_conversation() -> None:
    found = to_conversation(GOOD, DataSection(effort="low", date="2026-01-31", identity="I.", knowledge_cutoff=None))
    assert found.system is not None
    assert (found.system.effort, found.system.date, found.system.identity, found.system.knowledge_cutoff) == (
        "low", "2026-01-31", "I.", None,
    )  # fmt: skip


def test_a_chat_request_with_an_error_raises_with_its_place() -> None:
    with pytest.raises(UserError, match=r"messages\[1\]"):
        conversation_from_chat([GOOD["messages"][0], {"role": "tool", "content": "x"}])


# ------------------------------------------------------------------------------------------------------------ files


def test_jsonl_json_and_csv_give_the_same(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", "\ufeff" + json.dumps(GOOD), "", GOOD)
    (tmp_path / "b.json").write_text(json.dumps([GOOD, GOOD], indent=1))
    (tmp_path / "c.json").write_text(json.dumps({"data": [GOOD]}))
    with (tmp_path / "d.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["messages", "note"])
        writer.writerow([json.dumps(GOOD["messages"], indent=1), "two\nlines"])
        writer.writerow([json.dumps(GOOD["messages"]), "x"])
    loaded = load_conversations(tmp_path)
    assert [conversation.messages for conversation in loaded.conversations] == [TURN] * 7 and not loaded.errors
    places = [Path(conversation.source).name for conversation in loaded.conversations]
    lines = json.dumps(GOOD["messages"], indent=1).count("\n") + 2
    assert places == ["a.jsonl:1", "a.jsonl:3", "b.json:1", "b.json:2", "c.json:1", "d.csv:2", f"d.csv:{2 + lines}"]
    assert loaded.rows == 7 and loaded.formats == {"openai": 7}
    assert {problem.code for problem in loaded.warnings} == {"duplicate"} and len(loaded.warnings) == 6


def test_csv_prompt_completion_keeps_text_that_begins_with_a_bracket(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("prompt,completion\n[draft] hello,{x\nonly one cell\n")
    loaded = load_conversations(tmp_path / "d.csv")
    assert loaded.conversations[0].messages == (user("[draft] hello"), answer("{x"))
    assert [(p.line, p.level) for p in loaded.problems if "cells" in p.what] == [(3, "error")]


def write_csv(path: Path, *rows: list[str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def test_csv_as_pandas_writes_it(tmp_path: Path) -> None:
    """pandas writes an index column without a name, and lists in Python's notation."""
    said = [{"role": "user", "content": "it's"}, {"role": "assistant", "content": "a", "name": None}]
    file = write_csv(tmp_path / "d.csv", ["", "messages", "tools"], ["0", str(said), ""], ["1", "", ""])
    rows = list(read_rows(file))
    assert [row.value for row in rows] == [{"messages": said, "tools": ""}, {"tools": ""}]
    (tmp_path / "e.csv").write_text(",prompt,completion\n0,u,a\n1,u,a,b\n2,u\n")
    assert [row.value for row in read_rows(tmp_path / "e.csv")] == [{"prompt": "u", "completion": "a"}, None, None]


def test_csv_text_that_happens_to_be_json_stays_text(tmp_path: Path) -> None:
    cells = [["Sort", "[3,1,2]", "[1,2,3]"], ["Sum", '{"a": 1}', '{"sum": 6}'], ["List", "", '[{"name": "a"}]']]
    loaded = load_conversations(write_csv(tmp_path / "a.csv", ["instruction", "input", "output"], *cells))
    assert [c.messages[-1].content for c in loaded.conversations] == ["[1,2,3]", '{"sum": 6}', '[{"name": "a"}]']
    assert loaded.formats == {"alpaca": 3} and loaded.conversations[0].messages[0] == user("Sort\n[3,1,2]")
    lists = [json.dumps(GOOD["messages"][:1]), json.dumps(GOOD["messages"][1:])]
    loaded = load_conversations(write_csv(tmp_path / "b.csv", ["prompt", "completion"], lists, ["[1]", '{"sum": 6}']))
    assert [c.messages for c in loaded.conversations] == [TURN, (user("[1]"), answer('{"sum": 6}'))]


def test_json_lines_under_other_names_and_compressed(tmp_path: Path) -> None:
    lines = f"{json.dumps(GOOD)}\n{json.dumps(GOOD)}\n{{broken\n"
    (tmp_path / "a.json").write_text(lines)
    (tmp_path / "B.JSONL").write_text(lines)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + lines.encode()))
    (tmp_path / "d.json.gz").write_bytes(gzip.compress(json.dumps([GOOD, GOOD], indent=1).encode()))
    loaded = load_conversations(tmp_path)
    places = [Path(conversation.source).name for conversation in loaded.conversations]
    names = ["B.JSONL", "a.json", "c.jsonl.gz", "d.json.gz"]
    assert places == [f"{name}:{line}" for name in names for line in (1, 2)]
    assert [(Path(problem.file).name, problem.line) for problem in loaded.errors] == [(name, 3) for name in names[:3]]
    source = DataSource(path=str(tmp_path / "c.jsonl.gz"))
    assert total_bytes(source) == len(lines) + 3


def test_a_compressed_file_that_breaks_off_is_one_sentence(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps(GOOD).encode() * 9)
    for name, content in {"a.jsonl.gz": whole[:-20], "b.json.gz": b"{}"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="not a complete gzip file"):
            list(read_rows(tmp_path / name))


def test_a_source_may_rename_a_key_anew_but_not_twice(tmp_path: Path) -> None:
    file = write(tmp_path / "d.jsonl", {"a": "u", "b": "v", "completion": "c"})
    common = DataSection(columns={"a": "prompt"})
    (conversation,) = load_conversations(DataSource(path=str(file), columns={"b": "prompt"}), common).conversations
    assert conversation.messages == (user("v"), answer("c"))
    with pytest.raises(UserError, match="'a' and 'b' for the one key `prompt`"):
        load_conversations(file, DataSection(columns={"a": "prompt", "b": "prompt"}))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "prompt,completion\ncafé,naïve\n".encode("latin-1"), r"a\.csv:2: The file is not UTF-8"),
        ("a.csv", b"prompt,prompt,completion\n1,2,3\n", "'prompt' occurs twice"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), r"compressed \(gzip\)"),
        ("a.jsonl", '{"a": 1}'.encode("utf-16"), "UTF-16"),
        ("a.jsonl", b"\0\1\2", "binary"),
    ],
)
def test_files_of_another_kind_get_one_sentence(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_rows(tmp_path / name))


def test_hidden_folders_are_no_data_and_splits_are_for_the_hub(tmp_path: Path) -> None:
    (tmp_path / ".checkpoints").mkdir()
    write(tmp_path / ".checkpoints" / "a.jsonl", GOOD)
    write(tmp_path / "b.jsonl", GOOD)
    assert [Path(row.file).name for row in read_rows(tmp_path)] == ["b.jsonl"]
    with pytest.raises(UserError, match="is for hub data sets"):
        list(read_rows(DataSource(path=str(tmp_path / "b.jsonl"), split="train[:10%]")))
    with pytest.raises(UserError, match="without a name"):
        list(read_rows(""))


def test_keys_that_are_null_are_absent(tmp_path: Path) -> None:
    """A table that is written as JSON has every column in every row."""
    row = {**GOOD, "chosen": None, "rejected": None, "prompt": None, "completion": None, "reasoning_language": None}
    loaded = load_conversations(write(tmp_path / "d.jsonl", row, {"messages": None, "prompt": "q", "completion": "a"}))
    assert loaded.formats == {"openai": 1, "prompt-completion": 1} and not loaded.errors


def test_a_value_over_several_lines_is_told_from_bad_json(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(json.dumps(GOOD, indent=1))
    assert "name it .json" in load_conversations(tmp_path / "d.jsonl").errors[0].what
    (tmp_path / "e.jsonl").write_text("[" * 100_000)
    assert load_conversations(tmp_path / "e.jsonl").errors[0].code == "too-deep"


def test_parquet(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.Table.from_pylist([GOOD, GOOD]), tmp_path / "a.parquet")
    assert [x.messages for x in load_conversations(tmp_path / "a.parquet").conversations] == [TURN, TURN]
    (tmp_path / "b.parquet").write_bytes(b"no")
    with pytest.raises(UserError, match="not Parquet"):
        list(read_rows(tmp_path / "b.parquet"))


def test_hub_rows_lose_their_nulls_and_know_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in replaces the package `datasets`, which needs a network. Absent keys are null."""
    asked = []

    def load_dataset(id: str, split: str) -> list[Any]:
        if id == "org/none":
            raise ValueError("no such data set")
        asked.append((id, split))
        message = {"tool_calls": None, "name": None}
        return [{"messages": [{**m, **message} for m in GOOD["messages"]], "tools": None}]

    package = types.ModuleType("datasets")
    package.load_dataset = load_dataset  # type: ignore[attr-defined]
    package.__spec__ = importlib.machinery.ModuleSpec("datasets", None, origin="stand-in")
    monkeypatch.setitem(sys.modules, "datasets", package)
    (conversation,) = load_conversations("org/name").conversations
    assert conversation.messages == TURN and conversation.source == "hub:org/name@train:1"
    assert load_conversations("hub:org/name@test[:10%]").conversations[0].messages == TURN
    assert asked == [("org/name", "train"), ("org/name", "test[:10%]")]
    with pytest.raises(UserError, match="no such data set"):
        load_conversations("org/none")


def test_missing_packages_and_sources_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"")
    (tmp_path / "train.jsonl").write_text("")
    (tmp_path / "x.txt").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "sub" / "train").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text("{")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    cases = {
        "hub:org/name@train": "\\.\\[datasets\\]",
        "org/name": "\\.\\[datasets\\]",
        str(tmp_path / "a.parquet"): "\\.\\[datasets\\]",
        str(tmp_path / "trian.jsonl"): "did you mean .*train.jsonl",
        "misspelt/train.jsonl": "No such file",
        "sub/trian": "did you mean sub/train",
        str(tmp_path / "nowhere" / "x.jsonl"): "No such file",
        str(tmp_path / "x.txt"): "Unknown file type '.txt'",
        str(tmp_path / "empty"): "no data files",
        str(tmp_path / "bad.json"): "not JSON",
    }
    for source, message in cases.items():
        with pytest.raises(UserError, match=message):
            load_conversations(source)


# ----------------------------------------------------------------------------------------------------------- checks

U, A = GOOD["messages"]
BAD_ROWS: dict[str, tuple[Any, str, str, str]] = {
    # for each name, the row, the code, the level and the path
    "broken json": ('{"messages": [', "not-json", "error", ""),
    "a list": ([1], "not-an-object", "error", ""),
    "unknown keys": ({"q": 1}, "unknown-format", "error", ""),
    "messages is text": ({"messages": "hi"}, "unknown-format", "error", ""),
    "unknown role": (
        {"messages": [U, {"role": "asistant", "content": "x"}]},
        "unknown-role",
        "error",
        "messages[1].role",
    ),
    "message is text": ({"messages": ["hi", A]}, "not-an-object", "error", "messages[0]"),
    "image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, A]},
        "not-text",
        "error",
        "messages[0].content",
    ),
    "weight": ({"messages": [U, {**A, "weight": "high"}]}, "weight", "error", "messages[1].weight"),
    "effort": (
        {"messages": [GOOD["messages"][0], {**A, "content": "3"}], "reasoning_effort": "max"},
        "effort",
        "warning",
        "reasoning_effort",
    ),
    "tools": ({**GOOD, "tools": [{"type": "function"}]}, "tools", "error", "tools[0]"),
    "tools text": ({**GOOD, "tools": "[{"}, "tools", "error", "tools"),
    "channel": ({"messages": [U, {**A, "channel": "thinking"}]}, "unknown-channel", "error", "messages[1].channel"),
    "result without call": (
        {"messages": [U, {"role": "tool", "tool_call_id": "9", "content": "x"}, A]},
        "result-without-call",
        "error",
        "messages[1]",
    ),
    "result of another call": (
        {
            "messages": [
                U,
                {"role": "assistant", "tool_calls": [tool_call("1")]},
                {"role": "tool", "tool_call_id": "2", "content": ""},
                A,
            ]
        },
        "result-without-call",
        "error",
        "messages[2]",
    ),
    "arguments": (
        {"messages": [U, {"role": "assistant", "tool_calls": [tool_call("1", "f", "{x: 1}")]}]},
        "arguments-not-json",
        "error",
        "messages[1].tool_calls[0].function.arguments",
    ),
    "call without name": (
        {"messages": [U, {"role": "assistant", "tool_calls": [{"id": "1"}]}]},
        "call-without-name",
        "error",
        "messages[1].tool_calls[0]",
    ),
    "nothing to train": ({"messages": [U]}, "nothing-to-train", "error", ""),
    "no messages": ({"messages": []}, "nothing-to-train", "error", ""),
    "all weights 0": ({"messages": [U, {**A, "weight": 0}]}, "nothing-to-train", "error", ""),
    "last is user": ({"messages": [U, A, U]}, "last-not-assistant", "warning", "messages[2]"),
    "only a thought": (
        {"messages": [U, {"role": "assistant", "content": None, "thinking": "t"}]},
        "unfinished-turn",
        "warning",
        "messages[1]",
    ),
    "empty answer": (
        {"messages": [U, {"role": "assistant", "content": " ", "thinking": "t"}]},
        "empty-final",
        "warning",
        "messages[1]",
    ),
    "no thought": ({"messages": [U, {"role": "assistant", "content": "x"}]}, "no-thought", "warning", "messages[1]"),
    "a thought in one turn of two": (
        {"messages": [U, A, U, {"role": "assistant", "content": "x"}]},
        "no-thought",
        "warning",
        "messages[3]",
    ),
    "a call that nothing answers and the assistant goes on": (
        {"messages": [U, {"role": "assistant", "tool_calls": [tool_call("1")]}, A], "tools": [TOOL]},
        "call-without-result",
        "warning",
        "messages[1]",
    ),
    "markup of another model": (
        {"messages": [U, {**A, "content": "x<|im_end|>"}]},
        "foreign-markup",
        "warning",
        "messages[1]",
    ),
    "control tokens": (
        {"messages": [{"role": "user", "content": "a<|end|>"}, A]},
        "special-tokens",
        "warning",
        "messages[0]",
    ),
    "half a pair": (
        {"messages": [{"role": "user", "content": "\ud83d"}, A]},
        "lone-surrogate",
        "warning",
        "messages[0]",
    ),
    "unanswered parallel calls": (
        {
            "messages": [U, {"role": "assistant", "thinking": "t", "tool_calls": [tool_call("1"), tool_call("2")]}],
            "tools": [TOOL],
        },
        "call-without-result",
        "warning",
        "messages[1].tool_calls[1]",
    ),
    "undeclared tool": (
        {"messages": [U, {"role": "assistant", "thinking": "t", "tool_calls": [tool_call("1", "g")]}], "tools": [TOOL]},
        "undeclared-tool",
        "warning",
        "messages[1]",
    ),
    "arguments of another type": (
        {
            "messages": [U, {"role": "assistant", "thinking": "t", "tool_calls": [tool_call("1", "n", '{"x": "1"}')]}],
            "tools": [NUMBER],
        },
        "arguments-schema",
        "warning",
        "messages[1]",
    ),
    "a required argument missing": (
        {
            "messages": [U, {"role": "assistant", "thinking": "t", "tool_calls": [tool_call("1", "n", "{}")]}],
            "tools": [NUMBER],
        },
        "arguments-schema",
        "warning",
        "messages[1]",
    ),
    "parameters that are no schema": (
        {
            "messages": [U, {"role": "assistant", "thinking": "t", "tool_calls": [tool_call("1", "n", "{}")]}],
            "tools": [{"type": "function", "function": {"name": "n", "parameters": {"properties": {"x": 3}}}}],
        },
        "tool-schema",
        "warning",
        "messages[1]",
    ),
    "a schema that refers to the network": (
        {
            "messages": [U, {"role": "assistant", "thinking": "t", "tool_calls": [tool_call("1", "n", '{"x": 1}')]}],
            "tools": [
                {
                    "type": "function",
                    "function": {"name": "n", "parameters": {"properties": {"x": {"$ref": "http://x.invalid/y"}}}},
                }
            ],
        },
        "tool-schema",
        "warning",
        "messages[1]",
    ),
    "a thought after the answer": (
        {"messages": [U, A, {"role": "assistant", "content": None, "thinking": "late"}]},
        "thought-misplaced",
        "warning",
        "messages[2]",
    ),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_each_bad_row_is_named_with_file_and_row_and_the_good_ones_stay(tmp_path: Path, name: str) -> None:
    row, code, level, path = BAD_ROWS[name]
    other = {"messages": [{"role": "user", "content": "other"}, A]}
    file = write(tmp_path / "d.jsonl", GOOD, row, other)
    loaded = load_conversations(file)
    found = [(p.code, p.level, p.path, p.file, p.line) for p in loaded.problems]
    if level == "error":  # there may be warnings for the rest of a bad row
        found = [problem for problem in found if problem[1] == "error"]
    assert found == [(code, level, path, str(file), 2)]
    expected = [1, 3] if level == "error" else [1, 2, 3]
    assert [int(conversation.source.rpartition(":")[2]) for conversation in loaded.conversations] == expected
    strict = DataSection(strict=True)
    if level == "error":
        with pytest.raises(UserError) as error:
            load_conversations(file, strict)
        assert f"{file}:2" in str(error.value)
    else:
        assert len(load_conversations(file, strict).conversations) == 3


def test_invalid_utf8_is_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(b'{"a": "\xff"}\n' + json.dumps(GOOD).encode())
    loaded = load_conversations(tmp_path / "d.jsonl")
    assert [(p.code, p.line) for p in loaded.errors] == [("not-json", 1)] and len(loaded.conversations) == 1


def test_duplicates_name_the_first(tmp_path: Path) -> None:
    file = write(tmp_path / "d.jsonl", GOOD, {**GOOD, "tools": [TOOL]}, GOOD)
    (problem,) = load_conversations(file).problems
    assert (problem.code, problem.line) == ("duplicate", 3) and f"{file}:1" in problem.what


def test_check_adds_what_only_rendering_shows(tmp_path: Path, tokenizer_folder: Path) -> None:
    long = {"messages": [U, {"role": "assistant", "content": "word " * 300, "thinking": "t"}]}
    file = write(tmp_path / "d.jsonl", GOOD, long)
    settings = DataSection(max_tokens=200)
    problems = compile_sources(file, Vocabulary.load(tokenizer_folder), settings, cache=False).problems
    assert [(p.code, p.line) for p in problems] == [("too-long", 2), ("nothing-to-train", 2)]
    assert str(problems[0]).startswith(f"{file}:2: warning: turn 1 has")


def test_what_nobody_thought_of_is_a_bad_row_too(tmp_path: Path, tokenizer_folder: Path) -> None:
    """The schemas break checkers and renderers. The rows after them are still read."""
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(300):
        deep = {"type": "object", "properties": {"x": deep}}
    call_f = {"role": "assistant", "thinking": "t", "tool_calls": [tool_call("1", "f", '{"x": 1}')]}
    rows = [
        {"messages": [U, call_f], "tools": [{"name": "f", "parameters": parameters}]}
        for parameters in (
            {"$schema": [], "properties": {"x": {}}},
            {"properties": {"x": {"default": 10**400}}},
            deep,
        )
    ]
    file = write(tmp_path / "d.jsonl", *rows, GOOD)
    compiled = compile_sources(file, Vocabulary.load(tokenizer_folder), cache=False)
    assert compiled.rows == 4 and compiled.conversations[-1].source == f"{file}:4"
    assert {p.line for p in compiled.problems if p.code in ("too-deep", "tool-schema")} == {1, 3}


def test_a_fault_of_the_program_is_told_and_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ossia.data.load as module

    right = module.check_conversation

    def broken(conversation, settings):
        if conversation.source.endswith(":1"):
            raise KeyError("oops")
        return right(conversation, settings)

    monkeypatch.setattr(module, "check_conversation", broken)
    loaded = load_conversations(write(tmp_path / "d.jsonl", GOOD, GOOD))
    assert [(p.code, p.line) for p in loaded.errors] == [("internal", 1)] and len(loaded.conversations) == 1


def test_nulls_that_a_table_filled_in_are_gone(tmp_path: Path) -> None:
    """`Dataset.to_json` gives every struct the keys of all rows."""
    properties = {"x": {"type": "integer"}, "city": None}
    turn = {
        "role": "assistant",
        "thinking": "t",
        "content": None,
        "tool_calls": [tool_call("1", "n", {"x": 1, "city": None})],
    }
    tools = [
        {"type": "function", "function": {"name": "n", "parameters": {"type": "object", "properties": properties}}}
    ]
    (conversation,) = load_conversations(
        write(tmp_path / "d.jsonl", {"messages": [U, turn], "tools": tools})
    ).conversations
    assert conversation.messages[-1].content == '{"x": 1}'
    assert conversation.tools[0].parameters == {"type": "object", "properties": {"x": {"type": "integer"}}}


def test_nullable_is_what_the_model_is_shown(tmp_path: Path) -> None:
    tools = [{"name": "n", "parameters": {"properties": {"x": {"type": "integer", "nullable": True}}}}]
    turn = {"role": "assistant", "thinking": "t", "tool_calls": [tool_call("1", "n", '{"x": null}')]}
    assert not load_conversations(write(tmp_path / "d.jsonl", {"messages": [U, turn], "tools": tools})).problems
