"""Tests of habits of data sets: other names of columns and roles, switches that look like thoughts, cut-off texts."""

from __future__ import annotations

from typing import Any

import pytest

from ossia.config import DataSection
from ossia.data.formats import convert_row, detect
from ossia.harmony.conversation import answer, call, preamble, thought, tool_result, user
from support.format_samples import codes, read

U, A = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
HUMAN, GPT = {"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}


def turn(name: str, **further: Any) -> dict[str, Any]:
    return {"from": "function_call", "value": f'{{"name": "{name}", "arguments": {{}}}}', **further}


# Calls as turns


def test_weight_and_thought_of_a_call_turn_are_kept() -> None:
    row = {"conversations": [HUMAN, turn("f", weight=0, reasoning="t"), {"from": "observation", "value": "r"}, GPT]}
    expected = [user("u"), thought("t", 0), call("f", "{}", 0), tool_result("f", "r"), answer("a")]
    assert list(read(row)[0].messages) == expected
    row["conversations"][1] = turn("f", reasoning="t")
    row["conversations"][1]["value"] = f"<think>s</think>{row['conversations'][1]['value']}"
    assert list(read(row)[0].messages)[1] == thought("t\n\ns")
    row["conversations"][1]["value"] = turn("f")["value"].join(["<think>t</think>", ""])
    assert list(read(row)[0].messages)[1] == thought("t")


@pytest.mark.parametrize("further", [{"weight": 0}, {"thinking": "t"}])
def test_text_before_a_call_of_another_weight_or_thought_is_a_preamble_of_its_own(further: dict[str, Any]) -> None:
    said = {"from": "gpt", "value": "<think>s</think>Wait."}
    row = {"conversations": [HUMAN, said, turn("f", **further), {"from": "observation", "value": "r"}, GPT]}
    messages = list(read(row)[0].messages)
    assert messages[:3] == [user("u"), thought("s"), preamble("Wait.")]
    weight = further.get("weight")
    assert messages[3:] == [
        *([thought("t")] if "thinking" in further else []), call("f", "{}", weight), tool_result("f", "r"), answer("a"),
    ]  # fmt: skip


def test_one_observation_that_is_a_list_answers_calls_of_two_turns() -> None:
    row = {"conversations": [HUMAN, turn("f"), turn("g"), {"from": "observation", "value": '["r", "s"]'}, GPT]}
    found, problems = read(row)
    assert [message.content for message in found.messages if message.role == "tool"] == ["r", "s"] and not problems


# Columns


@pytest.mark.parametrize("key", ["system", "system_prompt"])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": [U, A]},
        {"conversations": [HUMAN, GPT]},
        {"prompt": "u", "completion": "a"},
        {"instruction": "u", "output": "a"},
        {"input": [U], "output": "a"},
        {"prompt": "u", "chosen": "a", "rejected": "b"},
    ],
)
def test_a_column_of_instructions_is_used_in_every_format(row: dict[str, Any], key: str) -> None:
    found, problems = read({**row, key: "S"})
    assert found.instructions == "S" and key not in found.extra and problems == []
    assert read({**row, key: None})[0].instructions is None


def test_instructions_that_the_messages_repeat_are_said_once() -> None:
    system = {"role": "system", "content": "S. And more."}
    assert read({"system": "S.", "messages": [system, U, A]})[0].instructions == "S. And more."
    assert read({"system": "T.", "messages": [system, U, A]})[0].instructions == "T.\n\nS. And more."
    turns = [{"from": "system", "value": "S."}, HUMAN, GPT]
    assert read({"system_prompt": "S.", "conversations": turns})[0].instructions == "S."


def test_columns_without_a_use_are_named() -> None:
    own = {"messages": [U, {**A, "thinking": "t"}], "thinking": "x"}
    assert codes(read(own)[1]) == [("warning", "ignored-column", "thinking")]
    assert codes(read({"system": "S", "system_prompt": "T", "messages": [U, A]})[1]) == [
        ("warning", "ignored-column", "system_prompt")
    ]
    raw = {"text": "<|start|>assistant<|channel|>final<|message|>a<|return|>", "system": "S"}
    assert codes(read(raw)[1]) == [("warning", "ignored-column", "system")]
    glaive = {"system": "SYSTEM: Be kind.", "chat": "USER: u\n\n\nASSISTANT: a"}
    assert read(glaive)[1] == [] and read({**own, "thinking": None})[1] == []


def test_a_thought_in_a_column_belongs_to_the_only_answer() -> None:
    found, problems = read({"messages": [U, A], "reasoning": "t"})
    assert list(found.messages) == [user("u"), thought("t"), answer("a")] and problems == []
    several = {"messages": [U, A, U, A], "reasoning": "t"}
    assert codes(read(several)[1]) == [("warning", "ignored-column", "reasoning")]


@pytest.mark.parametrize("word", ["on", "OFF", "true", "False", "none", "", " "])
def test_a_switch_is_no_thought(word: str) -> None:
    for row in ({"prompt": "u", "completion": "a"}, {"instruction": "u", "output": "a"}, {"messages": [U, A]}):
        found, problems = read({**row, "reasoning": word})
        assert list(found.messages) == [user("u"), answer("a")] and problems == []


def test_an_effort_in_the_column_reasoning_is_the_effort() -> None:
    row = {"instruction": "u", "output": "a", "reasoning": "High"}
    assert getattr(read(row)[0].system, "effort", None) == "high"
    assert getattr(read({**row, "reasoning_effort": "low"})[0].system, "effort", None) == "low"


@pytest.mark.parametrize("effort", ["minimal", "none", "xhigh", 2])
def test_an_unknown_effort_is_a_warning_and_an_odd_spelling_none(effort: object) -> None:
    row = {"messages": [U, A], "chat_template_kwargs": {"reasoning_effort": effort}}
    found, problems = read(row, effort="low")
    assert getattr(found.system, "effort", None) == "low"
    assert codes(problems) == [("warning", "effort", "chat_template_kwargs.reasoning_effort")]
    assert codes(read({"input": "u", "output": [A], "reasoning": {"effort": effort}})[1]) == [
        ("warning", "effort", "reasoning.effort")
    ]
    found, problems = read({"messages": [U, A], "reasoning_effort": " High"})
    assert getattr(found.system, "effort", None) == "high" and problems == []


@pytest.mark.parametrize(
    ("row", "format"),
    [
        ({"messages": [U, A], "question": "q", "answer": "4"}, "openai"),
        ({"problem": "q", "solution": "s", "messages": [U, A]}, "openai"),
        ({"messages": [U, A], "conversation": [HUMAN, GPT]}, "openai"),
        ({"prompt": "q", "response": "a", "completion": "b"}, "prompt-completion"),
        ({"query": "q", "response": "a", "answers": "[]", "tools": "[]"}, "xlam"),
        ({"instruction": "i", "input": "", "output": "o", "response": "r"}, "alpaca"),
        ({"question": "q", "answer": "a", "chosen": "a", "rejected": "b"}, "trl-preference"),
        ({"problem": "q", "solution": "s", "generations": []}, "openr1"),
    ],
)
def test_names_of_question_and_answer_do_not_hide_another_format(row: dict[str, Any], format: str) -> None:
    assert detect(row) == format


def test_an_answer_that_is_no_text_is_no_answer_and_other_columns_stay() -> None:
    with pytest.raises(Exception, match="Unknown row format"):
        detect({"question": "q", "answer": 2, "choices": ["a", "b"]})
    found = read({"question": "q", "response": "a", "answer": "4", "context": ""})[0]
    assert found.extra == {"answer": "4", "context": ""} and list(found.messages) == [user("q"), answer("a")]
    assert read({"prompt": "q", "completion": "a", "answer": "4", "context": "c"})[0].messages[0] == user("q")


def test_reading_gives_the_format_too() -> None:
    conversation, format = convert_row({"prompt": "u", "completion": "a"}, DataSection(), "d.jsonl:1")
    assert (conversation.source, format) == ("d.jsonl:1", "prompt-completion")
    problems: list[Any] = []
    settings = DataSection(columns={"x": "prompt"})
    assert convert_row({"prompt": "u"}, settings, report=problems.append)[1] == "" and len(problems) == 1


def test_two_columns_for_one_key_are_an_error_that_names_both() -> None:
    found, problems = read({"a": "u", "b": "v", "completion": "c"}, columns={"a": "prompt", "b": "prompt"})
    assert codes(problems) == [("error", "column", "")] and found.messages == ()
    assert all(name in problems[0].what for name in ("'a'", "'b'", "`prompt`"))


# Messages


def test_only_exact_names_of_roles_count_inside_messages() -> None:
    row = {"messages": [{"role": " Human", "content": "u"}, {"role": "asistant", "content": "a"}]}
    assert codes(read(row)[1]) == [("error", "unknown-role", "messages[1].role")]
    pair = {"prompt": [{"role": "human", "content": "u"}], "chosen": [{"role": "gpt", "content": "a"}]}
    found, problems = read({**pair, "rejected": [{"role": "model", "content": "b"}]})
    assert list(found.messages) == [user("u"), answer("a")] and list(found.rejected) == [answer("b")] and not problems


def test_calls_as_turns_inside_messages() -> None:
    said = [{"role": "function_call", "content": '{"name": "f", "arguments": {}}'}, {"role": "tool", "content": "r"}]
    row = {"messages": [U, *said, A]}
    assert detect(row) == "llama-factory"
    found, problems = read(row)
    assert list(found.messages) == [user("u"), call("f", "{}"), tool_result("f", "r"), answer("a")]
    assert problems == [] and found.extra == {}


def test_a_function_call_of_nulls_is_none() -> None:
    null = {"name": None, "arguments": None}
    found, problems = read({"messages": [U, {**A, "function_call": null, "tool_calls": None}]})
    assert list(found.messages) == [user("u"), answer("a")] and problems == []


def test_anthropics_parts_in_one_message() -> None:
    calls = [{"type": "tool_use", "id": id, "name": "f", "input": {"x": id}} for id in "12"]
    results = [{"type": "tool_result", "tool_use_id": id, "content": f"r{id}"} for id in "21"]
    hidden = {"type": "redacted_thinking", "data": "x"}
    row: dict[str, Any] = {
        "messages": [
            U,
            {"role": "assistant", "content": [hidden, *calls], "weight": 0},
            {"role": "user", "content": [*results, {"type": "text", "text": "Go on."}]},
            A,
        ]
    }
    found, problems = read(row)
    assert list(found.messages) == [
        user("u"), call("f", '{"x": "2"}', 0), tool_result("f", "r2"), call("f", '{"x": "1"}', 0),
        tool_result("f", "r1"), user("Go on."), answer("a"),
    ]  # fmt: skip
    assert problems == []
    row["messages"][1]["content"].append({"type": "image"})
    assert ("error", "not-text", "messages[1]") in codes(read(row)[1])


# Raw Harmony and Hermes


def test_a_message_that_begins_in_the_prompt_is_not_trained() -> None:
    start = "<|start|>user<|message|>q<|end|><|start|>assistant<|channel|>analysis<|message|>t"
    rest = "more<|end|><|start|>assistant<|channel|>final<|message|>a<|return|>"
    found, problems = read({"prompt": start, "completion": rest})
    assert list(found.messages) == [user("q"), thought("tmore", 0), answer("a")]
    assert codes(problems) == [("warning", "harmony-repaired", "prompt")] and "message 2" in problems[0].what
    cut = start.index("<|channel|>")
    found, problems = read({"prompt": "\n" + start[:cut], "completion": start[cut:] + rest})
    assert list(found.messages) == [user("q"), thought("tmore"), answer("a")] and problems == []


def test_a_header_at_the_end_is_a_cut_off_message() -> None:
    text = "<|start|>user<|message|>q<|end|><|start|>assistant<|channel|>final<|message|>a<|end|><|start|>assistant"
    found, problems = read({"text": text})
    assert "harmony-repaired" in {problem.code for problem in problems}
    assert [message.weight for message in found.messages if message.role == "assistant" and message.content] == [None]


TOOLS = '<tools>\n[{"name": "f", "description": "d"}]\n</tools>'
HERMES = (
    "You are a function calling AI model. You are provided with function signatures within <tools></tools> XML tags. "
    "You may call one or more functions to assist with the user query. Don't make assumptions about what values to "
    f"plug into functions. Here are the available tools: {TOOLS} Use the following pydantic model json schema for each "
    'tool call you will make: {"properties": {"arguments": {"title": "Arguments", "type": "object"}, "name": {"title": '
    '"Name"}}, "required": ["arguments", "name"], "title": "FunctionCall"} For each function call return a json object '
    "with function name and arguments within <tool_call></tool_call> XML tags as follows:\n<tool_call>\n"
    '{"arguments": <args-dict>, "name": <function-name>}\n</tool_call>'
)
QWEN = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function "
    f"signatures within <tools></tools> XML tags:\n{TOOLS}\n\nFor each function call, return a json object with "
    'function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n{"name": '
    '<function-name>, "arguments": '
    "<args-json-object>}\n</tool_call>"
)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (HERMES, None),
        (QWEN, None),
        (f"You are Kai.\n\n{QWEN}\n\nBe brief.", "You are Kai.\n\nBe brief."),
        (
            f"# Tools\nOnly use tools when asked.\n\nYou are a function calling AI model. {TOOLS} Never reveal X.",
            "# Tools\nOnly use tools when asked.\n\nNever reveal X.",
        ),
        (
            f"You are a function calling AI model. {TOOLS} POLICY: be polite.\nUse <scratch_pad> </scratch_pad>.",
            "POLICY: be polite.\nUse <scratch_pad> </scratch_pad>.",
        ),
    ],
)
def test_only_known_sentences_of_a_hermes_system_text_go(text: str, kept: str | None) -> None:
    found, problems = read({"conversations": [{"from": "system", "value": text}, HUMAN, GPT]})
    assert found.instructions == kept and [tool.name for tool in found.tools] == ["f"] and problems == []
