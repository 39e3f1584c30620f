"""What a chat request or a training row says beside its messages: tools, response formats, and effort in a text."""

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
_UNCONSTRAINED = ("text", "json_object")  # no schema: nothing to announce


def tools_from_chat(tools: object, report: OnProblem = raise_errors) -> tuple[ToolDescription, ...]:
    """The function tools of a chat request. A function without properties has no arguments: `() => any`."""
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
    """A name that can stand in a header: whitespace and angle brackets would end it there. Names of calls, tools and
    people all go through here, so that they still agree."""
    cleaned = _NOT_IN_NAMES.sub("_", name.strip())
    if cleaned != name:
        what = f"the name {name!r} cannot stand in a header: written {cleaned!r}"
        report(Problem("warning", "name", what, "use letters, digits, _, - and dots", path))
    return cleaned


def _parameters(function: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The JSON Schema of the arguments (`input_schema` in Anthropic's API); None for no arguments."""
    parameters = function.get("parameters") or function.get("input_schema")
    return parameters if isinstance(parameters, Mapping) and parameters.get("properties") else None


def response_formats_from_chat(value: object, report: OnProblem = raise_errors) -> tuple[ResponseFormat, ...]:
    """The `response_format` of Chat Completions or `text.format` of Responses, or a list of several.

    A schema stands in `json_schema` (Chat Completions) or beside the type (Responses). `text` and `json_object` have
    none, so that nothing is announced to the model.
    """
    if not value:
        return ()
    value = _parsed(value, "response_format", report)
    listed = value if isinstance(value, list) else [value]
    found = [_response_format(item, report) for item in listed if item]
    return tuple(one for one in found if one is not None)


def split_effort(text: str) -> tuple[str, Effort | None]:
    """Take `Reasoning: high` and the like, on a line of its own, out of a system text: (the rest, the effort).

    The model card of gpt-oss tells people to set the effort by this line in the system prompt. Blank lines around it
    go with it; of several lines the last counts. A sentence such as "Reasoning: high quality answers" stays.
    """
    if "reasoning" not in text.lower():
        return text, None
    effort: Effort | None = None
    kept: list[str] = []
    gap = False  # directly behind a line that was taken out
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
    """Rows of some data sets hold such fields as a JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except ValueError as error:
        report(Problem("error", key.replace("_", "-"), f"{key} is not JSON: {error}", path=key))
        return None
