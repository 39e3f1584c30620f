"""Rows that hold chat messages, or a text for each part of one exchange.

openai                  {"messages": [...], "tools"?: [...]}, also with thinking / reasoning / reasoning_content,
                        weights, legacy functions, Harmony channels; what OpenAI's fine-tuning API, TRL and most tools
                        write
multilingual-thinking   HuggingFaceH4/Multilingual-Thinking: `messages`, or the strings
                        reasoning_language, developer, user, analysis, final
prompt-completion       {"prompt": ..., "completion": ...}, both text or lists of messages, optionally with
                        `thinking` (or `reasoning`, `reasoning_content`) and `system`
alpaca                  {"instruction", "input"?, "output", "system"?, "history"?: [[user, assistant], ...]}
"""

from __future__ import annotations

from ossia.data.formats.reading import Misfit, Reading, Row, RowFormat, add_system, listed, row_thought
from ossia.harmony.chat import THOUGHT_KEYS
from ossia.harmony.problem import Problem, Report

_PARTS = ("reasoning_language", "developer", "user", "analysis", "final")
_TOOLS = ("tools", "functions")


def read_openai(row: Row, _report: Report) -> Reading:
    """Take over the messages."""
    reading = Reading(tools=row.get("tools") or row.get("functions"))
    reading.tools_path = "tools" if row.get("tools") else "functions"
    reading.response_format = row.get("response_format")
    reading.extend(listed(row.get("messages"), "messages"), "messages")
    return reading


def _is_multilingual(row: Row) -> bool:
    return "reasoning_language" in row and ("messages" in row or {"user", "final"} <= row.keys())


def _read_multilingual(row: Row, report: Report) -> Reading:
    if "messages" in row:
        return read_openai(row, report)
    parts = {key: row.get(key) for key in _PARTS}
    for key, part in parts.items():
        if not isinstance(part, str):
            raise Misfit(f"there is no `messages`, and `{key}` is not text")
    reading = Reading()
    # The data set's own `messages` put the language in front of the developer text in just this way.
    reading.add("developer", "system", f"reasoning language: {parts['reasoning_language']}\n\n{parts['developer']}")
    reading.add("user", "user", parts["user"])
    reading.add("final", "assistant", parts["final"], thinking=parts["analysis"])
    return reading


def _read_prompt_completion(row: Row, _report: Report) -> Reading:
    prompt, completion = row.get("prompt"), row.get("completion")
    reading = Reading(tools=row.get("tools") or row.get("functions"))
    reading.response_format = row.get("response_format")
    add_system(reading, row)
    if isinstance(prompt, str):
        reading.add("prompt", "user", prompt)
    else:
        reading.extend(listed(prompt, "prompt"), "prompt")
    reading.given()
    if isinstance(completion, str):
        reading.add("completion", "assistant", completion, thinking=row_thought(row))
    else:
        reading.extend(listed(completion, "completion"), "completion")
    return reading


def _read_alpaca(row: Row, report: Report) -> Reading:
    reading = Reading(tools=row.get("tools"))
    add_system(reading, row)
    _add_history(reading, row.get("history"), report)
    instruction, input = row.get("instruction"), row.get("input")
    for key in ("instruction", "output"):
        if not isinstance(row.get(key), str):
            raise Misfit(f"`{key}` is not text")
    if input is not None and not isinstance(input, str):
        report(Problem("error", "not-text", "input is not text", path="input"))
        input = None
    reading.add("instruction", "user", f"{instruction}\n{input}" if input else instruction)
    reading.add("output", "assistant", row["output"], thinking=row_thought(row))
    return reading


def _add_history(reading: Reading, history: object, report: Report) -> None:
    if not isinstance(history or [], list):
        report(Problem("error", "history", "history is not a list of pairs [user, assistant]", path="history"))
        return
    for index, pair in enumerate(history if isinstance(history, list) else []):
        if not isinstance(pair, list) or len(pair) != 2:
            what = "an item of history is not a pair [user, assistant]"
            report(Problem("error", "history", what, path=f"history[{index}]"))
            continue
        reading.add(f"history[{index}][0]", "user", pair[0])
        reading.add(f"history[{index}][1]", "assistant", pair[1])


FORMATS = (
    RowFormat(
        "multilingual-thinking",
        _is_multilingual,
        _read_multilingual,
        frozenset({*_PARTS[1:], "messages", "response_format", *_TOOLS}),
    ),
    RowFormat(
        "openai", lambda row: "messages" in row, read_openai, frozenset({"messages", "response_format", *_TOOLS})
    ),
    RowFormat(
        "alpaca",
        lambda row: "instruction" in row and "output" in row,
        _read_alpaca,
        frozenset({"instruction", "input", "output", "system", "history", "tools", *THOUGHT_KEYS}),
    ),
    RowFormat(
        "prompt-completion",
        lambda row: "prompt" in row and "completion" in row,
        _read_prompt_completion,
        frozenset({"prompt", "completion", "system", "response_format", *THOUGHT_KEYS, *_TOOLS}),
    ),
)
