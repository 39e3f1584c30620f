"""Anthropic's content parts, made into OpenAI's messages.

    assistant   {"type": "thinking", "thinking"}           -> `thinking`
                {"type": "tool_use", "id", "name", "input"} -> `tool_calls`
    user        {"type": "tool_result", "tool_use_id", "content"} -> a message of role tool, before the user's text

Redacted thinking is encrypted and left out. All other parts stay in `content`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_THOUGHTS = ("thinking", "redacted_thinking")


def expand(message: Mapping[str, Any]) -> list[Any]:
    """The messages that one with a list of parts stands for; itself, if it has no parts of these kinds."""
    parts = message["content"]
    kinds = {part.get("type") for part in parts if isinstance(part, Mapping) and isinstance(part.get("type"), str)}
    if message.get("role") == "assistant" and kinds & {*_THOUGHTS, "tool_use"}:
        return [_assistant(message, parts)]
    if message.get("role") in ("user", "tool") and "tool_result" in kinds:
        return _user(message, parts)
    return [message]


def _assistant(message: Mapping[str, Any], parts: list[Any]) -> dict[str, Any]:
    thoughts = [str(part["thinking"]) for part in _of(parts, "thinking") if part.get("thinking")]
    calls = [
        {"id": part.get("id"), "function": {"name": part.get("name"), "arguments": part.get("input")}}
        for part in _of(parts, "tool_use")
    ]
    made = {**message, "content": _others(parts, *_THOUGHTS, "tool_use") or None}
    made |= {"thinking": "\n\n".join(thoughts)} if thoughts else {}
    return made | ({"tool_calls": calls} if calls else {})


def _user(message: Mapping[str, Any], parts: list[Any]) -> list[Any]:
    results = [
        {"role": "tool", "tool_call_id": part.get("tool_use_id"), "content": part.get("content") or ""}
        for part in _of(parts, "tool_result")
    ]
    rest = _others(parts, "tool_result")
    return [*results, *([{**message, "role": "user", "content": rest}] if rest else [])]


def _of(parts: list[Any], kind: str) -> list[Mapping[str, Any]]:
    return [part for part in parts if isinstance(part, Mapping) and part.get("type") == kind]


def _others(parts: list[Any], *kinds: str) -> list[Any]:
    return [part for part in parts if not isinstance(part, Mapping) or part.get("type") not in kinds]
