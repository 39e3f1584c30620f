"""Formats with a list `conversations` of {"from": ..., "value": ...}. The list may also be in `messages`.

sharegpt        {"from": "human" | "gpt" | "system" | ..., "value": "..."}, columns `system`, `tools`. The keys can be
                role and content. The list can be `conversation` (LMSYS, WildChat), also with {"input", "output"}
                (Capybara)
llama-factory   the same with the turns function_call ({"name", "arguments"} as JSON text, or a list of these) and
                observation. `tools` is JSON text
apigen-mt       Salesforce/APIGen-MT-5k: the same with exactly the keys conversations, tools, system
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ossia.data.formats.dialects import ROLE_OF
from ossia.data.formats.reading import JsonRow, Reading, RowFormat, add_system, listed
from ossia.data.formats.think import split_think, with_thoughts
from ossia.data.loose_json import loads_loosely
from ossia.errors import OnProblem, Problem, did_you_mean
from ossia.harmony.from_openai import THOUGHT_KEYS

KEYS = frozenset({"conversations", "system", "tools"})
_CALL_KEYS = ("weight", *THOUGHT_KEYS)
_SPEAKER, _SAID = ("from", "role"), ("value", "content", "text")
_FURTHER = ("weight", "name", "tool_calls", "tool_call_id", "channel", "recipient", "content_type", *THOUGHT_KEYS)


@dataclass(slots=True)
class Turn:
    """One item of `conversations`, or one half of an item with input and output."""

    role: str
    """system, user, assistant, tool or call."""
    text: Any
    path: str
    """Place of the text, such as `conversations[3].value`."""
    further: dict[str, Any]
    """Other keys of a chat message: weight, thinking, tool_calls, name, ..."""

    def as_message(self) -> dict[str, Any]:
        """Return the turn as a chat message with role and content only."""
        return {"role": self.role, "content": self.text}


def turns_key(row: JsonRow) -> str:
    """Return the key of the list of turns: `conversations`, `conversation` or `messages`.

    It is `messages` only if its items have `from` without `role`, or if calls are turns.
    """
    if "conversations" in row:
        return "conversations"
    if isinstance(messages := row.get("messages"), list):
        turns = [item for item in messages if isinstance(item, Mapping)]
        if any(("from" in turn and "role" not in turn) or _is_call(turn.get("role")) for turn in turns):
            return "messages"
    elif isinstance(row.get("conversation"), list):
        return "conversation"
    return "conversations"


def _is_call(role: object) -> bool:
    return isinstance(role, str) and ROLE_OF.get(role.strip().lower()) == "call"


def begin(row: JsonRow) -> Reading:
    """Return an empty reading for a row of turns, with its tools."""
    return Reading(tools=row.get("tools"), used={turns_key(row)})


def turns_in(row: JsonRow, report: OnProblem) -> Iterator[Turn]:
    """Yield the turns with common role names. Items without a known role are reported and left out.

    Raises:
        Misfit: the list of turns is not a list.
    """
    key = turns_key(row)
    for index, item in enumerate(listed(row.get(key), key)):
        place = f"{key}[{index}]"
        if not isinstance(item, Mapping):
            report(Problem("error", "not-an-object", "a turn is not an object", path=place))
            continue
        speaker = next((key for key in _SPEAKER if key in item), None)
        if speaker is None and "input" in item and "output" in item:  # Capybara: an exchange in one item
            yield Turn("user", item["input"], f"{place}.input", {})
            yield Turn("assistant", item["output"], f"{place}.output", {})
            continue
        said = next((key for key in _SAID if key in item), "value")
        name = item.get(speaker or "from")
        if not isinstance(name, str) or name.strip().lower() not in ROLE_OF:
            guess = did_you_mean(str(name), ROLE_OF)
            do = f'did you mean "{guess}"?' if guess else f"roles are {', '.join(ROLE_OF)}"
            report(Problem("error", "unknown-role", f"unknown role {name!r}", do, f"{place}.{speaker or 'from'}"))
            continue
        further = {key: item[key] for key in _FURTHER if key in item}
        yield Turn(ROLE_OF[name.strip().lower()], item.get(said), f"{place}.{said}", further)


def speakers_of(row: JsonRow) -> Iterator[tuple[str, object]]:
    """Yield the role name in small letters and the text of each turn, to recognise formats. Never raises."""
    turns = row.get(turns_key(row))
    for item in turns if isinstance(turns, list) else ():
        if isinstance(item, Mapping) and isinstance(name := item.get("from", item.get("role")), str):
            yield name.strip().lower(), item.get("value", item.get("content"))


def read_turns(row: JsonRow, report: OnProblem) -> Reading:
    """Return the reading of a row of any format of this module. The formats differ in the roles of their turns."""
    reading = begin(row)
    turns = list(turns_in(row, report))
    add_system(reading, row, turns[0].as_message() if turns else None)
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


def _add_calls(reading: Reading, turn: Turn, report: OnProblem) -> int:
    """Add the calls of a turn, and return the number of calls that have no result yet.

    The calls are added to the assistant's message before, which has calls or the text of a preamble. If the weights
    differ, or the turn has a thought, they form a new message. A text before them is then a preamble of its own.
    """
    text, fields = turn.text, {key: value for key, value in turn.further.items() if key in _CALL_KEYS and value}
    if "weight" in turn.further:
        fields["weight"] = turn.further["weight"]
    if isinstance(text, str) and "<think>" in text:
        split = split_think(text)
        text = split.content
        known = next((fields[key] for key in THOUGHT_KEYS if isinstance(fields.get(key), str)), "")
        if split.thought and split.thought != known.strip():
            fields["thinking"] = "\n\n".join(part for part in (known, split.thought) if part)
    calls = calls_from(text, turn.path, report)
    if not calls:
        return 0
    tool_calls = [{"function": call} for call in calls]
    before = reading.messages[-1] if reading.messages else {}
    spoken = before.get("role") == "assistant"
    if (
        spoken
        and isinstance(before.get("tool_calls", []), list)
        and not fields.keys() - {"weight"}
        and _weight(before) == _weight(fields)
    ):
        before["tool_calls"] = [*before.get("tool_calls", ()), *tool_calls]
        reading.paths[-1] = turn.path
        reading.made.add(turn.path)
        return len(before["tool_calls"])
    if spoken and "tool_calls" not in before and before.get("content") and "channel" not in before:
        preamble = with_thoughts(before, reading.paths[-1], report)
        reading.messages[-1] = {**preamble, "channel": "commentary"} if preamble["content"] else preamble
    reading.add(turn.path, "assistant", None, **fields, tool_calls=tool_calls)
    return len(calls)


def _weight(message: Mapping[str, Any]) -> Any:
    return 1 if message.get("weight") is None else message["weight"]


def calls_from(text: Any, path: str, report: OnProblem) -> list[Any]:
    """Return the calls of a JSON text or Python literal: one {"name", "arguments"}, or a list of these.

    Faults are reported, and give an empty list. The returned calls have the keys name and arguments.
    """
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
    """Return one result per parallel call if the text is a JSON list of so many, otherwise one for the first call."""
    try:
        value = loads_loosely(text) if isinstance(text, str) else text
    except ValueError:
        return [text]
    if not isinstance(value, list) or len(value) != calls:
        return [text]
    return [item if isinstance(item, str) else json.dumps(item, ensure_ascii=False) for item in value]


def _has_calls(row: JsonRow) -> bool:
    return any(ROLE_OF.get(name) == "call" for name, _ in speakers_of(row))


def _has_observations(row: JsonRow) -> bool:
    return any(name == "observation" for name, _ in speakers_of(row))


FORMATS = (
    RowFormat("apigen-mt", lambda row: row.keys() == KEYS and _has_calls(row), read_turns, KEYS),
    RowFormat("llama-factory", lambda row: _has_calls(row) or _has_observations(row), read_turns, KEYS),
    RowFormat("sharegpt", lambda row: turns_key(row) in row, read_turns, KEYS),
)
