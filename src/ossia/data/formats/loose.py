"""JSON as data sets really have it: quoted like Python, several objects in a row, or deeper than Python can go."""

from __future__ import annotations

import ast
import json
import warnings
from typing import Any

_DECODER = json.JSONDecoder()
_ATTEMPTS = 50  # braces that open no object, before a text is taken to hold no more


def loads(text: str) -> Any:
    """JSON. Raises only ValueError, also for nesting that exhausts Python's stack."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def loads_loosely(text: str) -> Any:
    """JSON, else a literal of Python ({'city': 'Oslo', 'now': True}). Raises only ValueError, with JSON's complaint."""
    try:
        return loads(text)
    except ValueError as error:
        complaint = error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" in somebody's data is not our syntax warning
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError(str(complaint)) from None


def objects_in(text: str) -> tuple[list[dict[str, Any]], str]:
    """The JSON objects in a text, one after the other, and the text around them."""
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
