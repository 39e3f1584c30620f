"""Rows with a list `conversations` of {"from": ..., "value": ...}, which many formats share.

sharegpt        {"from": "human" | "gpt" | "system" | ..., "value": "..."}, columns `system` and `tools`; also with the
                keys role and content
llama-factory   the same with the turns function_call ({"name", "arguments"} as JSON text, or a list of these) and
                observation; `tools` as JSON text
apigen-mt       Salesforce/APIGen-MT-5k: that form with exactly the keys conversations, tools, system
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ossia.data.formats.loose import loads_loosely
from ossia.data.formats.reading import Reading, Row, RowFormat, add_system, listed
from ossia.data.formats.think import split_think
from ossia.errors import did_you_mean
from ossia.harmony.chat import THOUGHT_KEYS
from ossia.harmony.problem import Problem, Report

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "function_response", "tool_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}
KEYS = frozenset({"conversations", "system", "tools"})
_SPEAKER, _SAID = ("from", "role"), ("value", "content", "text")
_FURTHER = ("weight", "name", "tool_calls", "tool_call_id", "channel", "recipient", "content_type", *THOUGHT_KEYS)


@dataclass(slots=True)
class Turn:
    """One item of `conversations`."""

    role: str
    """system, user, assistant, tool or call."""
    text: Any
    path: str
    """Place of the text, as in `conversations[3].value`."""
    further: dict[str, Any]
    """What else chat messages know: weight, thinking, tool_calls, name, ..."""


def turns_of(row: Row, report: Report) -> Iterator[Turn]:
    """The turns under common role names. Items without a known role are reported and left out."""
    for index, item in enumerate(listed(row.get("conversations"), "conversations")):
        place = f"conversations[{index}]"
        if not isinstance(item, Mapping):
            report(Problem("error", "not-an-object", "a turn is not an object", path=place))
            continue
        speaker = next((key for key in _SPEAKER if key in item), "from")
        said = next((key for key in _SAID if key in item), "value")
        name = item.get(speaker)
        if not isinstance(name, str) or name.strip().lower() not in ROLES:
            guess = did_you_mean(str(name), ROLES)
            do = f'did you mean "{guess}"?' if guess else f"roles are {', '.join(ROLES)}"
            report(Problem("error", "unknown-role", f"unknown role {name!r}", do, f"{place}.{speaker}"))
            continue
        further = {key: item[key] for key in _FURTHER if key in item}
        yield Turn(ROLES[name.strip().lower()], item.get(said), f"{place}.{said}", further)


def speakers_of(row: Row) -> Iterator[tuple[str, object]]:
    """Who says what, for recognising formats. Never raises."""
    conversations = row.get("conversations")
    for item in conversations if isinstance(conversations, list) else ():
        if isinstance(item, Mapping) and isinstance(name := item.get("from", item.get("role")), str):
            yield name.strip().lower(), item.get("value", item.get("content"))


def read_turns(row: Row, report: Report) -> Reading:
    """All three formats of this module: they differ in what turns they have."""
    reading = Reading(tools=row.get("tools"))
    add_system(reading, row)
    turns = list(turns_of(row, report))
    roles = [turn.role for turn in turns]
    calls = 0
    for index, turn in enumerate(turns):
        if turn.role == "call":
            calls = _add_calls(reading, turn, report)
            continue
        alone = roles[index - 1 : index + 2].count("tool") == 1 if index else False
        results = _results(turn.text, calls) if turn.role == "tool" and alone and calls > 1 else [turn.text]
        for text in results:
            reading.add(turn.path, turn.role, text, **turn.further)
    return reading


def _add_calls(reading: Reading, turn: Turn, report: Report) -> int:
    """Add the calls of a turn, after what was thought or said just before; returns how many."""
    text, thinking = turn.text, None
    if isinstance(text, str) and "<think>" in text:
        split = split_think(text)
        thinking, text = split.thought, split.content
    calls = calls_from(text, turn.path, report)
    if not calls:
        return 0
    tool_calls = [{"function": call} for call in calls]
    before = reading.messages[-1] if reading.messages else {}
    if before.get("role") == "assistant" and "tool_calls" not in before and thinking is None:
        before["tool_calls"] = tool_calls
        reading.paths[-1] = turn.path
        reading.made.add(turn.path)
    else:
        reading.add(turn.path, "assistant", None, thinking=thinking, tool_calls=tool_calls)
    return len(calls)


def calls_from(text: Any, path: str, report: Report) -> list[Any]:
    """The calls in a JSON text (or Python literal): one {"name", "arguments"}, or a list of these."""
    try:
        value = loads_loosely(text) if isinstance(text, str) else text
    except ValueError as error:
        do = 'write it as in {"name": "f", "arguments": {"city": "Oslo"}}'
        report(Problem("error", "call-not-json", f"a call is not JSON: {error}", do, path))
        return []
    calls = value if isinstance(value, list) else [value]
    for call in calls:
        if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
            what = 'a call without a function name: {"name": ..., "arguments": ...} is expected'
            report(Problem("error", "call-without-name", what, path=path))
            return []
    return [{"name": call["name"], "arguments": call.get("arguments", call.get("parameters"))} for call in calls]


def _results(text: Any, calls: int) -> list[Any]:
    """One result per parallel call, if the text is a JSON list of so many; else the text for the first call."""
    try:
        value = loads_loosely(text) if isinstance(text, str) else text
    except ValueError:
        return [text]
    if not isinstance(value, list) or len(value) != calls:
        return [text]
    return [item if isinstance(item, str) else json.dumps(item, ensure_ascii=False) for item in value]


def _has_calls(row: Row) -> bool:
    return any(ROLES.get(name) == "call" for name, _ in speakers_of(row))


def _has_observations(row: Row) -> bool:
    return any(name == "observation" for name, _ in speakers_of(row))


FORMATS = (
    RowFormat("apigen-mt", lambda row: row.keys() == KEYS and _has_calls(row), read_turns, KEYS),
    RowFormat("llama-factory", lambda row: _has_calls(row) or _has_observations(row), read_turns, KEYS),
    RowFormat("sharegpt", lambda row: "conversations" in row, read_turns, KEYS),
)
