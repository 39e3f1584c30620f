"""The parts of a chat request or training row besides its messages: tools, response formats, and effort in a text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ossia.config import EFFORTS, Effort
from ossia.errors import OnProblem, Problem, raise_errors
from ossia.harmony.conversation import ResponseFormat, ToolDescription

_EFFORT_KEYS = ("reasoning:", "reasoning effort:")
_NOT_IN_NAMES = re.compile(r"[\s<>\x00-\x1f\x7f]+")
_UNCONSTRAINED = ("text", "json_object")  # types without a schema


def tools_from_chat(tools: object, report: OnProblem = raise_errors) -> tuple[ToolDescription, ...]:
    """Return the function tools of a chat request. A function without properties takes no arguments: `() => any`.

    Args:
        tools: the list `tools` (or legacy `functions`), or the same as a JSON text.
        report: called with every problem. By default errors raise UserError. With another function, a faulty tool is
            left out.
    """
    if not tools:
        return ()
    tools = _parsed(tools, "tools", report)
    if not isinstance(tools, list):
        if tools:
            report(Problem("error", "tools", "tools is not a list", path="tools"))
        return ()
    found: list[ToolDescription] = []
    for index, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            report(Problem("error", "tools", "a tool without a function name", path=f"tools[{index}]"))
            continue
        name = clean_name(function["name"], f"tools[{index}]", report)
        if any(name == other.name for other in found):
            report(Problem("warning", "tools", f"the tool {name} is declared twice", "keep one", f"tools[{index}]"))
        description = function.get("description")
        found.append(ToolDescription(name, str(description or ""), _parameters(function)))
    return tuple(found)


def clean_name(name: str, path: str, report: OnProblem) -> str:
    """Return the name with "_" in place of whitespace and angle brackets, which would end a name in a header.

    Names of calls, tools and people all pass through this function, so that equal names stay equal. A changed name is
    reported as a warning.
    """
    cleaned = _NOT_IN_NAMES.sub("_", name.strip())
    if cleaned != name:
        what = f"the name {name!r} cannot stand in a header: written {cleaned!r}"
        report(Problem("warning", "name", what, "use letters, digits, _, - and dots", path))
    return cleaned


def _parameters(function: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the JSON Schema of the arguments (`input_schema` in Anthropic's API), or None for no arguments."""
    parameters = function.get("parameters") or function.get("input_schema")
    return parameters if isinstance(parameters, Mapping) and parameters.get("properties") else None


def response_formats_from_chat(value: object, report: OnProblem = raise_errors) -> tuple[ResponseFormat, ...]:
    """Return the response formats in a chat request.

    Args:
        value: `response_format` of Chat Completions or `text.format` of Responses, a list of such, or a JSON text of
            either. The schema is in `json_schema` (Chat Completions) or beside the type (Responses). The types `text`
            and `json_object` have no schema and are not announced to the model.
        report: called with every problem. By default errors raise UserError. With another function, a faulty format
            is left out.
    """
    if not value:
        return ()
    value = _parsed(value, "response_format", report)
    listed = value if isinstance(value, list) else [value]
    found = [_response_format(item, report) for item in listed if item]
    return tuple(one for one in found if one is not None)


def split_effort(text: str) -> tuple[str, Effort | None]:
    """Return a system text without lines such as `Reasoning: high`, and the effort that they set (None without one).

    The model card of gpt-oss tells users to set the effort by such a line in the system prompt. Blank lines around it
    are removed too. If there are several, the last one counts. "Reasoning: high quality answers" stays.
    """
    if "reasoning" not in text.lower():
        return text, None
    effort: Effort | None = None
    kept: list[str] = []
    gap = False  # whether the previous line was taken out
    for line in text.split("\n"):
        if (found := _effort_of(line)) is not None:
            effort, gap = found, True
        elif not gap or line.strip() or (kept and kept[-1].strip()):
            kept.append(line)
            gap = False
    return (text, None) if effort is None else ("\n".join(kept).strip("\r\n"), effort)


def _effort_of(line: str) -> Effort | None:
    words = line.strip().lower()
    for key in _EFFORT_KEYS:
        if words.startswith(key) and (word := words.removeprefix(key).strip()) in EFFORTS:
            return word
    return None


def _response_format(item: Any, report: OnProblem) -> ResponseFormat | None:
    if isinstance(item, Mapping) and item.get("type") in _UNCONSTRAINED:
        return None
    body = item.get("json_schema", item) if isinstance(item, Mapping) else None
    if not isinstance(body, Mapping) or not isinstance(body.get("schema"), Mapping):
        what, do = "a response format without a JSON Schema", 'it goes as in {"type": "json_schema", "json_schema": …}'
        report(Problem("error", "response-format", what, do, "response_format"))
        return None
    if not isinstance(body.get("name"), str):
        report(Problem("error", "response-format", "a response format without a name", path="response_format"))
        return None
    return ResponseFormat(body["name"], body["schema"], str(body.get("description") or ""))


def _parsed(value: object, key: str, report: OnProblem) -> object:
    """Return the field, parsed if it is a JSON text. Some data sets store tools and formats in that way."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except ValueError as error:
        report(Problem("error", key.replace("_", "-"), f"{key} is not JSON: {error}", path=key))
        return None
