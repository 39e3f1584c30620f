"""Tests of converting OpenAI's chat messages to conversations: every field, every author, and reports of faults."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ossia.errors import Problem, UserError
from ossia.harmony import conversation as c
from ossia.harmony.builtin import BROWSER, PYTHON
from ossia.harmony.from_openai import conversation_from_chat, text_of
from ossia.harmony.request import response_formats_from_chat, split_effort

U = {"role": "user", "content": "Hi"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


def call(name: str, arguments: Any, id: str | None = None) -> dict[str, Any]:
    made = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return made if id is None else {"id": id, **made}


def read(*messages: Any, **options: Any) -> tuple[c.Message, ...]:
    return conversation_from_chat(messages, **options).messages


def problems(*messages: Any, **options: Any) -> list[tuple[str, str]]:
    found: list[Problem] = []
    conversation_from_chat(messages, report=found.append, **options)
    return [(problem.code, problem.path) for problem in found]


@pytest.mark.parametrize(
    ("text", "rest", "effort"),
    [
        ("Reasoning: high", "", "high"),
        ("\n  reasoning:LOW  \n\n", "", "low"),
        ("Be brief.\n\nReasoning: medium", "Be brief.", "medium"),
        ("Reasoning: high\n\nBe brief.", "Be brief.", "high"),
        ("Be brief.\n\nReasoning: high\n\nRhyme.", "Be brief.\n\nRhyme.", "high"),
        ("Be brief.\nReasoning: high\nRhyme.\n\n\nSing.", "Be brief.\nRhyme.\n\n\nSing.", "high"),
        ("Be brief.\r\nReasoning effort: high\r\nRhyme.", "Be brief.\r\nRhyme.", "high"),
        ("Reasoning: low\nReasoning: high", "", "high"),
        ("Reasoning: high quality answers", "Reasoning: high quality answers", None),
        ("Explain your reasoning: high", "Explain your reasoning: high", None),
        ("Reasoning:\nhigh", "Reasoning:\nhigh", None),
        ("Reasoning: extreme", "Reasoning: extreme", None),
        ("  kept as it is \n", "  kept as it is \n", None),
    ],
)
def test_a_line_about_reasoning_is_effort(text: str, rest: str, effort: str | None) -> None:
    assert split_effort(text) == (rest, effort)
    conversation = conversation_from_chat([{"role": "system", "content": text}, U])
    assert conversation.system is not None and conversation.system.effort == (effort or "medium")
    assert conversation.instructions == (rest or None)


def test_effort_of_the_request_goes_before_the_text_and_that_before_the_default() -> None:
    line = {"role": "developer", "content": "Reasoning: high"}

    def effort(messages: list[Any], **options: Any) -> str | None:
        system = conversation_from_chat(messages, system=c.SystemSettings(effort="low"), **options).system
        return None if system is None else system.effort

    assert effort([U]) == "low"
    assert effort([line, U]) == "high"
    assert effort([line, U], effort="medium") == "medium"
    assert effort([U, line]) == "low"  # after the first messages it is an ordinary instruction
    assert read(U, line)[1] == c.developer("Reasoning: high")
    assert conversation_from_chat([line], system=None).system is None


def test_an_empty_instruction_and_one_that_was_only_effort_go() -> None:
    texts = [{"role": "system", "content": "Reasoning: low"}, {"role": "developer", "content": "Rhyme."}, U]
    assert conversation_from_chat(texts).instructions == "Rhyme."
    assert conversation_from_chat([{"role": "system", "content": ""}, U]).instructions is None
    later = conversation_from_chat([U, {"role": "system", "content": None}, {"role": "developer", "content": " "}])
    assert [message.role for message in later.messages] == ["user"]


def test_what_cannot_stand_in_a_header_is_written_otherwise_everywhere() -> None:
    found: list[Problem] = []
    tool = {"type": "function", "function": {"name": "Get Weather", "parameters": {"properties": {"x": {}}}}}
    messages = [
        {**U, "name": "Bob Smith"},
        {"role": "assistant", "tool_calls": [call("Get Weather", {}, "1")]},
        {"role": "tool", "name": "Get Weather", "content": "r"},
        {"role": "assistant", "content": "a"},
    ]
    made = conversation_from_chat(messages, [tool], report=found.append)
    assert [(m.name, m.recipient) for m in made.messages] == [
        ("Bob_Smith", None),
        (None, "functions.Get_Weather"),
        ("functions.Get_Weather", "assistant"),
        (None, None),
    ]
    assert made.tools[0].name == "Get_Weather"
    assert {problem.code for problem in found} == {"name"} and {problem.level for problem in found} == {"warning"}


@pytest.mark.parametrize("key", ["arguments", "parameters", "input"])
def test_arguments_and_schemas_by_other_names(key: str) -> None:
    """LLaMA-Factory and Anthropic use these names."""
    tool = {"name": "f", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
    turn = {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", key: {"city": "Oslo"}}}]}
    made = conversation_from_chat([U, turn], [tool])
    assert made.messages[-1].content == '{"city": "Oslo"}' and made.tools[0].parameters == tool["input_schema"]


@pytest.mark.parametrize(("arguments", "written"), [("", "{}"), (None, "{}"), ("[1]", None), ('"x"', None), (3, None)])
def test_arguments_are_an_object(arguments: Any, written: str | None) -> None:
    turn = {"role": "assistant", "tool_calls": [call("f", arguments, "1")]}
    if written is None:
        with pytest.raises(UserError, match="not a JSON object"):
            conversation_from_chat([U, turn])
    else:
        assert conversation_from_chat([U, turn]).messages[-1].content == written


def test_a_thought_in_parts_is_read_and_none_is_lost_silently() -> None:
    turn = {"role": "assistant", "content": "a"}
    parts = [{"type": "text", "text": "x"}, "y"]
    assert conversation_from_chat([U, {**turn, "thinking": parts}]).messages[1].content == "xy"
    assert len(conversation_from_chat([U, {**turn, "thinking": "  \n"}]).messages) == 2
    with pytest.raises(UserError, match="reasoning is neither text"):
        conversation_from_chat([U, {**turn, "reasoning": {"text": "x"}}])


def test_calls_of_builtin_tools_are_thoughts() -> None:
    messages = (
        U,
        {"role": "assistant", "tool_calls": [call("python", {"code": "print(1)"}, "a")]},
        {"role": "tool", "tool_call_id": "a", "content": "1"},
        {"role": "assistant", "tool_calls": [call("python", '{"code": "é"}'), call("python", "x = 1")]},
        {"role": "tool", "name": "python", "content": "é"},
        {"role": "tool", "name": "python", "content": ""},
        {"role": "assistant", "tool_calls": [call("browser.search", '{"query": "x"}')]},
        {"role": "tool", "content": "found"},
        {"role": "assistant", "tool_calls": [call("f", {})]},
    )

    def python(code: str, result: str) -> list[c.Message]:
        called = c.Message("assistant", code, "analysis", "python", "code")
        return [called, c.Message("tool", result, "analysis", "assistant", name="python")]

    conversation = conversation_from_chat(messages, builtin_tools=["python", "browser"])
    assert conversation.system is not None and conversation.system.namespaces == (PYTHON, BROWSER)
    search = c.Message("assistant", '{"query": "x"}', "analysis", "browser.search", "code")
    found = c.Message("tool", "found", "analysis", "assistant", name="browser.search")
    assert list(conversation.messages[1:]) == [
        *python("print(1)", "1"),
        *python("é", "é"),
        *python("x = 1", ""),
        search,
        found,
        c.call("f", "{}"),
    ]
    # A recipe or a server may also announce the tool. Not announced, or as a function of that name, it is a function.
    system = c.SystemSettings(namespaces=(PYTHON,))
    assert read(*messages[:3], system=system) == conversation.messages[:3]
    assert conversation_from_chat([U], system=system, builtin_tools=["python"]).system == system
    assert read(*messages[:2])[1].recipient == "functions.python"
    tools = [{"type": "function", "function": {"name": "python"}}]
    assert read(*messages[:2], tools=tools, builtin_tools=["python"])[1].recipient == "functions.python"
    assert read(U, {"role": "assistant", "tool_calls": [call("functions.python", {})]}, builtin_tools=["python"])[
        1
    ] == c.call("python", "{}")


def test_unknown_builtin_tools_are_named() -> None:
    with pytest.raises(UserError, match="'pyton'") as error:
        conversation_from_chat([U], builtin_tools=["pyton"])
    assert error.value.do == 'did you mean "python"?'
    assert problems(U, builtin_tools=["pyton"]) == [("unknown-builtin", "builtin_tools")]


def test_response_formats_of_both_apis() -> None:
    chat = {"type": "json_schema", "json_schema": {"name": "n", "description": "d", "schema": SCHEMA, "strict": True}}
    responses = {"type": "json_schema", "name": "n", "description": "d", "schema": SCHEMA}
    expected = (c.ResponseFormat("n", SCHEMA, "d"),)
    for given in (chat, responses, [chat], json.dumps(responses)):
        assert conversation_from_chat([U], response_format=given).response_formats == expected
    assert response_formats_from_chat([chat, responses]) == expected * 2
    for nothing in (None, {}, {"type": "text"}, {"type": "json_object"}, ""):
        assert response_formats_from_chat(nothing) == ()
    for wrong in ({"type": "json_schema"}, {"json_schema": {"schema": SCHEMA}}, "{", 5, [5]):
        assert problems(U, response_format=wrong) == [("response-format", "response_format")]


def test_messages_that_say_where_they_go_are_taken_as_they_are() -> None:
    given = [
        c.Message("user", "a", "commentary", "assistant", "text", "bob"),
        c.Message("system", "b", "analysis"),
        c.Message("developer", "c", recipient="user"),
        c.Message("assistant", "d", "analysis", "browser.open", "code", "deputy"),
        c.Message("tool", "e", "final", "all", "<|constrain|>json", "browser.open"),
        c.Message("tool", "f", "commentary", "assistant", None, "functions.f"),
        c.Message("assistant", "g", "final", weight=0.5),
        c.Message("assistant", "h", "commentary", "all"),
    ]
    keys = ("role", "content", "channel", "recipient", "content_type", "name", "weight")
    rows = [{key: getattr(message, key) for key in keys} for message in given]
    assert list(read(*rows)) == given
    assert conversation_from_chat(rows).instructions is None


def test_a_given_message_without_a_channel_gets_one() -> None:
    assert read({"role": "assistant", "content": "x", "recipient": "functions.f"})[0].channel == "commentary"
    assert read({"role": "assistant", "content": "x", "content_type": "json"})[0].channel == "final"
    assert read({"role": "assistant", "content": "x", "recipient": "all", "channel": None}) == (c.answer("x"),)


def test_a_given_text_beside_calls_stands_before_them() -> None:
    calls = {"tool_calls": [call("f", {})], "content": "x", "thinking": "t"}
    expected = (c.thought("t"), c.thought("x"), c.call("f", "{}"))
    assert read({"role": "assistant", "channel": "analysis", **calls}) == expected


def test_results_find_given_calls() -> None:
    called = {"role": "assistant", "content": "{}", "channel": "commentary", "recipient": "functions.f"}
    expected = c.Message("assistant", "{}", "commentary", "functions.f")
    for name in ({}, {"name": "f"}, {"name": "functions.f"}, {"tool_call_id": "x"}):
        assert read(called, {"role": "tool", "content": "r", **name}) == (expected, c.tool_result("f", "r"))


def test_nothing_but_a_thought_and_then_calls() -> None:
    messages = (
        U,
        {"role": "assistant", "thinking": "first", "content": None},
        {"role": "assistant", "reasoning": "second", "content": None, "tool_calls": None},
        {
            "role": "assistant",
            "content": None,
            "thinking": None,
            "tool_calls": [call("f", "{}", "1"), call("g", "{}", "2")],
        },
        {"role": "tool", "tool_call_id": "2", "content": "second"},
        {"role": "tool", "tool_call_id": "1", "content": "first"},
        {"role": "assistant", "content": "ok", "function_call": None, "refusal": None, "weight": None, "name": None},
    )
    assert read(*messages) == (
        c.user("Hi"),
        c.thought("first"),
        c.thought("second"),
        c.call("g", "{}"),
        c.tool_result("g", "second"),
        c.call("f", "{}"),
        c.tool_result("f", "first"),
        c.answer("ok"),
    )


def test_the_older_form_of_calls() -> None:
    called = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    result = {"role": "function", "name": "f", "content": "r"}
    assert read(called, result) == (c.call("f", "{}"), c.tool_result("f", "r"))


def test_contents_in_parts_and_refusals() -> None:
    parts = [{"type": "text", "text": "a"}, "b", {"type": "refusal", "refusal": "c"}, {"type": "text", "text": ""}]
    assert text_of(parts) == "abc" and text_of(None) == "" and text_of([{"type": "image_url"}]) is None
    assert read({"role": "assistant", "content": None, "refusal": "No."}) == (c.answer("No."),)
    assert read({"role": "assistant", "content": "", "refusal": "No."}) == (c.answer("No."),)


def test_results_that_are_no_text_become_json() -> None:
    called = {"role": "assistant", "tool_calls": [call("f", {})]}
    for content, text in (({"t": "é"}, '{"t": "é"}'), ([1, 2], "[1, 2]"), (7, "7"), (None, "")):
        assert read(called, {"role": "tool", "content": content})[1].content == text


def test_problems_name_their_place() -> None:
    assert problems("x") == [("not-an-object", "messages[0]")]
    assert problems(U, {"role": "usr", "content": ""}) == [("unknown-role", "messages[1].role")]
    assert problems({"role": "user", "content": 5}) == [("not-text", "messages[0].content")]
    assert problems({"role": "assistant", "content": "x", "channel": "thinking"}) == [
        ("unknown-channel", "messages[0].channel")
    ]
    assert problems({"role": "user", "content": "x", "recipient": 5}) == [("header", "messages[0].recipient")]
    assert problems({"role": "assistant", "content": "x", "weight": 2}) == [("weight", "messages[0].weight")]
    assert problems({"role": "assistant", "tool_calls": "f"}) == [("call-without-name", "messages[0].tool_calls")]
    broken = {"role": "assistant", "tool_calls": [call("f", "{"), {"function": {}}]}
    assert problems(broken) == [
        ("arguments-not-json", "messages[0].tool_calls[0].function.arguments"),
        ("call-without-name", "messages[0].tool_calls[1]"),
    ]
    assert problems({"role": "tool", "content": "x"}) == [("result-without-call", "messages[0]")]
    assert problems({"role": "tool", "content": "x", "channel": "commentary"}) == [
        ("result-without-call", "messages[0]")
    ]
    two = {"role": "assistant", "tool_calls": [call("f", {}), call("g", {})]}
    assert problems(U, two, U) == [("call-without-result", "messages[1].tool_calls[1]")]
    assert problems(U, two, U, path="prompt", paths=["a", "b", "c"]) == [("call-without-result", "b.tool_calls[1]")]


def test_messages_remember_their_place() -> None:
    messages = (
        U,
        {"role": "assistant", "reasoning": "t", "content": "p", "tool_calls": [call("f", {})]},
        {"role": "tool", "content": "r"},
        {"role": "assistant", "content": "a"},
        {"role": "system", "content": "s"},
        {"role": "assistant", "content": "g", "channel": "final"},
    )
    assert [message.place for message in read(*messages)] == [
        "messages[0]",
        "messages[1]",
        "messages[1]",
        "messages[1]",
        "messages[2]",
        "messages[3]",
        "messages[4]",
        "messages[5]",
    ]
