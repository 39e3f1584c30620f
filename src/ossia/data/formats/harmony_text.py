"""The format harmony: conversations that are already Harmony text with control tokens.

A row is {"text": "<|start|>system<|message|>...<|end|>..."}. The text may be in `harmony` instead, or in two parts in
`prompt` and `completion`.

The messages are used unchanged, those of system and developer included. So rendering them gives the text again. The
recipe's system settings do not apply, and functions in a developer message stay text. The messages of the prompt are
context (weight 0). A last message that is cut off by the end of the text is context, too.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

from ossia.data.formats.reading import JsonRow, Misfit, Reading, RowFormat
from ossia.errors import OnProblem, Problem
from ossia.harmony.conversation import Message, ParsedMessage
from ossia.harmony.parse import parse_text
from ossia.harmony.tokenizer.vocabulary import Pieces

START, _STARTOFTEXT = "<|start|>", "<|startoftext|>"


def _matches(row: JsonRow) -> bool:
    if "harmony" in row:
        return True
    halves = row.get("prompt"), row.get("completion")
    return _begins(row.get("text")) or (_begins(halves[0]) and isinstance(halves[1], str))


def _begins(text: object) -> bool:
    return isinstance(text, str) and _beginning(text).startswith(START)


def _read(row: JsonRow, report: OnProblem) -> Reading:
    text, path, cut = _text(row)
    if not text.startswith(START):
        what = f"the text does not begin with {START}"
        report(Problem("error", "harmony-text", what, "write whole messages: <|start|>user<|message|>...<|end|>", path))
        return Reading(literal=())
    parsed = parse_text(text, start="message")
    untrained = _given(text, parsed, cut, path, report) | _cut_off(parsed, path, report)
    messages: tuple[Message, ...] = tuple(
        replace(
            message.to_message(), place=path, weight=0 if number in untrained and message.role == "assistant" else None
        )
        for number, message in enumerate(parsed)
    )
    if not any(message.role == "assistant" for message in messages):
        report(Problem("error", "harmony-text", "the text holds no message of the assistant", path=path))
    repairs = [f"message {number}: {repair}" for number, message in enumerate(parsed, 1) for repair in message.repairs]
    if repairs:
        what = f"the Harmony text had to be repaired ({'; '.join(repairs[:5])}{'; ...' if len(repairs) > 5 else ''})"
        report(Problem("warning", "harmony-repaired", what, "look at it with: ossia data show", path))
    return Reading(literal=messages)


def _text(row: JsonRow) -> tuple[str, str, int]:
    """Return the text, its key, and the number of its characters that are a prompt."""
    for key in ("harmony", "text"):
        if row.get(key) is not None:
            if not isinstance(row[key], str):
                raise Misfit(f"`{key}` is not text")
            return _beginning(row[key]), key, 0
    prompt, completion = row.get("prompt"), row.get("completion")
    if not isinstance(prompt, str) or not isinstance(completion, str):
        raise Misfit("it needs the text in `text`, `harmony`, or `prompt` and `completion`")
    text = _beginning(prompt + completion)
    return text, "prompt", max(len(text) - len(completion), 0)


def _beginning(text: str) -> str:
    return text.lstrip().removeprefix(_STARTOFTEXT).lstrip()


def _given(text: str, parsed: list[ParsedMessage], cut: int, path: str, report: OnProblem) -> set[int]:
    """Return the numbers of the messages whose content begins in the prompt, from 0. They are context.

    One of them may continue in the completion. A warning reports this for a message of the assistant.
    """
    if not cut:
        return set()
    ends = [0, *accumulate(map(len, Pieces().split(text)))]  # ends of the parser's pieces, in characters
    found = set()
    for number, message in enumerate(parsed):
        begin, end = (ends[min(position, len(ends) - 1)] for position in message.content_span)
        if begin < cut or ends[message.span[1]] <= cut:
            found.add(number)
        if begin < cut < end and message.role == "assistant":
            what = f"message {number + 1} begins in the prompt and ends in the completion: it is not trained"
            report(Problem("warning", "harmony-repaired", what, "end the prompt between two messages", path))
    return found


def _cut_off(parsed: list[ParsedMessage], path: str, report: OnProblem) -> set[int]:
    """Return the number of the last message (from 0) if the text ends within it. Otherwise the set is empty.

    Training on such a message would teach the model to stop there.
    """
    if not parsed or parsed[-1].complete:
        return set()
    what = f"the text ends within message {len(parsed)}: it is not trained"
    do = "close it with <|return|> or <|call|> if it is complete, else remove the row"
    report(Problem("warning", "harmony-repaired", what, do, path))
    return {len(parsed) - 1}


FORMATS = (RowFormat("harmony", _matches, _read, frozenset({"text", "harmony", "prompt", "completion"})),)
