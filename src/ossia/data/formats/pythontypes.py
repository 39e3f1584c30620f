"""Types of Python, as data sets write them for parameters, made into JSON Schema.

str, int, float, bool, list, dict, tuple, set, Any, None     also string, integer, number, boolean, array, object
List[T], Set[T], Tuple[A, B], Dict[K, V], Union[A, B], A | B, Optional[T]
"T, optional"                                                the parameter may be left out
"""

from __future__ import annotations

import re
from typing import Any

Schema = dict[str, Any]

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
_DEEPEST, _LONGEST = 20, 500  # nesting, characters; what goes beyond is no type
_OPTIONAL = re.compile(r",?[ ]?\(?optional\)?$", re.IGNORECASE)
_BRACKETS = {"[": "]", "(": ")"}


class UnknownType(Exception):  # noqa: N818
    """The text names no type; the message is the part that is not known."""


def schema_of(text: object) -> tuple[Schema, bool]:
    """The JSON Schema of a type, and whether the parameter is optional.

    Raises:
        UnknownType: a part of the text is no type.
    """
    if not isinstance(text, str) or len(text) > _LONGEST:
        raise UnknownType(repr(text))
    text = text.strip()
    bare = _OPTIONAL.sub("", text).strip() if text.lower() != "optional" else "any"
    optional = bare != text
    if bare.lower().startswith("optional[") and bare.endswith("]"):
        bare, optional = bare[len("optional[") : -1], True
    return _schema(bare, 0), optional


def _schema(text: str, depth: int) -> Schema:
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


def _plain(name: str) -> Schema:
    if name == "any":
        return {}
    return {"type": _TYPES[name], **({"uniqueItems": True} if name in ("set", "frozenset") else {})}


def _generic(name: str, arguments: list[str], text: str, depth: int) -> Schema:
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


def _one_of(schemas: list[Schema]) -> Schema:
    """The union. Harmony shows `oneOf` but not `anyOf`, so no value may fit two variants: integers are numbers."""
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
    """Cut at separators outside brackets."""
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
