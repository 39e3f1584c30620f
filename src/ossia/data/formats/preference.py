"""Preference pairs: a prompt, the better alternative and the worse one.

openai-preference   {"input": {"messages", "tools"?, "parallel_tool_calls"?}, "preferred_output": [message],
                    "non_preferred_output": [message]}. In an older specification the keys are preferred_completion
                    and non_preferred_completion
trl-preference      {"prompt", "chosen", "rejected"}, each text or a list of messages. Without `prompt`, the other two
                    begin with the same messages, or are transcripts "\\n\\nHuman: ...\\n\\nAssistant: ..."

The conversation ends with the better alternative. `Conversation.rejected` is the worse one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ossia.data.formats.dialects import as_chat
from ossia.data.formats.reading import JsonRow, Misfit, Reading, RowFormat, add_system, listed
from ossia.errors import OnProblem, Problem

_PREFERRED = ("preferred_output", "preferred_completion")
_REJECTED = ("non_preferred_output", "non_preferred_completion")
_SPEAKER = re.compile(r"(?:\A\s{0,20}|(?<=\n\n))(Human|Assistant):")
_OUTPUTS = ("assistant", "tool", "function")


def _matches_openai(row: JsonRow) -> bool:
    return "input" in row and any(key in row for key in _PREFERRED)


def _read_openai(row: JsonRow, report: OnProblem) -> Reading:
    input = row.get("input")
    if not isinstance(input, Mapping):
        raise Misfit("`input` is not an object with `messages`")
    reading = Reading(tools=input.get("tools"), tools_path="input.tools")
    reading.response_format, reading.response_format_path = input.get("response_format"), "input.response_format"
    reading.extend(listed(input.get("messages"), "input.messages"), "input.messages")
    reading.given()
    reading.rejected = Reading()
    better, worse = (next((key for key in keys if key in row), keys[0]) for keys in (_PREFERRED, _REJECTED))
    _add_output(reading, row.get(better), better)
    _add_output(reading.rejected, row.get(worse), worse)
    _compare(reading, better, worse, report)
    return reading


def _read_trl(row: JsonRow, report: OnProblem) -> Reading:
    reading = Reading(tools=row.get("tools"))
    chosen, rejected = (_alternative(row.get(key), key) for key in ("chosen", "rejected"))
    prompt = row.get("prompt")
    shared = _shared(chosen.messages, rejected.messages)
    first = chosen.messages if shared else prompt
    add_system(reading, row, first[0] if isinstance(first, list) and first else None)
    if shared == 0 and prompt is None:
        what = "there is no `prompt`, and chosen and rejected do not begin with the same messages"
        report(Problem("error", "no-prompt", what, "add the column `prompt`", "chosen"))
    elif shared:  # the alternatives contain their prompt, and a column `prompt` must repeat it
        if not _repeats(prompt, chosen.messages[:shared]):
            what = "`prompt` differs from the beginning of chosen and rejected: left out"
            report(Problem("warning", "prompt-differs", what, "remove it, or remove the prompt from the two", "prompt"))
        reading.messages += chosen.messages[:shared]
        reading.paths += chosen.paths[:shared]
        reading.made |= chosen.made
    elif isinstance(prompt, str):
        reading.add("prompt", "user", prompt)
    else:
        reading.extend(listed(prompt, "prompt"), "prompt")
    reading.given()
    reading.messages += chosen.messages[shared:]
    reading.paths += chosen.paths[shared:]
    reading.made |= chosen.made
    reading.rejected = Reading(rejected.messages[shared:], rejected.paths[shared:], rejected.made)
    _compare(reading, "chosen", "rejected", report)
    return reading


def _alternative(value: object, path: str) -> Reading:
    """Return the reading of a list of messages, a transcript of Human and Assistant, or the text of one answer."""
    reading = Reading()
    speakers = list(_SPEAKER.finditer(value)) if isinstance(value, str) else []
    if not isinstance(value, str) or not speakers or value[: speakers[0].start()].strip():
        _add_output(reading, value, path)
        return reading
    ends = [*(speaker.start() for speaker in speakers[1:]), len(value)]
    for speaker, end in zip(speakers, ends, strict=True):
        role = "user" if speaker[1] == "Human" else "assistant"
        reading.add(path, role, value[speaker.end() : end].strip())
    return reading


def _add_output(reading: Reading, value: object, path: str) -> None:
    if isinstance(value, str):
        reading.add(path, "assistant", value)
    elif isinstance(value, Mapping):
        reading.take(value, path)
    else:
        reading.extend(listed(value, path), path)


def _shared(chosen: list[Any], rejected: list[Any]) -> int:
    """Return the number of equal messages at the beginning of both alternatives, without the last message of either.

    It is 0 if they begin with a message of assistant or tool, because they do not contain the prompt then.
    """
    if not chosen or not isinstance(chosen[0], Mapping) or chosen[0].get("role") in _OUTPUTS:
        return 0
    count = 0
    while count < min(len(chosen), len(rejected)) - 1 and chosen[count] == rejected[count]:
        count += 1
    return count


def _repeats(prompt: object, shared: list[Any]) -> bool:
    """Return whether a column `prompt` is null, equals the shared messages, or is the text of one of them."""
    texts = [message.get("content") for message in shared if isinstance(message, Mapping)]
    return prompt is None or prompt == shared or prompt in texts or _as_chat(prompt) == shared


def _as_chat(prompt: object) -> list[Any]:
    return [one for message in prompt for one in as_chat(message)] if isinstance(prompt, list) else []


def _compare(reading: Reading, better_key: str, worse_key: str, report: OnProblem) -> None:
    assert reading.rejected is not None
    if not reading.rejected.messages or len(reading.messages) == reading.prompt:
        missing = worse_key if not reading.rejected.messages else better_key
        report(Problem("error", "no-alternative", "one of the two alternatives is empty", path=missing))
    elif reading.messages[reading.prompt :] == reading.rejected.messages:
        what = "both alternatives are the same: there is nothing to prefer"
        report(Problem("warning", "equal-alternatives", what, "remove the row", reading.rejected.paths[0]))


FORMATS = (
    RowFormat(
        "openai-preference",
        _matches_openai,
        _read_openai,
        frozenset({"input", *_PREFERRED, *_REJECTED}),
    ),
    RowFormat(
        "trl-preference",
        lambda row: "chosen" in row and "rejected" in row,
        _read_trl,
        frozenset({"prompt", "chosen", "rejected", "tools", "system", "messages"}),
    ),
)
