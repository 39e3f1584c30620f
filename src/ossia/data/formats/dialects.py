"""Variants of OpenAI's chat messages. `as_chat` converts them to OpenAI's form, in every format.

    {"role": "Human", ...}, {"role": "model", ...}       gets the usual name of the role
    {"tool_calls": "[...]"}, {"function_call": "{...}"}  JSON text is parsed
    {"function_call": {"name": null, ...}}               from a table, means no call: left out
    {"content": [{"type": "tool_use", ...}]}             Anthropic's parts are converted:

    assistant   {"type": "thinking", "thinking"}           -> `thinking`
                {"type": "tool_use", "id", "name", "input"} -> `tool_calls`
    user        {"type": "tool_result", "tool_use_id", "content"} -> a message of role tool, before the user's text

Redacted thinking is encrypted, and is left out. All other parts stay in `content`. Only the exact names of roles are
converted. `ossia data check --fix` also corrects misspelt ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ossia.data.loose_json import loads_loosely
from ossia.harmony.from_openai import CHAT_ROLES

ROLE_OF = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot"), "assistant"),
    **dict.fromkeys(
        ("tool", "function", "observation", "function_response", "tool_response", "ipython", "environment"), "tool"
    ),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}
"""Name of a role in small letters -> system, user, assistant, tool or call."""
_CALLS = {"tool_calls": list, "function_call": Mapping}
_THOUGHTS = ("thinking", "redacted_thinking")


def as_chat(message: Any) -> list[Any]:
    """Return a message in OpenAI's form, as a list.

    A message with Anthropic's tool results gives several messages. Faulty values are returned unchanged.
    """
    if not isinstance(message, Mapping):
        return [message]
    changes: dict[str, Any] = {}
    if isinstance(role := message.get("role"), str) and role not in CHAT_ROLES:
        name = role.strip().lower()
        changes["role"] = name if name in CHAT_ROLES else _usual(name, role)
    for key, kind in _CALLS.items():
        if isinstance(text := message.get(key), str) and isinstance(value := _read(text), kind):
            changes[key] = value
    if isinstance(legacy := message.get("function_call"), Mapping) and not any(legacy.values()):
        changes["function_call"] = None
    changed = {**message, **changes} if changes else message
    return _without_parts(changed) if isinstance(message.get("content"), list) else [changed]


def _usual(name: str, otherwise: str) -> str:
    role = ROLE_OF.get(name, "call")
    return otherwise if role == "call" else role


def _read(text: str) -> object:
    try:
        return loads_loosely(text)
    except ValueError:
        return None


def _without_parts(message: Mapping[str, Any]) -> list[Any]:
    """Return the messages for one with a list of Anthropic's parts. Without such parts it is returned unchanged."""
    parts = message["content"]
    kinds = {part.get("type") for part in parts if isinstance(part, Mapping) and isinstance(part.get("type"), str)}
    if message.get("role") == "assistant" and kinds & {*_THOUGHTS, "tool_use"}:
        return [_assistant_of_parts(message, parts)]
    if message.get("role") in ("user", "tool") and "tool_result" in kinds:
        return _user_of_parts(message, parts)
    return [message]


def _assistant_of_parts(message: Mapping[str, Any], parts: list[Any]) -> dict[str, Any]:
    thoughts = [str(part["thinking"]) for part in _parts_of(parts, "thinking") if part.get("thinking")]
    calls = [
        {"id": part.get("id"), "function": {"name": part.get("name"), "arguments": part.get("input")}}
        for part in _parts_of(parts, "tool_use")
    ]
    made = {**message, "content": _others(parts, *_THOUGHTS, "tool_use") or None}
    made |= {"thinking": "\n\n".join(thoughts)} if thoughts else {}
    return made | ({"tool_calls": calls} if calls else {})


def _user_of_parts(message: Mapping[str, Any], parts: list[Any]) -> list[Any]:
    results = [
        {"role": "tool", "tool_call_id": part.get("tool_use_id"), "content": part.get("content") or ""}
        for part in _parts_of(parts, "tool_result")
    ]
    rest = _others(parts, "tool_result")
    return [*results, *([{**message, "role": "user", "content": rest}] if rest else [])]


def _parts_of(parts: list[Any], kind: str) -> list[Mapping[str, Any]]:
    return [part for part in parts if isinstance(part, Mapping) and part.get("type") == kind]


def _others(parts: list[Any], *kinds: str) -> list[Any]:
    return [part for part in parts if not isinstance(part, Mapping) or part.get("type") not in kinds]


def plain_tools(tools: object) -> object:
    """Return the value of `tools` with JSON texts parsed. The list and each tool may be JSON text."""
    if isinstance(tools, str) and isinstance(parsed := _read(tools), list):
        tools = parsed
    return [_plain_tool(tool) for tool in tools] if isinstance(tools, list) else tools


def _plain_tool(tool: object) -> object:
    value = _read(tool) if isinstance(tool, str) else None
    return value if isinstance(value, Mapping) else tool
