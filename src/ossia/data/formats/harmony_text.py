"""harmony: conversations that are written in Harmony already, control tokens and all.

{"text": "<|start|>system<|message|>...<|end|>..."}, the same in `harmony`, or in two parts as `prompt` and
`completion`.

The messages are taken as they are, those of system and developer too, so that rendering them gives the text again; the
recipe's system settings do not apply, and functions in a developer message stay text.
"""

from __future__ import annotations

from dataclasses import replace

from ossia.data.formats.reading import Misfit, Reading, Row, RowFormat
from ossia.harmony.conversation import Message
from ossia.harmony.parse import parse_text
from ossia.harmony.problem import Problem, Report

START = "<|start|>"


def _matches(row: Row) -> bool:
    if "harmony" in row:
        return True
    halves = row.get("prompt"), row.get("completion")
    return _begins(row.get("text")) or (_begins(halves[0]) and isinstance(halves[1], str))


def _begins(text: object) -> bool:
    return isinstance(text, str) and text.lstrip()[: len(START)] == START


def _read(row: Row, report: Report) -> Reading:
    text, path = _text(row)
    if not text.startswith(START):
        what = f"the text does not begin with {START}"
        report(Problem("error", "harmony-text", what, "write whole messages: <|start|>user<|message|>...<|end|>", path))
        return Reading(literal=())
    parsed = parse_text(text, start="message")
    messages: tuple[Message, ...] = tuple(replace(message.to_message(), place=path) for message in parsed)
    if not any(message.role == "assistant" for message in messages):
        report(Problem("error", "harmony-text", "the text holds no message of the assistant", path=path))
    repairs = [f"message {number}: {repair}" for number, message in enumerate(parsed, 1) for repair in message.repairs]
    if repairs:
        what = f"the Harmony text had to be mended ({'; '.join(repairs[:5])}{'; ...' if len(repairs) > 5 else ''})"
        report(Problem("warning", "harmony-repaired", what, "look at it with: ossia data show", path))
    return Reading(literal=messages)


def _text(row: Row) -> tuple[str, str]:
    for key in ("harmony", "text"):
        if row.get(key) is not None:
            if not isinstance(row[key], str):
                raise Misfit(f"`{key}` is not text")
            return row[key].lstrip(), key
    prompt, completion = row.get("prompt"), row.get("completion")
    if not isinstance(prompt, str) or not isinstance(completion, str):
        raise Misfit("it needs the text in `text`, `harmony`, or `prompt` and `completion`")
    return (prompt + completion).lstrip(), "prompt"


FORMATS = (RowFormat("harmony", _matches, _read, frozenset({"text", "harmony", "prompt", "completion"})),)
