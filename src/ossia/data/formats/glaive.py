"""The format glaive, of glaiveai/glaive-function-calling-v2. A row has the whole conversation in one text.

{"system": "SYSTEM: You are a helpful assistant with access to the following functions. Use them if required -\\n{...}",
 "chat": "USER: ...\\n\\n\\nASSISTANT: ... <|endoftext|>\\n\\n\\nFUNCTION RESPONSE: {...}\\n\\n\\nASSISTANT: ..."}

Each speaker begins after an empty line. A call is `<functioncall> {"name": "f", "arguments": '{"a": 1}'}`. This is not
JSON, because its arguments are JSON in single quotes.
"""

from __future__ import annotations

import re
from typing import Any

from ossia.data.formats.reading import JsonRow, Misfit, Reading, RowFormat
from ossia.data.loose_json import loads, objects_in
from ossia.errors import OnProblem, Problem

_SPEAKER = re.compile(r"(?:\A\s{0,20}|(?<=\n\n))(USER|ASSISTANT|FUNCTION RESPONSE):")
_ROLES = {"USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}
_ANNOUNCEMENT = re.compile(
    r"(You are a helpful assistant )?with access to the following functions\. Use them if required ?-?"
)
_NAME = re.compile(r'\{\s{0,20}"name"\s{0,20}:\s{0,20}"([^"\n]{1,200})"')
_ARGUMENTS = re.compile(r'"arguments"\s{0,20}:\s{0,20}')
_CALL, _END = "<functioncall>", "<|endoftext|>"


def _matches(row: JsonRow) -> bool:
    chat = row.get("chat")
    return isinstance(chat, str) and ("system" in row or _SPEAKER.match(chat) is not None)


def _read(row: JsonRow, report: OnProblem) -> Reading:
    chat, system = row.get("chat"), row.get("system")
    if not isinstance(chat, str):
        raise Misfit("`chat` is not text")
    reading = Reading(tools_path="system", used={"system"})
    if isinstance(system, str):
        tools, around = objects_in(system.strip().removeprefix("SYSTEM:"))
        reading.tools, reading.tool_paths = tools, ["system"] * len(tools)
        if text := _ANNOUNCEMENT.sub("", around).strip():
            reading.add("system", "system", text)
    elif system is not None:
        report(Problem("error", "not-text", "system is not text", path="system"))
    speakers = list(_SPEAKER.finditer(chat))
    if not speakers or chat[: speakers[0].start()].strip():
        do = 'a speaker begins after an empty line: "USER: ", "ASSISTANT: " or "FUNCTION RESPONSE: "'
        report(Problem("error", "unknown-role", "the chat does not begin with a speaker", do, "chat"))
    ends = [*(speaker.start() for speaker in speakers[1:]), len(chat)]
    for speaker, end in zip(speakers, ends, strict=False):
        _add(reading, _ROLES[speaker[1]], chat[speaker.end() : end].replace(_END, "").strip(), report)
    return reading


def _add(reading: Reading, role: str, text: str, report: OnProblem) -> None:
    if role != "assistant" or _CALL not in text:
        reading.add("chat", role, text)
        return
    before, _, body = text.partition(_CALL)
    try:
        call = read_call(body)
    except ValueError as error:
        report(Problem("error", "call-not-json", f"a call cannot be read: {error}", path="chat"))
        return
    reading.add("chat", "assistant", before.strip() or None, tool_calls=[{"function": call}])


def read_call(text: str) -> dict[str, Any]:
    """Return the call {"name", "arguments"} of a text such as `{"name": "f", "arguments": '{"a": 1}'}`.

    The arguments are an object, a JSON text or None.

    Raises:
        ValueError: the text has no function name, or the arguments are not JSON.
    """
    text = text.strip().removesuffix("</functioncall>").strip()
    try:
        value = loads(text)
    except ValueError:
        value = None
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        return {"name": value["name"], "arguments": value.get("arguments")}
    name, arguments = _NAME.match(text), _ARGUMENTS.search(text)
    if name is None:
        raise ValueError("it has no function name")
    if arguments is None:
        return {"name": name[1], "arguments": None}
    rest = text[arguments.end() :]
    quoted = rest[1 : max(rest.rfind("'"), 1)] if rest.startswith("'") else rest.rstrip().removesuffix("}")
    try:
        loads(quoted)
    except ValueError:
        quoted = quoted.replace("\\'", "'")
        loads(quoted)
    return {"name": name[1], "arguments": quoted}


FORMATS = (RowFormat("glaive", _matches, _read, frozenset({"system", "chat"})),)
