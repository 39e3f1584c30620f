"""Tests of faults in rows of every format. A fault names its place, and junk causes only problems or a UserError."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.config import DataSection
from ossia.data.formats import to_conversation
from ossia.errors import Problem, UserError
from support.format_samples import NAMES, codes, read, rows_of

U, A = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
HUMAN, GPT = {"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}
FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    # for each name, the row, the code and the path
    "turn is text": ({"conversations": ["hi", GPT]}, "not-an-object", "conversations[0]"),
    "unknown speaker": (
        {"conversations": [HUMAN, {"from": "gtp", "value": "a"}]},
        "unknown-role",
        "conversations[1].from",
    ),
    "unknown role": ({"conversations": [{"role": "me", "content": "u"}, GPT]}, "unknown-role", "conversations[0].role"),
    "number said": ({"conversations": [{"from": "human", "value": 5}, GPT]}, "not-text", "conversations[0].value"),
    "call no json": (
        {"conversations": [HUMAN, {"from": "function_call", "value": "f(x)"}]},
        "call-not-json",
        "conversations[1].value",
    ),
    "call no name": (
        {"conversations": [HUMAN, {"from": "function_call", "value": "[{}]"}]},
        "call-without-name",
        "conversations[1].value",
    ),
    "result alone": (
        {"conversations": [HUMAN, {"from": "observation", "value": "r"}, GPT]},
        "result-without-call",
        "conversations[1].value",
    ),
    "arguments": (
        {"conversations": [HUMAN, {"from": "function_call", "value": '{"name": "f", "arguments": "{x"}'}]},
        "arguments-not-json",
        "conversations[1].value",
    ),
    "hermes call": (
        {"conversations": [HUMAN, {"from": "gpt", "value": "<tool_call>f(x)</tool_call>"}]},
        "call-not-json",
        "conversations[1].value",
    ),
    "hermes tools": (
        {"conversations": [{"from": "system", "value": '<tools>[{"a": 1}]</tools>'}, HUMAN, GPT]},
        "tools",
        "conversations[0].value",
    ),
    "tools column": ({"conversations": [HUMAN, GPT], "tools": "[{"}, "tools", "tools"),
    "system column": ({"conversations": [HUMAN, GPT], "system": 5}, "not-text", "system"),
    "system of a prompt": ({"prompt": "u", "completion": "a", "system": [5]}, "not-text", "system"),
    "history": ({"instruction": "u", "output": "a", "history": [["u"]]}, "history", "history[0]"),
    "history is text": ({"instruction": "u", "output": "a", "history": "u"}, "history", "history"),
    "history of numbers": ({"instruction": "u", "output": "a", "history": [[1, "a"]]}, "not-text", "history[0][0]"),
    "input": ({"instruction": "u", "input": 5, "output": "a"}, "not-text", "input"),
    "item": ({"input": "u", "output": [5, A]}, "not-an-object", "output[0]"),
    "item role": ({"input": "u", "output": [{"role": "robot", "content": "a"}]}, "unknown-role", "output[0]"),
    "item image": ({"input": [{"role": "user", "content": [{"type": "input_image"}]}, A]}, "not-text", "input[0]"),
    "item call": (
        {"input": "u", "output": [{"type": "function_call", "call_id": "1"}]},
        "call-without-name",
        "output[0]",
    ),
    "item output": (
        {"input": "u", "output": [{"type": "function_call_output", "call_id": "1", "output": ""}, A]},
        "result-without-call",
        "output[0]",
    ),
    "responses tool": (
        {"input": "u", "output": [A], "tools": [{"type": "web_search"}, {"type": "function"}]},
        "tools",
        "tools[1]",
    ),
    "responses format": (
        {"input": "u", "output": [A], "text": {"format": {"type": "json_schema", "name": "x"}}},
        "response-format",
        "text.format",
    ),
    "identity": ({"messages": [U, A], "model_identity": 5}, "not-text", "model_identity"),
    "date": (
        {"messages": [U, A], "chat_template_kwargs": {"current_date": 2025}},
        "not-text",
        "chat_template_kwargs.current_date",
    ),
    "built-in tools": ({"messages": [U, A], "builtin_tools": "python"}, "unknown-builtin", "builtin_tools"),
    "legacy functions": ({"messages": [U, A], "functions": [{}]}, "tools", "functions[0]"),
    "prompt list": ({"prompt": [U, 5], "completion": "a"}, "not-an-object", "prompt[1]"),
    "completion list": ({"prompt": "u", "completion": [{"role": "x"}]}, "unknown-role", "completion[0].role"),
    "harmony begins late": ({"harmony": "Hi <|start|>user<|message|>u<|end|>"}, "harmony-text", "harmony"),
    "harmony without assistant": ({"text": "<|start|>user<|message|>u<|end|>"}, "harmony-text", "text"),
    "xlam tools": ({"query": "u", "answers": "[]", "tools": "{"}, "tools", "tools"),
    "xlam answers": ({"query": "u", "answers": "f()", "tools": "[]"}, "call-not-json", "answers"),
    "xlam parameter": (
        {"query": "u", "answers": "[]", "tools": '[{"name": "f", "parameters": {"x": 5}}]'},
        "tools",
        "tools[0].parameters.x",
    ),
    "glaive call": ({"system": "", "chat": "USER: u\n\n\nASSISTANT: <functioncall> {}"}, "call-not-json", "chat"),
    "glaive speaker": ({"system": "", "chat": "u\n\n\nASSISTANT: a"}, "unknown-role", "chat"),
    "glaive tool": ({"system": 'SYSTEM: {} {"name": "f"}', "chat": "USER: u\n\n\nASSISTANT: a"}, "tools", "system"),
    "preference tools": (
        {"input": {"messages": [U], "tools": [{}]}, "preferred_output": [A], "non_preferred_output": [U]},
        "tools",
        "input.tools[0]",
    ),
    "preference role": (
        {"input": {"messages": [U]}, "preferred_output": [A], "non_preferred_output": [{"role": "x"}]},
        "unknown-role",
        "non_preferred_output[0].role",
    ),
    "preference prompt": (
        {"input": {"messages": [5, U]}, "preferred_output": [A], "non_preferred_output": [U]},
        "not-an-object",
        "input.messages[0]",
    ),
    "no alternative": ({"prompt": "u", "chosen": "a", "rejected": []}, "no-alternative", "rejected"),
    "no prompt": ({"chosen": "a", "rejected": "b"}, "no-prompt", "chosen"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_has_its_place_in_the_row(name: str) -> None:
    row, code, path = FAULTS[name]
    problems = read(row)[1]
    assert codes([problem for problem in problems if problem.level == "error"]) == [("error", code, path)]
    with pytest.raises(UserError, match=re.escape(path)):
        to_conversation(row)


def test_a_prompt_that_the_alternatives_do_not_repeat_is_reported() -> None:
    pair = {"chosen": [U, A], "rejected": [U, {**A, "content": "b"}]}
    assert [read({**pair, "prompt": prompt})[1] for prompt in ("u", [U], None)] == [[], [], []]
    for prompt in ("v", [U, U]):
        assert codes(read({**pair, "prompt": prompt})[1]) == [("warning", "prompt-differs", "prompt")]


def test_equal_alternatives_are_reported() -> None:
    problems = read({"prompt": "u", "chosen": "a", "rejected": "a"})[1]
    assert codes(problems) == [("warning", "equal-alternatives", "rejected")]
    problems = read({"chosen": [U, A], "rejected": [U, A]})[1]
    assert codes(problems) == [("warning", "equal-alternatives", "rejected[1]")]


@pytest.mark.parametrize("name", NAMES)
def test_a_row_of_another_shape_is_no_row_of_a_fixed_format(name: str) -> None:
    with pytest.raises(UserError, match=f"format {name}.*keys: nothing"):
        to_conversation({"nothing": 1}, DataSection(format=name))


def test_rows_too_deep_for_python_are_a_problem() -> None:
    deep = "[" * 50_000
    row = {"messages": [U, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": deep}}]}]}
    problems = read(row)[1]
    assert len(problems) == 1 and problems[0].level == "error"


# Junk

ROWS = [row for name in NAMES for row in rows_of(name)]
JUNK = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        2.5,
        float("nan"),
        10**400,
        "",
        " ",
        "x",
        "[",
        "{}",
        "[]",
        "null",
        "[1]",
        '[{"name": 1}]',
        "{'a': 1}",
        "<think>",
        "</think>",
        "a</think>",
        "<tool_call>",
        "<tool_call>{}</tool_call>",
        "<tools>",
        "</tools> <tools>",
        "<functioncall>",
        "USER:",
        "<|start|>",
        "<|start|>assistant<|channel|>x<|message|>",
        "<|begin_of_thought|>",
        "\ud83d",
        "\x00",
        "assistant",
        "user",
        "tool",
        "function_call",
        "observation",
        "\n\nHuman: x",
        "[" * 20_000,
        [],
        [None],
        [[]],
        [5],
        ["a"],
        [{}],
        {},
        {"role": 5},
        {"role": "assistant"},
        {"from": "gpt"},
        {"type": "reasoning"},
        {"name": None, "arguments": []},
        {"function": {"name": "f", "arguments": "{"}},
        [[[[[[1]]]]]],
        {"properties": 5},
        [{"role": "assistant", "content": None, "tool_calls": 5}],
        [{"from": "tool", "value": None}],
    ]
)


def places_in(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield every place below a value, as the tuple of keys that lead to it."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        yield (*here, key)
        yield from places_in(item, (*here, key))


def leads_somewhere(row: Any, path: str) -> bool:
    """Return whether a path is valid in the row. It ends at a value, at a missing key or inside a JSON text."""
    value = row
    for key in re.findall(r"[^.\[\]]+", path):
        if isinstance(value, dict):
            if key not in value:
                return bool(value is not row)
            value = value[key]
        elif isinstance(value, list) and key.isdecimal():
            value = value[int(key)]
        else:
            return isinstance(value, str)
    return bool(path)


@settings(max_examples=1500, deadline=None)
@given(data=st.data())
def test_junk_anywhere_gives_problems_with_a_place_or_a_user_error(data: st.DataObject) -> None:
    row = copy.deepcopy(data.draw(st.sampled_from(ROWS)))
    for _ in range(data.draw(st.integers(1, 3))):
        *way, last = data.draw(st.sampled_from(list(places_in(row)) or [("messages",)]))
        owner = row
        for key in way:
            owner = owner[key]
        if data.draw(st.booleans()):
            owner[last] = copy.deepcopy(data.draw(JUNK))
        elif last in owner or isinstance(owner, list):
            del owner[last]
    before = repr(row)
    for format in ("auto", data.draw(st.sampled_from(NAMES))):
        problems: list[Problem] = []
        with contextlib.suppress(UserError):
            to_conversation(row, DataSection(format=format), report=problems.append)
        assert repr(row) == before, "reading changes the row"
        for problem in problems:
            assert problem.code == "too-deep" or leads_somewhere(row, problem.path), problem
