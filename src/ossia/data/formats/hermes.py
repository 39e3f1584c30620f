"""The format hermes, of NousResearch/hermes-function-calling-v1 and similar data. Calls are XML in the text.

A row has `conversations` of {"from": "system" | "human" | "gpt" | "tool", "value"}, and `tools` as JSON text:

    gpt    <tool_call>\\n{"name": "f", "arguments": {...}}\\n</tool_call>, often a Python literal, and several in a text
    tool   <tool_response>\\n{"name": "f", "content": ...}\\n</tool_response>
    system "You are a function calling AI model ... <tools> [...] </tools> ...", left out: Harmony has its own text

From the system turn only the list of tools is removed, and the known sentences that explain calls. All other text is
kept. Without a column `tools`, the tools are read from that list.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from ossia.data.formats.dialects import ROLE_OF
from ossia.data.formats.reading import JsonRow, Reading, RowFormat, add_system
from ossia.data.formats.think import split_think
from ossia.data.formats.turns import KEYS, Turn, begin, calls_from, speakers_of, turns_in
from ossia.data.loose_json import loads_loosely, objects_in
from ossia.errors import OnProblem

_OBJECT = r"\{[^{}]*(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}[^{}]*)*\}"
_MARK = r"<tool_call>\s{0,9}</tool_call>"
_KNOWN = re.compile(  # the sentences that explain calls to models of Hermes and Qwen, and no other text
    r"# Tools\s{1,9}(?=You (?:may call one or more|are provided with|are a function calling))"
    r"|You are a function calling AI model\b\.?"
    r"|You are provided with function signatures within <tools>\s{0,9}</tools> XML tags[.:]?"
    r"|You may call one or more functions to assist with the user query\.?"
    r"|(?:Don't make|Make no) assumptions about(?: what)? values(?: to plug into functions)?\b\.?"
    r"|Here are the available tools:?"
    rf"|Use the following pydantic model json schema for each tool call you will make:\s{{0,9}}(?:{_OBJECT})?"
    rf"|For each function call,? return a json object[^.:\n]{{0,200}}:\s{{0,9}}(?:{_OBJECT})?"
    rf"|Each function call should be enclosed within {_MARK} XML tags\.?"
    r"|(?:Example:\s{0,9})?<tool_call>\s{0,9}\{[^{}]{0,300}<(?:args|function)[^{}]{0,300}\}\s{0,9}</tool_call>",
    re.IGNORECASE,
)
_TOOLS = re.compile(r"<tools>(?=\s{0,99}[\[{])")
_RESULT_KEYS = frozenset({"name", "content", "role", "tool_call_id"})


def _matches(row: JsonRow) -> bool:
    return any(
        isinstance(text, str) and ("<tool_call>" in text or "<tools>" in text)
        for name, text in speakers_of(row)
        if ROLE_OF.get(name) in ("assistant", "system")
    )


def _read(row: JsonRow, report: OnProblem) -> Reading:
    reading = begin(row)
    add_system(reading, row)
    for turn in turns_in(row, report):
        text = turn.text
        if turn.role == "system" and isinstance(text, str) and "<tools>" in text:
            kept = _without_tools(text)
            if kept:
                reading.add(turn.path, "system", kept)
            if not reading.tools:
                reading.tools, reading.tools_path = _tools_in(text), turn.path
        elif turn.role == "assistant" and isinstance(text, str) and "<tool_call>" in text:
            _add_assistant(reading, turn, text, report)
        elif turn.role == "tool" and isinstance(text, str):
            for body in blocks(text, "tool_response")[0] or [text]:
                name, result = _result(body)
                reading.add(turn.path, "tool", result, name=name)
        else:
            reading.add(turn.path, turn.role, text, **turn.further)
    if reading.tools_path != "tools" and isinstance(reading.tools, list):
        reading.tool_paths = [reading.tools_path] * len(reading.tools)
    return reading


def blocks(text: str, tag: str) -> tuple[list[str], str]:
    """Return the texts between <tag> and </tag>, and the text around them. The last block may lack its </tag>."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    first, *parts = text.split(opening)
    cut = [part.partition(closing) for part in parts]
    around = [first, *(after for _, _, after in cut)]
    return [inside.strip() for inside, _, _ in cut], "\n".join(part for part in map(str.strip, around) if part)


def _add_assistant(reading: Reading, turn: Turn, text: str, report: OnProblem) -> None:
    split = split_think(text)  # first, because a thought may contain the tags of calls
    bodies, around = blocks(split.content or "", "tool_call")
    calls = [call for body in bodies for call in calls_from(body, turn.path, report)]
    fields = turn.further | ({"thinking": split.thought} if split.thought else {})
    tool_calls = [{"function": call} for call in calls] or None
    reading.add(turn.path, "assistant", around or None, **fields | {"tool_calls": tool_calls})


def _result(body: str) -> tuple[str | None, str]:
    """Return the name (or None) and the text of a result. A wrapper {"name", "content"} is removed."""
    try:
        value = loads_loosely(body)
    except ValueError:
        return None, body
    if not isinstance(value, Mapping) or "content" not in value or not value.keys() <= _RESULT_KEYS:
        return None, body
    name, content = value.get("name"), value["content"]
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)
    return name if isinstance(name, str) else None, text


def _without_tools(text: str) -> str:
    """Return a system text without the list of tools and the known sentences that explain calls."""
    position = _list_start(text)
    if position >= 0:
        before, inside = text[:position], text[position + len("<tools>") :]
        parts = [*_KNOWN.split(before), *_KNOWN.split(inside.partition("</tools>")[2])]
    else:
        parts = _KNOWN.split(text)
    return "\n\n".join(part for part in map(str.strip, parts) if part)


def _list_start(text: str) -> int:
    """Return the position of the `<tools>` that begins the list, or -1. A sentence may mention the tag before."""
    return next((found.start() for found in _TOOLS.finditer(text)), -1)


def _tools_in(text: str) -> object:
    inside = blocks(text, "tools")[0][-1]
    try:
        value = loads_loosely(inside)
    except ValueError:
        return objects_in(inside)[0]
    return value if isinstance(value, list) else [value]


FORMATS = (RowFormat("hermes", _matches, _read, KEYS),)
