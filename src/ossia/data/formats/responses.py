"""The format openai-responses: requests and responses of OpenAI's Responses API, item by item.

{"input": "text" | [items], "output": [items], "instructions"?, "tools"?: [...], "reasoning"?: {"effort"}, "text"?},
{"items": [items]}, or {"input": [items]} with the answer in it. Nemotron's {"input": [messages], "output": "text"} has
this format too. The items have a `type`:

    message                {"role", "content": "text" | [{"type": "input_text" | "output_text" | "refusal", ...}]}
    reasoning              {"content": [{"type": "reasoning_text", "text"}], "summary": [{"type": "summary_text", ...}]}
    function_call          {"call_id", "name", "arguments"}
    function_call_output   {"call_id", "output"}

A summary is used as the thought if there is no `reasoning_text`. Text of the assistant is a preamble if more of the
same turn follows. An output is moved next to its call. Items of built-in tools are reported and left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ossia.data.formats.reading import JsonRow, Misfit, Reading, RowFormat, add_system, listed
from ossia.errors import OnProblem, Problem
from ossia.harmony.from_openai import text_of

_OWN = ("function_call", "reasoning")  # items of the assistant that are not messages
_KEYS = frozenset({"input", "output", "items", "instructions", "tools", "reasoning", "text"})


def _matches(row: JsonRow) -> bool:
    if isinstance(row.get("items"), list):
        return True
    return "input" in row and (isinstance(row.get("output"), list) or isinstance(row["input"], list))


def _read(row: JsonRow, report: OnProblem) -> Reading:
    reading = Reading()
    add_system(reading, row)
    if row.get("instructions"):
        reading.add("instructions", "system", row["instructions"])
    items, paths = _items(row)
    _Items(reading, items, paths, report).read()
    _read_tools(reading, row.get("tools"), report)
    if isinstance(reasoning := row.get("reasoning"), Mapping):
        reading.effort, reading.effort_path = reasoning.get("effort"), "reasoning.effort"
    format = text.get("format") if isinstance(text := row.get("text"), Mapping) else None
    if isinstance(format, Mapping) and format.get("type") == "json_schema":
        reading.response_format, reading.response_format_path = format, "text.format"
    return reading


def _items(row: JsonRow) -> tuple[list[Any], list[str]]:
    items: list[Any] = []
    paths: list[str] = []
    for key in ("items", "input", "output"):
        value = row.get(key)
        if key == "input" and isinstance(value, str):
            items.append({"role": "user", "content": value})
            paths.append(key)
        elif key == "output" and isinstance(value, str) and not value.lstrip().startswith("[{"):
            items.append({"role": "assistant", "content": value})
            paths.append(key)
        elif value is not None:
            found = listed(value, key)
            items += found
            paths += [f"{key}[{index}]" for index in range(len(found))]
    if not items:
        raise Misfit("there are no items in `items`, `input` or `output`")
    return items, paths


def _read_tools(reading: Reading, tools: object, report: OnProblem) -> None:
    if not isinstance(tools, list):
        reading.tools = tools
        return
    kept = []
    for index, tool in enumerate(tools):
        kind = tool.get("type", "function") if isinstance(tool, Mapping) else "function"
        if kind == "function":
            kept.append(tool)
            reading.tool_paths.append(f"tools[{index}]")
        else:
            report(_left_out(f"the tool of type {kind!r} is not a function", f"tools[{index}]"))
    reading.tools = kept


class _Items:
    """A converter of items to chat messages. The order stays, except that every output follows its call."""

    def __init__(self, reading: Reading, items: Sequence[Any], paths: Sequence[str], report: OnProblem) -> None:
        self._reading, self._items, self._paths, self._report = reading, items, paths, report
        self._outputs: dict[str, list[int]] = {}
        """Call id -> indices of its outputs, last first."""
        for index in reversed(range(len(items))):
            if _kind(items[index]) == "function_call_output" and isinstance(id := items[index].get("call_id"), str):
                self._outputs.setdefault(id, []).append(index)
        self._done: set[int] = set()

    def read(self) -> None:
        for index, item in enumerate(self._items):
            if index in self._done:
                continue
            kind, path = _kind(item), self._paths[index]
            if not isinstance(item, Mapping):
                self._report(Problem("error", "not-an-object", "an item is not an object", path=path))
            elif kind == "message":
                self._read_message(index, item)
            elif kind == "reasoning":
                self._read_reasoning(item, path)
            elif kind == "function_call":
                self._read_call(index, item)
            elif kind == "function_call_output":
                self._read_output(index, item)
            else:
                self._report(_left_out(f"an item of type {kind!r} has no counterpart", path))

    def _read_message(self, index: int, item: Mapping[str, Any]) -> None:
        role, phase = item.get("role"), item.get("phase")
        goes_on = phase == "commentary" or (phase != "final_answer" and self._goes_on(index))
        channel = "commentary" if role == "assistant" and goes_on else None
        fields = {"channel": channel, "weight": item.get("weight"), "name": item.get("name")}
        self._reading.add(self._paths[index], str(role), item.get("content"), **fields)

    def _goes_on(self, index: int) -> bool:
        """Return whether an item of the assistant follows before a message of another role."""
        for later in range(index + 1, len(self._items)):
            kind = _kind(self._items[later])
            if kind == "message":
                return bool(self._items[later].get("role") == "assistant")
            if kind in _OWN:
                return True
        return False

    def _read_reasoning(self, item: Mapping[str, Any], path: str) -> None:
        thought = _parts(item.get("content")) or _parts(item.get("summary"))
        if thought:
            self._reading.add(path, "assistant", None, thinking=thought)
        else:
            self._report(_left_out("a reasoning item has no text (only a summary or `content` can be read)", path))

    def _read_call(self, index: int, item: Mapping[str, Any]) -> None:
        id = item.get("call_id")
        call = {"id": id, "function": {"name": item.get("name"), "arguments": item.get("arguments")}}
        outputs = self._outputs.get(id, []) if isinstance(id, str) else []
        while outputs and outputs[-1] < index:
            outputs.pop()
        messages = self._reading.messages
        # The call before has no output yet, so the calls are parallel.
        if not outputs and messages and "tool_calls" in messages[-1]:
            messages[-1]["tool_calls"].append(call)
            return
        self._reading.add(self._paths[index], "assistant", None, tool_calls=[call])
        if outputs:
            output = outputs.pop()
            self._done.add(output)
            self._read_output(output, self._items[output])

    def _read_output(self, index: int, item: Mapping[str, Any]) -> None:
        self._reading.add(self._paths[index], "tool", item.get("output"), tool_call_id=item.get("call_id"))


def _kind(item: object) -> object:
    """Return the type of an item. A message may lack the key `type`."""
    if not isinstance(item, Mapping):
        return None
    return item.get("type", "message" if "role" in item else None)


def _parts(value: object) -> str:
    """Return the thought in `content` or `summary` of a reasoning item, with its parts as paragraphs."""
    parts = [text_of([part]) for part in value] if isinstance(value, list) else [text_of(value)]
    return "\n\n".join(part for part in parts if part)


def _left_out(what: str, path: str) -> Problem:
    return Problem("warning", "responses-item", f"{what}: left out", path=path)


FORMATS = (RowFormat("openai-responses", _matches, _read, _KEYS),)
