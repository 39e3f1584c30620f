"""The format xlam, of Salesforce/xlam-function-calling-60k. A row has one question and its calls, without results.

{"query": "...", "answers": JSON text [{"name", "arguments"}], "tools": JSON text [{"name", "description",
"parameters": {"city": {"type": "str, optional", "description": "...", "default": "..."}}}]}

The parameters have Python types, which `schema_of` reads. A parameter is required if it has no default and is not
optional. A default of "" is left out of the schema. The model stops after each call, so only the first of several calls
is a target.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ossia.data.formats.reading import JsonRow, Misfit, Reading, RowFormat, add_system, row_thought
from ossia.data.formats.turns import calls_from
from ossia.data.loose_json import loads_loosely
from ossia.errors import OnProblem, Problem
from ossia.harmony.from_openai import THOUGHT_KEYS

_KEYS = frozenset({"query", "answers", "tools", "system", *THOUGHT_KEYS})

_Schema = dict[str, Any]
# Type of JSON Schema -> its names in Python and elsewhere.
_NAMES = {
    "string": ("str", "string", "text"),
    "integer": ("int", "integer"),
    "number": ("float", "number", "double", "complex"),
    "boolean": ("bool", "boolean"),
    "array": ("list", "array", "tuple", "set", "frozenset", "sequence", "iterable"),
    "object": ("dict", "object", "mapping"),
    "null": ("none", "nonetype", "null"),
}
_TYPES = {name: kind for kind, names in _NAMES.items() for name in names}
_DEEPEST, _LONGEST = 20, 500  # nesting, characters; longer or deeper text is not a type
_OPTIONAL = re.compile(r",?[ ]?\(?optional\)?$", re.IGNORECASE)
_BRACKETS = {"[": "]", "(": ")"}


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
        report(
            Problem(
                "warning", "several-calls", what, "add the results, because the model stops after each call", "answers"
            )
        )
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
    """Return the JSON Schema of a parameter, and whether it may be left out."""
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


class UnknownType(Exception):  # noqa: N818
    """A text is not a known type. The message is the unknown part."""


def schema_of(text: object) -> tuple[_Schema, bool]:
    """Return the JSON Schema of a Python type, and whether the parameter is optional.

        str, int, float, bool, list, dict, tuple, set, Any, None   also string, integer, number, boolean, array, object
        List[T], Set[T], Tuple[A, B], Dict[K, V], Union[A, B], A | B, Optional[T]
        "T, optional"                                              the parameter may be left out

    Raises:
        UnknownType: a part of the text is not a type.
    """
    if not isinstance(text, str) or len(text) > _LONGEST:
        raise UnknownType(repr(text))
    text = text.strip()
    bare = _OPTIONAL.sub("", text).strip() if text.lower() != "optional" else "any"
    optional = bare != text
    if bare.lower().startswith("optional[") and bare.endswith("]"):
        bare, optional = bare[len("optional[") : -1], True
    return _schema(bare, 0), optional


def _schema(text: str, depth: int) -> _Schema:
    text = text.strip().removeprefix("typing.").strip()
    if depth > _DEEPEST:
        raise UnknownType(text)
    choices = _cut(text, "|")
    if len(choices) > 1:
        return _one_of([_schema(choice, depth + 1) for choice in choices])
    name = text.lower()
    if name in _TYPES or name == "any":
        return _plain(name)
    name, bracket, inside = text.partition("[")
    if not bracket or not inside.endswith("]"):
        raise UnknownType(text)
    return _generic(name.strip().lower(), _cut(inside[:-1], ","), text, depth + 1)


def _plain(name: str) -> _Schema:
    if name == "any":
        return {}
    return {"type": _TYPES[name], **({"uniqueItems": True} if name in ("set", "frozenset") else {})}


def _generic(name: str, arguments: list[str], text: str, depth: int) -> _Schema:
    if name in ("union", "optional"):
        variants = [_schema(argument, depth) for argument in arguments]
        return _one_of([*variants, {"type": "null"}] if name == "optional" else variants)
    if name == "literal":
        return {"enum": [argument.strip().strip("'\"") for argument in arguments], "type": "string"}
    if _TYPES.get(name) == "object":
        value = _schema(arguments[-1], depth)
        return {"type": "object", "additionalProperties": value} if value else {"type": "object"}
    if _TYPES.get(name) != "array":
        raise UnknownType(text)
    items = [_schema(argument, depth) for argument in arguments if argument.strip() != "..."]
    schema = {**_plain(name), "items": _one_of(items)}
    if name == "tuple" and len(items) == len(arguments) > 1:
        schema |= {"minItems": len(items), "maxItems": len(items)}
    return schema


def _one_of(schemas: list[_Schema]) -> _Schema:
    """Return the union of schemas as `oneOf`, because Harmony's rendering has no `anyOf`.

    No value may fit two variants of `oneOf`. So `integer` is dropped if `number` is a variant too.
    """
    distinct = [schema for index, schema in enumerate(schemas) if schema not in schemas[:index]]
    if {"type": "number"} in distinct:
        distinct = [schema for schema in distinct if schema != {"type": "integer"}]
    if not distinct or {} in distinct:
        return {}
    if len(distinct) == 1:
        return distinct[0]
    if all(schema.keys() == {"type"} and isinstance(schema["type"], str) for schema in distinct):
        return {"type": [schema["type"] for schema in distinct]}
    return {"oneOf": distinct}


def _cut(text: str, separator: str) -> list[str]:
    """Return the parts of a text between separators outside brackets."""
    parts, depth, start = [], 0, 0
    for index, letter in enumerate(text):
        if letter in _BRACKETS:
            depth += 1
        elif letter in _BRACKETS.values():
            depth -= 1
        elif letter == separator and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    return [*parts, text[start:]]


FORMATS = (RowFormat("xlam", _matches, _read, _KEYS),)
