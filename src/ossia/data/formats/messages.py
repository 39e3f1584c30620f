"""Formats with a list of chat messages, or with one text for each part of an exchange.

openai                  {"messages": [...], "tools"?: [...]}, also with thinking / reasoning / reasoning_content,
                        weights, legacy functions and Harmony channels. OpenAI's fine-tuning API, TRL and most tools
                        use this format
multilingual-thinking   HuggingFaceH4/Multilingual-Thinking: `messages`, or the strings
                        reasoning_language, developer, user, analysis, final
prompt-completion       {"prompt": ..., "completion": ...}, both text or lists of messages, optionally with
                        `thinking` (or `reasoning`, `reasoning_content`) and `system`. PAIRS has other column names
alpaca                  {"instruction", "input"?, "output", "system"?, "history"?: [[user, assistant], ...]}
"""

from __future__ import annotations

from collections.abc import Mapping

from ossia.data.formats.reading import JsonRow, Misfit, Reading, RowFormat, add_system, listed, row_thought
from ossia.errors import OnProblem, Problem
from ossia.harmony.from_openai import THOUGHT_KEYS

_PARTS = ("reasoning_language", "developer", "user", "analysis", "final")
_TOOLS = ("tools", "functions")


def read_openai(row: JsonRow, _report: OnProblem) -> Reading:
    """Return the reading of a row with OpenAI's `messages`."""
    reading = Reading(tools=row.get("tools") or row.get("functions"))
    reading.tools_path = "tools" if row.get("tools") else "functions"
    reading.response_format = row.get("response_format")
    messages = listed(row.get("messages"), "messages")
    add_system(reading, row, messages[0] if messages else None)
    reading.extend(messages, "messages")
    _add_thought(reading, row)
    return reading


def _add_thought(reading: Reading, row: JsonRow) -> None:
    """Add a thought from a separate column to the row's only answer, if it ends the row and has no thought."""
    spoken = [message for message in reading.messages if _role(message) == "assistant"]
    if len(spoken) != 1 or spoken[0] is not reading.messages[-1]:
        return
    last = spoken[0]
    has_own = any(last.get(key) for key in (*THOUGHT_KEYS, "channel")) or "think>" in str(last.get("content"))
    if not has_own and (thought := row_thought(reading, row)) is not None:
        reading.messages[-1] = {**last, "thinking": thought}


def _role(message: object) -> object:
    return message.get("role") if isinstance(message, Mapping) else None


def _is_multilingual(row: JsonRow) -> bool:
    return "reasoning_language" in row and ("messages" in row or {"user", "final"} <= row.keys())


def _read_multilingual(row: JsonRow, report: OnProblem) -> Reading:
    if "messages" in row:
        return read_openai(row, report)
    parts = {key: row.get(key) for key in _PARTS}
    for key, part in parts.items():
        if not isinstance(part, str):
            raise Misfit(f"there is no `messages`, and `{key}` is not text")
    reading = Reading()
    # This is the text of the system message in the data set's own `messages`.
    reading.add("developer", "system", f"reasoning language: {parts['reasoning_language']}\n\n{parts['developer']}")
    reading.add("user", "user", parts["user"])
    reading.add("final", "assistant", parts["final"], thinking=parts["analysis"])
    return reading


PAIRS = (  # columns of question and answer. The first pair in a row is used
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "response"),
    ("question", "response"),
    ("question", "answer"),
    ("query", "response"),
    ("problem", "generated_solution"),
    ("problem", "solution"),
    ("input", "output"),
)


def _pair(row: JsonRow) -> tuple[str, str] | None:
    """Return the columns of question and answer. Except for prompt and completion, both must be text."""
    if "prompt" in row and "completion" in row:
        return PAIRS[0]
    for pair in PAIRS[1:]:
        if all(isinstance(row.get(key), str) for key in pair):
            return pair
    return None


def _read_prompt_completion(row: JsonRow, _report: OnProblem) -> Reading:
    asked, said = _pair(row) or PAIRS[0]
    prompt, completion = row.get(asked), row.get(said)
    reading = Reading(tools=row.get("tools") or row.get("functions"), used={asked, said})
    reading.response_format = row.get("response_format")
    if isinstance(prompt, str):
        add_system(reading, row)
        reading.add(asked, "user", _with_context(reading, row, prompt) if asked != "prompt" else prompt)
    else:
        messages = listed(prompt, asked)
        add_system(reading, row, messages[0] if messages else None)
        reading.extend(messages, asked)
    reading.given()
    if isinstance(completion, str):
        reading.add(said, "assistant", completion, thinking=row_thought(reading, row))
    else:
        reading.extend(listed(completion, said), said)
    return reading


def _with_context(reading: Reading, row: JsonRow, question: str) -> str:
    """Return the question with the row's `context` below it. Dolly has this column, as alpaca has `input`."""
    context = row.get("context")
    if not isinstance(context, str) or not context:
        return question
    reading.used.add("context")
    return f"{question}\n{context}"


def _read_alpaca(row: JsonRow, report: OnProblem) -> Reading:
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
    reading.add("output", "assistant", row["output"], thinking=row_thought(reading, row))
    return reading


def _add_history(reading: Reading, history: object, report: OnProblem) -> None:
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
        lambda row: _pair(row) is not None,
        _read_prompt_completion,
        frozenset({"system", "response_format", *THOUGHT_KEYS, *_TOOLS}),
    ),
)
