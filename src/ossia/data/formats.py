"""Row formats, recognised by their keys and made into conversations.

openai                  {"messages": [...], "tools": [...]}, also with thinking / reasoning_content, weights,
                        legacy functions; what OpenAI's fine-tuning API, TRL and most tools write
multilingual-thinking   HuggingFaceH4/Multilingual-Thinking: `messages`, or the strings
                        reasoning_language, developer, user, analysis, final
prompt-completion       {"prompt": ..., "completion": ...}, both text or lists of messages, optionally with
                        `thinking` (or `reasoning`, `reasoning_content`) and `system`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ossia.data.settings import DEFAULTS, DataSettings, Format
from ossia.errors import UserError
from ossia.harmony.chat import THOUGHT_KEYS, conversation_from_chat
from ossia.harmony.conversation import Conversation, Effort
from ossia.harmony.problem import Problem, Report, raise_errors

_PARTS = ("reasoning_language", "developer", "user", "analysis", "final")
_NOT_EXTRA = ("messages", "tools", "functions", "prompt", "completion", "chat_template_kwargs", "parallel_tool_calls")
_EFFORTS: tuple[Effort, ...] = ("low", "medium", "high")


def detect(row: Mapping[str, Any]) -> Format:
    """The format of a row.

    Raises:
        UserError: no known format; the message names the keys that were found.
    """
    if "reasoning_language" in row and ("messages" in row or {"user", "final"} <= row.keys()):
        return "multilingual-thinking"
    if "messages" in row:
        return "openai"
    if {"prompt", "completion"} <= row.keys():
        return "prompt-completion"
    raise UserError(
        f"Unknown row format with the keys {', '.join(map(str, row)) or '(none)'}",
        do='write {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'
        ' or {"prompt": "...", "completion": "..."}',
    )


def to_conversation(
    row: Mapping[str, Any], settings: DataSettings = DEFAULTS, source: str = "", report: Report = raise_errors
) -> Conversation:
    """Make a conversation of a row.

    Args:
        report: gets every problem; by default errors are raised as UserError.

    Raises:
        UserError: the row is in no known format, or not in the one that the settings demand.
    """
    format = detect(row) if settings.format == "auto" else settings.format
    readers = {"openai": _chat, "multilingual-thinking": _multilingual, "prompt-completion": _prompt_completion}
    messages, path = readers[format](row)
    if not isinstance(messages, list):
        keys = ", ".join(map(str, row)) or "(none)"
        raise UserError(f"Not a row of the format {format}: `{path}` is not a list of messages; keys: {keys}")
    effort, identity = _row_settings(row, report)
    extra = {key: value for key, value in row.items() if key not in _NOT_EXTRA and value is not None}
    if format == "multilingual-thinking":
        extra = {key: value for key, value in extra.items() if key not in _PARTS[1:]}
    return conversation_from_chat(
        messages,
        row.get("tools") or row.get("functions"),
        system=settings.system(effort, identity),
        source=source,
        extra=extra,
        report=report,
        path=path,
    )


def _chat(row: Mapping[str, Any]) -> tuple[object, str]:
    return row.get("messages"), "messages"


def _multilingual(row: Mapping[str, Any]) -> tuple[object, str]:
    if "messages" in row:
        return row["messages"], "messages"
    parts = {key: row.get(key) for key in _PARTS}
    if not all(isinstance(part, str) for part in parts.values()):
        return None, "messages"
    # The data set's own `messages` put the language in front of the developer text in just this way.
    system = f"reasoning language: {parts['reasoning_language']}\n\n{parts['developer']}"
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": parts["user"]},
        {"role": "assistant", "content": parts["final"], "thinking": parts["analysis"]},
    ], "messages"


def _prompt_completion(row: Mapping[str, Any]) -> tuple[object, str]:
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(completion, str):
        thinking = next((row[key] for key in THOUGHT_KEYS if isinstance(row.get(key), str)), None)
        completion = [{"role": "assistant", "content": completion, "thinking": thinking}]
    if not isinstance(prompt, list) or not isinstance(completion, list):
        return None, "prompt" if not isinstance(prompt, list) else "completion"
    system = [{"role": "system", "content": row["system"]}] if isinstance(row.get("system"), str) else []
    return system + prompt + completion, "prompt+completion"


def _row_settings(row: Mapping[str, Any], report: Report) -> tuple[Effort | None, str | None]:
    """Reasoning effort and identity that the row itself asks for (TRL's `chat_template_kwargs`, or at the top)."""
    kwargs = row.get("chat_template_kwargs")
    chosen = {**row, **kwargs} if isinstance(kwargs, Mapping) else row
    effort, identity = chosen.get("reasoning_effort"), chosen.get("model_identity")
    if effort is not None and effort not in _EFFORTS:
        what = f"reasoning_effort is {effort!r}, not {', '.join(_EFFORTS)}"
        report(Problem("error", "effort", what, path="reasoning_effort"))
        effort = None
    known = next((name for name in _EFFORTS if name == effort), None)
    return known, identity if isinstance(identity, str) else None
