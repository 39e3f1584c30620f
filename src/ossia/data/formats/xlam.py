"""xlam: Salesforce/xlam-function-calling-60k. One question and the calls that answer it, without their results.

{"query": "...", "answers": JSON text [{"name", "arguments"}], "tools": JSON text [{"name", "description",
"parameters": {"city": {"type": "str, optional", "description": "...", "default": "..."}}}]}

The parameters are types of Python, see `pythontypes`. A parameter is required if it has no default and is not
optional; a default of "" means that there is none to speak of, and is left out. The model stops after each call, so of
several only the first is a target.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ossia.data.formats.loose import loads_loosely
from ossia.data.formats.pythontypes import UnknownType, schema_of
from ossia.data.formats.reading import JsonRow, Misfit, Reading, RowFormat, add_system, row_thought
from ossia.data.formats.turns import calls_from
from ossia.harmony.from_openai import THOUGHT_KEYS
from ossia.harmony.problem import OnProblem, Problem

_KEYS = frozenset({"query", "answers", "tools", "system", *THOUGHT_KEYS})


def _matches(row: JsonRow) -> bool:
    return "query" in row and "answers" in row and "tools" in row


def _read(row: JsonRow, report: OnProblem) -> Reading:
    if not isinstance(row.get("query"), str):
        raise Misfit("`query` is not text")
    reading = Reading(tools=_tools(row.get("tools"), report))
    add_system(reading, row)
    reading.add("query", "user", row["query"])
    answers = row.get("answers")
    if answers is None:
        raise Misfit("`answers` is null")
    calls = calls_from(answers, "answers", report)
    if len(calls) > 1:
        names = ", ".join(call["name"] for call in calls[1:6])
        what = f"{len(calls)} calls without results: only the first is a target, not {names}"
        report(Problem("warning", "several-calls", what, "the model stops after each call; give results", "answers"))
    if calls:
        tool_calls = [{"function": calls[0]}]
        reading.add("answers", "assistant", None, thinking=row_thought(reading, row), tool_calls=tool_calls)
    return reading


def _tools(tools: object, report: OnProblem) -> object:
    if isinstance(tools, str):
        try:
            tools = loads_loosely(tools)
        except ValueError as error:
            report(Problem("error", "tools", f"tools is not JSON: {error}", path="tools"))
            return None
    if not isinstance(tools, list):
        return tools
    return [_tool(tool, f"tools[{index}]", report) for index, tool in enumerate(tools)]


def _tool(tool: object, path: str, report: OnProblem) -> object:
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(parameters := inner.get("parameters"), Mapping):
        return tool
    if isinstance(parameters.get("properties"), Mapping):  # JSON Schema already
        return tool
    properties: dict[str, Any] = {}
    required = []
    for name, parameter in parameters.items():
        place = f"{path}.parameters.{name}"
        if not isinstance(parameter, Mapping):
            report(Problem("error", "tools", "a parameter is not an object", path=place))
            continue
        properties[name], optional = _property(parameter, place, report)
        if not optional:
            required.append(name)
    schema = {"type": "object", "properties": properties, "required": required}
    return {"name": inner.get("name"), "description": inner.get("description"), "parameters": schema}


def _property(parameter: Mapping[str, Any], path: str, report: OnProblem) -> tuple[dict[str, Any], bool]:
    """The JSON Schema of a parameter, and whether it may be left out."""
    schema: dict[str, Any] = {}
    optional = False
    try:
        schema, optional = schema_of(parameter.get("type"))
    except UnknownType as error:
        what = f"the type {str(error)[:80]!r} is not known: taken as any"
        report(Problem("warning", "tool-type", what, "write a type of Python or JSON Schema", f"{path}.type"))
    if isinstance(description := parameter.get("description"), str):
        schema["description"] = description
    default = parameter.get("default")
    if default is not None and default != "":
        schema["default"] = default
    return schema, optional or "default" in parameter or parameter.get("required") is False


FORMATS = (RowFormat("xlam", _matches, _read, _KEYS),)
