"""Lenient readers of JSON as data sets contain it.

They read Python literals in place of JSON, several objects in one text, and JSON in the cells of a table. Nesting that
exceeds Python's stack raises a ValueError.
"""

from __future__ import annotations

import ast
import json
import warnings
from typing import Any

_DECODER = json.JSONDecoder()
_ATTEMPTS = 50  # number of opening braces without an object, after which the search in a text ends

_LISTS = (  # columns with lists and objects, which a cell contains as JSON text
    "messages", "functions", "conversations", "conversation", "items", "history", "preferred_output",
    "non_preferred_output", "preferred_completion", "non_preferred_completion", "generations",
    "correctness_math_verify", "correctness_llama", "is_reasoning_complete", "finish_reasons", "chat_template_kwargs",
)  # fmt: skip
_TEXT_TOO = ("prompt", "completion", "input", "output", "chosen", "rejected", "tools")
"""Columns that have a list or a text. A text can be valid JSON by chance, such as the answer to "Sort these"."""
_ITEMS = ("message", "reasoning", "function_call", "function_call_output", "function")


def loads(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: the text is not JSON, or its nesting exceeds Python's stack. Nothing else is raised.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def loads_loosely(text: str) -> Any:
    """Return the value of a JSON text or of a Python literal, such as {'city': 'Oslo', 'now': True}.

    Raises:
        ValueError: the text is neither. The message is that of the JSON parser. Nothing else is raised.
    """
    try:
        return loads(text)
    except ValueError as error:
        complaint = error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as a SyntaxWarning about "\d" in the data
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError(str(complaint)) from None


def objects_in(text: str) -> tuple[list[dict[str, Any]], str]:
    """Return the JSON objects in a text, in their order, and the text around them."""
    found: list[dict[str, Any]] = []
    around: list[str] = []
    position = failures = 0
    while failures < _ATTEMPTS and (opening := text.find("{", position)) >= 0:
        around.append(text[position:opening])
        try:
            value, position = _DECODER.raw_decode(text, opening)
            found.append(value)
        except (ValueError, RecursionError):
            around.append("{")
            position, failures = opening + 1, failures + 1
    return found, "".join([*around, text[position:]])


def row_of_cells(cells: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a table with its lists and objects parsed.

    Empty cells in columns of lists are removed. The unnamed index column that pandas writes is removed too.

    Raises:
        ValueError: a cell that must be a list or an object is neither JSON nor a Python literal.
    """
    value = dict(cells)
    if next(iter(value), None) == "":
        del value[""]
    for column in (*_LISTS, *_TEXT_TOO):
        text = value.get(column, "")
        if column in _LISTS and not text.strip():
            value.pop(column, None)
        if not text.lstrip().startswith(("[", "{")):
            continue
        try:
            parsed = loads_loosely(text)  # pandas writes lists as Python literals
        except ValueError as error:
            if column in _LISTS:
                raise ValueError(f"column {column} is not JSON: {error}") from None
            continue
        if column in _LISTS or _is_structure(parsed):
            value[column] = parsed
    return value


def _is_structure(value: object) -> bool:
    """Return whether a JSON value from a cell is a list of messages, items or tools, or an object with messages."""
    if isinstance(value, dict):
        return isinstance(value.get("messages"), list)
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) and _is_item(item) for item in value)


def _is_item(item: dict[str, Any]) -> bool:
    is_message = ("role" in item and item.keys() & {"content", "tool_calls"}) or item.keys() >= {"from", "value"}
    is_tool = "name" in item and item.keys() & {"parameters", "input_schema"}
    return bool(is_message or is_tool) or item.get("type") in _ITEMS
