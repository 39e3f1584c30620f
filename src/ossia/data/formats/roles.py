"""The many names of roles, and chat messages that are nearly OpenAI's: `as_chat` makes them so, wherever they stand.

    {"role": "Human", ...}, {"role": "model", ...}       the role by its usual name
    {"tool_calls": "[...]"}, {"function_call": "{...}"}  JSON text: read
    {"function_call": {"name": null, ...}}               a table's way to say that there is none: left out
    {"content": [{"type": "tool_use", ...}]}             Anthropic's parts, see `anthropic`

Only exact names count; a guess is for `ossia data check --fix`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ossia.data.formats.anthropic import expand
from ossia.data.formats.loose import loads_loosely
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
_CALLS = {"tool_calls": list, "function_call": Mapping}


def as_chat(message: Any) -> list[Any]:
    """The message as OpenAI writes it; several, if one of Anthropic's holds tool results. Faults stay as they are."""
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
    return expand(changed) if isinstance(message.get("content"), list) else [changed]


def _usual(name: str, otherwise: str) -> str:
    role = ROLE_OF.get(name, "call")
    return otherwise if role == "call" else role


def _read(text: str) -> object:
    try:
        return loads_loosely(text)
    except ValueError:
        return None


def plain_tools(tools: object) -> object:
    """The list `tools`, where each tool may be JSON text of its own."""
    if isinstance(tools, str) and isinstance(parsed := _read(tools), list):
        tools = parsed
    return [_plain_tool(tool) for tool in tools] if isinstance(tools, list) else tools


def _plain_tool(tool: object) -> object:
    value = _read(tool) if isinstance(tool, str) else None
    return value if isinstance(value, Mapping) else tool
