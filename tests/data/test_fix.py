"""Tests of repairs: each repair makes the row usable, reports its changes, and changes nothing else."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.config import DataSection, DataSource
from ossia.data import load_conversations
from ossia.data.fix import FIXES, Fixed, fix_row, write_fixed
from ossia.data.load import read_row
from ossia.data.repairs import role_named, without_ends, without_trailing_commas
from ossia.data.sources import Row, read_rows
from ossia.errors import Problem, UserError
from support.format_samples import NAMES, rows_of

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
    # for each code, the row, the repaired row and the changes
    "unknown-role": (
        {"messages": [{**U, "role": "customer"}, {**A, "role": "Asistant"}], "id": 7},
        GOOD,
        ["messages[0].role: role 'customer' -> 'user'", "messages[1].role: role 'Asistant' -> 'assistant'"],
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
    fixed = fix_row(Row(row, "d.jsonl", 3), DataSection())
    assert (fixed.value, fixed.changes, fixed.problems) == (expected, changes, [])
    again = fix_row(Row(expected, "d.jsonl", 3), DataSection())
    assert again.value == expected and again.changes == []


@pytest.mark.parametrize(
    "line",
    ["{'messages': [{'role': 'user', 'content': 'a' or 'b'}]}", "{1: 2", "nan", "[1, 2"],
)
def test_what_no_program_can_know_is_left_alone(tmp_path: Path, line: str) -> None:
    (tmp_path / "d.jsonl").write_text(line + "\n")
    (row,) = read_rows(tmp_path / "d.jsonl")
    fixed = fix_row(row, DataSection())
    assert fixed.value is None and [problem.code for problem in fixed.problems] == ["not-json"]


@pytest.mark.parametrize("line", [str(GOOD), json.dumps(GOOD) + ",", json.dumps(GOOD)[:-1] + ",}"])
def test_nearly_json_is_read(tmp_path: Path, line: str) -> None:
    (tmp_path / "d.jsonl").write_text(line + "\n")
    (row,) = read_rows(tmp_path / "d.jsonl")
    assert row.value is None
    assert fix_row(row, DataSection()).value == GOOD


def test_special_tokens_inside_a_text_stay() -> None:
    row = {"messages": [{**U, "content": "What does <|end|> mean?"}, A]}
    fixed = fix_row(Row(row, "d", 1), DataSection())
    assert (fixed.value, fixed.changes) == (row, [])


def test_the_copy_says_what_changed_and_keeps_the_rest_beside_it(tmp_path: Path) -> None:
    unfixable = {"messages": [U]}
    rows = [GOOD, REPAIRS["unknown-role"][0], GOOD, unfixable]
    source, to = tmp_path / "d.jsonl", tmp_path / "fixed.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    before = source.read_bytes()
    written = write_fixed(source, DataSection(), to)
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
        write_fixed(source, DataSection(), to)


def test_rows_that_are_no_lines_keep_their_text_too(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(json.dumps([GOOD, [1, 2]]))
    (tmp_path / "e.csv").write_text("prompt,completion\nonly one\n")
    write_fixed([tmp_path / "d.json", tmp_path / "e.csv"], DataSection(), tmp_path / "fixed.jsonl")
    rejected = [json.loads(line)["row"] for line in (tmp_path / "fixed.rejected.jsonl").read_text().splitlines()]
    assert rejected == ["[1, 2]", '["only one", null]']


def test_repairs_follow_the_place_in_other_formats() -> None:
    gpt = {"from": "gpt", "value": "a<|endoftext|>", "weight": "0.5"}
    row = {"conversations": [{"from": "persom", "value": "q"}, gpt]}
    assert fixed_of(row).problems[0].code == "unknown-role"
    row["conversations"][0]["from"] = "customer"
    expected = {"conversations": [{"from": "user", "value": "q"}, {"from": "gpt", "value": "a", "weight": 0.5}]}
    assert fixed_of(row).value == expected


def test_no_repair_makes_a_row_worse() -> None:
    """The header of the only answer has no channel, so the answer is commentary. The row is usable, with a warning."""
    text = "<|start|>user<|message|>Hi<|end|><|start|>assistant<|message|>Hello to you.<|end|>"
    fixed = fix_row(Row({"text": text, "note": 1}, "d", 1), DataSection())
    assert (fixed.value, fixed.changes) == ({"text": text, "note": 1}, [])


def test_what_json_has_not_is_written_as_null(tmp_path: Path) -> None:
    lines = [json.dumps({**GOOD, "score": float("nan")}), "[1, 2]", '{"messages": [], "x": 1e999}']
    (tmp_path / "d.jsonl").write_text("".join(line + "\n" for line in lines))
    written = write_fixed(tmp_path / "d.jsonl", DataSection(), tmp_path / "fixed.jsonl")
    strict = json.JSONDecoder(parse_constant=lambda name: pytest.fail(name))
    assert strict.decode((tmp_path / "fixed.jsonl").read_text()) == {**GOOD, "score": None}
    rejected = [strict.decode(line) for line in (tmp_path / "fixed.rejected.jsonl").read_text().splitlines()]
    assert [entry["row"] for entry in rejected] == ["[1, 2]", {"messages": [], "x": None}]
    assert any("NaN" in line for line in written.lines)


def fixed_of(row: dict[str, Any]) -> Fixed:
    return fix_row(Row(row, "d.jsonl", 1), DataSection())


def unchanged(row: dict[str, Any]) -> bool:
    fixed = fixed_of(row)
    return (fixed.value, fixed.changes) == (row, [])


BODY = "<|start|>user<|message|>q<|end|><|start|>assistant<|channel|>final<|message|>a<|end|>"
TOOLS_TEXT = "You are a function calling AI model. <tools>" + json.dumps(TOOLS) + "</tools>"
TWO_CALLS = "".join(f'<tool_call>\n{{"name": "f", "arguments": {{"a": {n}}}}}\n</tool_call>\n' for n in (1, 2))
WHOLE: dict[str, dict[str, Any]] = {
    "glaive, a question at the end": {"system": "SYSTEM: hi", "chat": "USER: q\n\n\nASSISTANT: a\n\n\nUSER: thanks"},
    "glaive, its own control token": {"chat": "USER: is <|end|> ok?\n\n\nASSISTANT: a <|endoftext|>"},
    "harmony, a question at the end": {"text": BODY + "<|start|>user<|message|>more<|end|>"},
    "harmony, ended as it should": {"text": BODY.replace("a<|end|>", "Say <|reserved_200000|>.<|return|>")},
    "alpaca, half a pair": {"instruction": "i", "output": "o", "history": [["a", ""], ["b", "c"]]},
    "an empty completion": {"prompt": "q", "completion": ""},
    "an empty alternative": {"prompt": "q", "chosen": "", "rejected": "b"},
    "hermes, two calls in one turn": {
        "conversations": [
            {"from": "system", "value": TOOLS_TEXT},
            {"from": "human", "value": "q"},
            {"from": "gpt", "value": TWO_CALLS},
        ]
    },
}


@pytest.mark.parametrize("name", WHOLE)
def test_only_messages_are_removed_never_a_column_or_a_turn_with_more_in_it(name: str) -> None:
    assert unchanged(WHOLE[name])


PLACES: list[tuple[str, str, Any]] = [
    # code, path, row
    ("last-not-assistant", "chat", WHOLE["glaive, a question at the end"]),
    ("last-not-assistant", "text", WHOLE["harmony, a question at the end"]),
    ("empty-final", "completion", WHOLE["an empty completion"]),
    ("empty-final", "history[0][1]", WHOLE["alpaca, half a pair"]),
    ("empty-final", "conversation[0].output", {"conversation": [{"input": "q", "output": ""}]}),
    ("call-without-result", "conversations[2].value", WHOLE["hermes, two calls in one turn"]),
    ("call-without-result", "messages[0]", {"messages": [U, A]}),
    ("result-without-call", "messages[0].tool_calls[0]", asking(call("1"))),
]


@pytest.mark.parametrize(("code", "path", "row"), PLACES)
def test_no_removal_reaches_further_than_a_message(code: str, path: str, row: Any) -> None:
    before = copy.deepcopy(row)
    assert FIXES[code](row, Problem("warning", code, "", path=path)) is None
    assert row == before


def test_a_last_result_stays_whose_call_would_go_with_it() -> None:
    """Both results are in one turn. If it were removed, the second of the parallel calls would also be left out."""
    calls = json.dumps([{"name": "f", "arguments": {"a": number}} for number in (1, 2)])
    turns = [("human", "q"), ("function_call", calls), ("observation", "[1, 2]")]
    assert unchanged({"conversations": [{"from": speaker, "value": said} for speaker, said in turns], "tools": TOOLS})


def test_an_answer_is_not_left_without_the_result_it_speaks_of() -> None:
    """The id is wrong, not the result."""
    row = asking(call("1"))
    row["messages"] += [{"role": "tool", "tool_call_id": "x", "content": "3 degrees"}, A]
    assert fixed_of(row).value is None


def test_all_results_without_a_call_go_however_alike() -> None:
    result = {"role": "tool", "content": "x"}
    fixed = fixed_of({"messages": [U, result, result, A], "id": 7})
    assert fixed.value == GOOD and len(fixed.changes) == 2


def test_repairs_are_not_counted() -> None:
    many = [message for n in range(60) for message in (U, {**A, "content": f"{n}<|end|>"})]
    fixed = fixed_of({"messages": many})
    assert len(fixed.changes) == 60
    assert fixed.value == {"messages": [{**m, "content": m["content"].removesuffix("<|end|>")} for m in many]}
    assert fixed_of({"messages": [{**m, "role": {"user": "usr"}.get(m["role"], "asistant")} for m in many]}).value


def test_a_repair_that_would_cost_the_row_is_not_made_and_the_others_are() -> None:
    empty = {"role": "assistant", "content": ""}
    fixed = fixed_of({"messages": [{**U, "content": "1+1 \ud83d"}, empty]})
    assert fixed.value == {"messages": [{**U, "content": "1+1 \ufffd"}, empty]}
    assert unchanged(fixed.value)


@pytest.mark.parametrize("text", ["'abc'", "[1, 2", "{1: 2}", "{'a': {1}}", "null,"])
def test_arguments_that_are_no_object_stay(text: str) -> None:
    row = asking(call("1", text))
    before = copy.deepcopy(row)
    fixed = fixed_of(row)
    assert fixed.value is None and fixed.changes == [] and row == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": "[1, ]", "b": true, }', {"a": "[1, ]", "b": True}),
        ('{"a": "say \\", }", "b": [null, ],}', {"a": 'say ", }', "b": [None]}),
        ('"a": 1', {"a": 1}),
        ('"{\\"a\\": 1}"', {"a": 1}),
    ],
)
def test_arguments_lose_no_letter(text: str, expected: Any) -> None:
    fixed = fixed_of(asking(call("1", text)))
    assert fixed.value is not None
    assert json.loads(fixed.value["messages"][1]["tool_calls"][0]["function"]["arguments"]) == expected


def test_arguments_are_found_in_every_form_of_a_call() -> None:
    legacy = {"role": "assistant", "thinking": "t", "function_call": {"name": "f", "arguments": "{'a': 1}"}}
    flat = {"role": "assistant", "thinking": "t", "tool_calls": [{"name": "f", "arguments": "{'a': 1}"}]}
    item = {"type": "function_call", "name": "f", "call_id": "1", "arguments": "{'a': 1}"}
    for row in ({"messages": [U, legacy]}, {"messages": [U, flat]}, {"input": [U, item]}):
        fixed = fixed_of({**row, "tools": [{"type": "function", "name": "f"}] if "input" in row else TOOLS})
        assert fixed.value is not None and '"{\\"a\\": 1}"' in json.dumps(fixed.value)


@pytest.mark.parametrize(
    ("weight", "after"),
    [("0.5", 0.5), (" 1.0 ", 1), ("0", 0), (".25", 0.25), ("true", 1), ("False", 0), ("1.5", None), ("-1", None),
     ("1_0", None), ("nan", None), ("none", None), ("", None), (2, None), ([], None)],
)  # fmt: skip
def test_weights_become_numbers_or_stay_faulty(weight: Any, after: float | None) -> None:
    fixed = fixed_of({"messages": [U, {**A, "weight": weight}, U, A]})
    if after is None:
        assert fixed.value is None and fixed.problems[0].code == "weight"
    else:
        assert fixed.value == {"messages": [U, {**A, "weight": after}, U, A]}


def test_true_is_one() -> None:
    fixed = fixed_of({"messages": [U, {**A, "weight": True}]})
    assert fixed.value is not None and fixed.value["messages"][1]["weight"] == 1


def test_an_effort_that_nobody_knows_is_not_guessed() -> None:
    assert unchanged({**GOOD, "reasoning_effort": "maximal"})


@pytest.mark.parametrize(
    ("name", "role"),
    [
        *((name, "assistant") for name in ("asistant", "assitant", "Assisstant ", "assistnat", "AI", "agent", "gpt")),
        *((name, "user") for name in ("usr", "User", "uesr", "human", "customer")),
        *((name, "system") for name in ("systm", "sytem", "SYSTEM")),
        *(
            (name, None)
            for name in ("function_call", "tool_call", "tester", "custom", "expert", "assist", "func", "Tool")
        ),
        *((name, None) for name in ("narrator", "tools", "toll", "tol", "uses", "usher", "assistantb", "assistant_2")),
        *((name, None) for name in ("sister", "systemic", "ecosystem", "resistant", "instruction", "", "me")),
    ],
)
def test_roles_are_mended_not_guessed(name: str, role: str | None) -> None:
    assert role_named(name) == role


def test_alternatives_go_on_sharing_their_prompt() -> None:
    asked = {**U, "role": "usr"}
    row = {"chosen": [asked, A], "rejected": [asked, {**A, "content": "3"}]}
    expected = {"chosen": [U, A], "rejected": [U, {**A, "content": "3"}]}
    assert fixed_of(row).value == expected
    dirty = {"chosen": [{**U, "content": "q<|end|>"}, A], "rejected": [{**U, "content": "q<|end|>"}, U]}
    assert unchanged(dirty)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2<|im_end|> <|endoftext|> \n", "2"),
        ("<|endoftext|> 2", "2"),
        (" 2 ", " 2 "),
        ("<|end|>", ""),
        ("<|channel|>final<|message|>2", "<|channel|>final<|message|>2"),
        ("", ""),
    ],
)
def test_control_tokens_at_the_ends(text: str, expected: str) -> None:
    assert without_ends(text) == expected


def test_a_text_about_control_tokens_or_in_harmony_stays() -> None:
    for text in ("<|end|> ends it, as in a<|end|>", "<|channel|>final<|message|>2<|return|>"):
        assert unchanged({"messages": [U, {**A, "content": text}]})


def test_long_texts_take_no_time_that_grows_with_their_square() -> None:
    """A program that compares every pair of letters would take hours for each of these texts."""
    assert without_ends("a<|end|>b" + " " * 2_000_000 + "c").endswith("c")
    assert without_ends("a" + "<|end|> " * 100_000) == "a"
    assert without_trailing_commas('"' + '\\"' * 1_000_000) == '"' + '\\"' * 1_000_000


@pytest.mark.parametrize("text", ["[1, ] and {a, }", 'a quote ", ]', "\\"])
def test_lenient_reading_leaves_texts_as_they_are(tmp_path: Path, text: str) -> None:
    row = {"prompt": text, "completion": "ok", "checked": True}
    (tmp_path / "d.jsonl").write_text(json.dumps(row)[:-1] + ",}\n")
    (found,) = read_rows(tmp_path / "d.jsonl")
    assert found.value is None and fix_row(found, DataSection()).value == row


def test_what_was_lost_before_is_not_passed_on_as_text(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(
        json.dumps({"prompt": "q", "completion": "sø"}, ensure_ascii=False).encode("latin1")
    )
    (found,) = read_rows(tmp_path / "d.jsonl")
    assert fix_row(found, DataSection()).value is None


def test_every_source_has_its_own_settings_and_limit(tmp_path: Path) -> None:
    quiz = [{"question": f"{n}?", "reply": "yes"} for n in range(4)]
    (tmp_path / "quiz.jsonl").write_text("{broken\n" + "".join(json.dumps(row) + "\n" for row in quiz))
    (tmp_path / "chat.jsonl").write_text(json.dumps(GOOD) + "\n")
    sources = [
        DataSource(path=str(tmp_path / "quiz.jsonl"), columns={"question": "prompt", "reply": "completion"}, limit=2),
        DataSource(path=str(tmp_path / "chat.jsonl")),
    ]
    written = write_fixed(sources, DataSection(), tmp_path / "fixed.jsonl")
    assert [json.loads(line) for line in (tmp_path / "fixed.jsonl").read_text().splitlines()] == [*quiz[:2], GOOD]
    assert (written.rows, written.unchanged, written.faulty) == (4, 3, 1)


def test_rows_too_deep_for_python_are_kept_aside(tmp_path: Path) -> None:
    deep = "[" * 800 + "]" * 800
    lines = [
        json.dumps(GOOD)[:-1] + f', "x": {deep}}}',
        json.dumps(REPAIRS["unknown-role"][0])[:-1] + f', "x": {deep}}}',
    ]
    (tmp_path / "d.jsonl").write_text("\n".join(lines) + "\n")
    written = write_fixed(tmp_path / "d.jsonl", DataSection(), tmp_path / "fixed.jsonl")
    assert written.rows == 2 and written.unchanged + written.repaired + written.left_out == 2


# ------------------------------------------------------------------------------------------------ any contents of a row

SAMPLES = [row for name in NAMES for row in rows_of(name)]
JUNK: list[Any] = [
    None, 0, -1, 1.5, True, "", " ", "0.5", "null", "[]", "{'a': 1, }", "<think>a</think>b", "2<|end|>", "<|end|>",
    "a\ud83d", "asistant", "tool", [], [1], {}, {"a": 1}, [[]], "<tool_call>{\"name\":1}</tool_call>", "commentary",
]  # fmt: skip
KEYS = [
    "weight", "channel", "recipient", "name", "thinking", "tool_calls", "content", "role", "tools", "reasoning_effort",
    "function_call", "tool_call_id", "type",
]  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container in a row with each of its keys."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from places(item)


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    row = copy.deepcopy(draw(st.sampled_from(SAMPLES)))
    for _ in range(draw(st.integers(0, 3))):
        found = list(places(row))
        if not found:
            break
        holder, key = found[draw(st.integers(0, len(found) - 1))]
        junk = copy.deepcopy(draw(st.sampled_from(JUNK)))
        match draw(st.sampled_from(["replace", "remove", "repeat", "append"])):
            case "replace":
                holder[key] = junk
            case "remove":
                del holder[key]
            case "append" if isinstance(holder[key], str):
                holder[key] += "<|end|>"
            case _ if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(holder[draw(st.integers(0, len(holder) - 1))]))
            case _:
                holder[draw(st.sampled_from(KEYS))] = junk
    return row


@settings(max_examples=400, deadline=None)
@given(mutated())
def test_whatever_is_in_a_row(row: dict[str, Any]) -> None:
    """A repair raises nothing, loses no usable row and reports every change. A second repair changes nothing."""
    before = json.dumps(row)
    usable = read_row(Row(row, "d", 1), DataSection())[1] is not None
    fixed = fixed_of(row)
    assert json.dumps(row) == before
    if fixed.value is None:
        assert not usable and fixed.problems and not fixed.changes
        return
    assert (json.dumps(fixed.value) == before) == (not fixed.changes)
    problems, conversation, _ = read_row(Row(fixed.value, "d", 1), DataSection())
    assert conversation is not None and not any(problem.level == "error" for problem in problems)
    assert unchanged(fixed.value)
