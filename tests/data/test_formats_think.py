"""Tests of `<think>` in an assistant's text, and of the lenient readers of JSON and of Python types."""

from __future__ import annotations

from typing import Any

import pytest

from ossia.data.formats.glaive import read_call
from ossia.data.formats.think import split_think
from ossia.data.formats.xlam import UnknownType, schema_of
from ossia.data.loose_json import loads_loosely, objects_in
from ossia.errors import Problem
from ossia.harmony.conversation import Message, answer, call, thought, user
from support.format_samples import codes, read, rows_of

THINK: dict[str, tuple[str, str, str | None, bool]] = {
    # for each name, the text, the thought, the content and whether a tag stays
    "no tags": ("4", "", "4", False),
    "block": ("<think>\nSum.\n</think>\n\n4", "Sum.", "4", False),
    "space before": (" \n<think>Sum.</think>4 ", "Sum.", "4 ", False),
    "no opening tag": ("Sum.\n</think>\n\n4", "Sum.", "4", False),
    "no opening tag, one line": ("Sum.</think>4", "Sum.", "4", False),
    "empty": ("<think>\n\n</think>\n\n4", "", "4", False),
    "no answer": ("<think>Sum.</think>", "Sum.", "", False),
    "unclosed": ("<think>\nSum. So", "Sum. So", None, False),
    "two blocks": ("<think>a</think>\n<think>b</think>c", "a\n\nb", "c", False),
    "second unclosed": ("<think>a</think><think>b", "a\n\nb", None, False),
    "text before": ("Well.\n<think>Sum.</think>\n4", "Sum.", "Well.\n\n4", False),
    "text before, unclosed": ("Well.\n<think>Sum.", "", "Well.\n<think>Sum.", True),
    "middle of a line": ("Use <think> and </think>.", "", "Use <think> and </think>.", True),
    "in backticks": ("Use `<think>` and `</think>`.", "", "Use `<think>` and `</think>`.", False),
    "in one pair of backticks": ("As in `<think>a</think> b`.", "", "As in `<think>a</think> b`.", False),
    "in quotation marks": ('Write "</think>" at the end.', "", 'Write "</think>" at the end.', False),
    "in a fence": ("So:\n```\n<think>\na\n</think>\n```\n", "", "So:\n```\n<think>\na\n</think>\n```\n", False),
    "after a fence": ("```\nx\n```\n<think>a</think>b", "a", "```\nx\n```\n\nb", False),
    "quoted in the thought": ("<think>What is `</think>`?</think>A tag.", "What is `</think>`?", "A tag.", False),
    "code in the thought": ("<think>```\nx</think>```y```", "```\nx", "```y```", False),
    "only a quoted end": ("<think>a `</think>` b", "a `", "` b", False),
    "a tag in the answer": ("<think>a</think>b <think>c", "a", "b <think>c", True),
    "another tag": ("<thinking>a</thinking>b", "", "<thinking>a</thinking>b", False),
}


@pytest.mark.parametrize("name", THINK)
def test_think_tags(name: str) -> None:
    text, thinking, content, stray = THINK[name]
    split = split_think(text)
    assert (split.thought, split.content, split.stray) == (thinking, content, stray)
    found, problems = read({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": text}]})
    expected = [
        user("u"),
        *([thought(thinking)] if thinking else []),
        *([answer(content)] if content is not None else []),
    ]
    assert list(found.messages) == expected
    code = "think-in-text" if stray else "unclosed-think" if content is None else None
    assert codes(problems) == ([("warning", code, "messages[1].content")] if code else [])


def test_think_tags_beside_a_thought_of_its_own() -> None:
    def messages(text: str, **fields: Any) -> tuple[list[Message], list[Problem]]:
        found, problems = read({"messages": [{"role": "assistant", "content": text, **fields}]})
        return list(found.messages), problems

    assert messages("<think>\nt\n</think>a", thinking="t") == ([thought("t"), answer("a")], [])
    assert messages("<think></think>a", reasoning="t") == ([thought("t"), answer("a")], [])
    kept, problems = messages("<think>other</think>a", reasoning_content="t")
    assert kept == [thought("t"), answer("<think>other</think>a")]
    assert [problem.code for problem in problems] == ["think-in-text"]
    assert messages("<think>t</think>a", thinking="") == ([thought("t"), answer("a")], [])
    assert messages("<think>t</think>a", channel="final") == ([answer("<think>t</think>a")], [])


def test_think_tags_before_calls_and_in_parts_of_content() -> None:
    row = rows_of("openai")[3]
    row["messages"][1]["content"] = [{"type": "text", "text": "<think>t</think>"}]
    assert read(row)[0].messages[1:3] == (
        thought("t"),
        call("tide_times", '{"harbour": "Hvide Sande", "day": "2025-05-03"}'),
    )
    row["messages"][0]["content"] = "<think>mine</think>"
    assert read(row)[0].messages[0] == user("<think>mine</think>")


@pytest.mark.parametrize(
    "unit", ["a b\n", "<think>", "</think>", "<think></think>", "`</think>` ", "`<think>", "\n", " "]
)
def test_megabytes_of_tags_are_no_trouble(unit: str) -> None:
    """A quadratic scan would run for hours here."""
    many = unit * (1_000_000 // len(unit))
    for text in (many, f"<think>{many}", f"x\n<think>{many}</think>", f"```{many}```", f"`{many}`", f'"{many}"'):
        split = split_think(text)
        letters = (split.thought + (split.content or "")).count
        assert all(letters(letter) == text.count(letter) for letter in "abx`")


@pytest.mark.parametrize(
    ("text", "schema", "optional"),
    [
        ("str", {"type": "string"}, False),
        ("Integer", {"type": "integer"}, False),
        ("int, optional", {"type": "integer"}, True),
        ("bool (optional)", {"type": "boolean"}, True),
        ("Optional[List[str]]", {"type": "array", "items": {"type": "string"}}, True),
        ("typing.Dict[str, Any]", {"type": "object"}, False),
        (
            "Dict[str, List[int]]",
            {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "integer"}}},
            False,
        ),
        ("Tuple[int, ...]", {"type": "array", "items": {"type": "integer"}}, False),
        (
            "Tuple[int, str]",
            {"type": "array", "items": {"type": ["integer", "string"]}, "minItems": 2, "maxItems": 2},
            False,
        ),
        ("Set[float]", {"type": "array", "uniqueItems": True, "items": {"type": "number"}}, False),
        ("Union[int, float]", {"type": "number"}, False),
        ("int | None", {"type": ["integer", "null"]}, False),
        (
            "Union[str, List[str]]",
            {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
            False,
        ),
        ("Literal['a', 'b']", {"type": "string", "enum": ["a", "b"]}, False),
        ("Any", {}, False),
        ("list", {"type": "array"}, False),
    ],
)
def test_types_of_python(text: str, schema: dict[str, Any], optional: bool) -> None:
    assert schema_of(text) == (schema, optional)


@pytest.mark.parametrize(
    "text", ["", "np.ndarray", "List[", "List[Foo]", "Callable[[int], str]", None, "List[" * 99, "x" * 10**6]
)
def test_what_is_no_type(text: object) -> None:
    with pytest.raises(UnknownType):
        schema_of(text)


def test_loose_json() -> None:
    assert loads_loosely("{'a': True, 'b': None}") == loads_loosely('{"a": true, "b": null}') == {"a": True, "b": None}
    for text in ("", "{", "[" * 100_000, "open('x')", "-" * 100_000, "1" * 9999, "'\\d' + 1", "\x00"):
        with pytest.raises(ValueError, match=r"."):
            loads_loosely(text)
    assert objects_in('a {x} {"b": {"c": 1}} d {"e": 2}') == ([{"b": {"c": 1}}, {"e": 2}], "a {x}  d ")


def test_calls_of_glaive() -> None:
    assert read_call('{"name": "f", "arguments": \'{"a": "it\\\'s"}\'}') == {"name": "f", "arguments": '{"a": "it\'s"}'}
    assert read_call('{"name": "f"}') == {"name": "f", "arguments": None}
    assert read_call('{"name": "f", "arguments": {"a": 1}} </functioncall>')["arguments"] == {"a": 1}
    for text in ("", "{}", '{"name": "f", "arguments": \'{a: 1}\'}', '{"name": "f", "arguments": \''):
        with pytest.raises(ValueError, match=r"."):
            read_call(text)
