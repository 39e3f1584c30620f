"""Separation of `<think>…</think>` in an assistant's text into thought and answer, in any row format.

    <think>Sum.</think>4           thought "Sum.", answer "4"
    Sum.</think>4                  the same: templates of R1 and similar models put the opening tag into the prompt
    Well.\n<think>Sum.</think>4    thought "Sum.", answer "Well.\n\n4": a block that begins a line
    <think>Sum. So                 all is thought, no answer                          warning unclosed-think
    Write <think> or it fails.     left as it is: a tag in the middle of a line       warning think-in-text
    Write `<think>`.               left as it is: quoted, or in a fenced block of code

Several blocks at the beginning are joined. A message may have its thought in a separate field. Then its text stays,
except for a block at the beginning that is empty or repeats the thought. Every step is linear in the text's length.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ossia.errors import OnProblem, Problem
from ossia.harmony.from_openai import THOUGHT_KEYS, text_of

OPEN, CLOSE = "<think>", "</think>"
_TAG = re.compile(r"</?think>")
_SPACE = re.compile(r"\s*")
_FENCE = "```"
_QUOTES = frozenset("\"'“”‘’«»")
_NEAR = 200  # characters of the same line in which backticks around a tag are looked for


@dataclass(frozen=True, slots=True)
class Split:
    """A text separated into thought and answer."""

    thought: str
    content: str | None
    """The answer. None if the thought never ends."""
    stray: bool = False
    """Whether a tag that is not quoted is left in the content."""


def split_think(text: str) -> Split:
    """Return thought and answer of a text, by the rules of the module. Without tags the whole text is the answer."""
    if "think>" not in text:
        return Split("", text)
    thoughts: list[str] = []
    before, start = "", _skip_space(text, 0)
    if not text.startswith(OPEN, start):
        tag = _first_tag(text)
        if tag is None:
            return Split("", text)
        if tag[0] == CLOSE:
            thoughts.append(text[: tag.start()])
            start = _skip_space(text, tag.end())
        elif _begins_line(text, tag.start()) and _closing(text, tag.end()) >= 0:
            before, start = text[: tag.start()].rstrip(), tag.start()
        else:
            return Split("", text, stray=True)
    while text.startswith(OPEN, start):
        end = _closing(text, start + len(OPEN))
        if end < 0:
            return Split(_join([*thoughts, text[start + len(OPEN) :]]), before or None)
        thoughts.append(text[start + len(OPEN) : end])
        start = _skip_space(text, end + len(CLOSE))
    content = _join([before, text[start:]]) if before else text[start:]
    return Split(_join(thoughts), content, stray=has_bare_tag(content))


def has_bare_tag(text: str) -> bool:
    """Return whether a text contains a tag that is neither quoted nor in code."""
    return "think>" in text and _first_tag(text) is not None


def with_thoughts(message: Any, path: str, report: OnProblem) -> Any:
    """Return the chat message with its thought in `thinking`.

    Messages of other roles, with a channel, or without a tag in their text are returned unchanged.

    Args:
        path: the place of the message, for the warnings think-in-text and unclosed-think.
    """
    if not isinstance(message, Mapping) or message.get("role") != "assistant" or message.get("channel") is not None:
        return message
    text = text_of(message.get("content"))
    if not text or "think>" not in text:
        return message
    split = split_think(text)
    known = next((message[key] for key in THOUGHT_KEYS if isinstance(message.get(key), str) and message[key]), None)
    if known is not None and split.thought not in ("", known.strip()):
        split = Split("", text, stray=True)
    if split.stray:
        what, do = "a <think> tag in the middle of an answer stays text", "quote it in backticks, or use `thinking`"
        report(Problem("warning", "think-in-text", what, do, f"{path}.content"))
    if split.content is None:
        what = "a <think> that is never closed: all of it is thought, and there is no answer"
        do = "write </think> and the answer, or remove the row"
        report(Problem("warning", "unclosed-think", what, do, f"{path}.content"))
    return {**message, "content": split.content, **({"thinking": split.thought} if known is None else {})}


def _first_tag(text: str) -> re.Match[str] | None:
    """Return the first tag that is neither quoted nor in a fenced block of code, or None."""
    fences, counted, last_fence = 0, 0, text.rfind(_FENCE)
    for tag in _TAG.finditer(text):
        fences += text.count(_FENCE, counted, tag.start())
        counted = tag.start()
        fenced = fences % 2 == 1 and last_fence > tag.start()
        if not fenced and not _quoted(text, tag.start(), tag.end()):
            return tag
    return None


def _closing(text: str, start: int) -> int:
    """Return the position of the closing tag of the thought that begins at `start`, or -1.

    It is the first closing tag that is not quoted. If all are quoted, it is the last one.
    """
    position = text.find(CLOSE, start)
    while position >= 0 and _quoted(text, position, position + len(CLOSE)):
        position = text.find(CLOSE, position + len(CLOSE))
    return position if position >= 0 else text.rfind(CLOSE, start)


def _quoted(text: str, start: int, end: int) -> bool:
    before = text[max(start - _NEAR, 0) : start].rpartition("\n")[2]
    after = text[end : end + _NEAR].partition("\n")[0]
    if before.count("`") % 2 == 1 and "`" in after:
        return True
    return before[-1:] in _QUOTES and after[:1] in _QUOTES


def _begins_line(text: str, position: int) -> bool:
    return not text[text.rfind("\n", 0, position) + 1 : position].strip()


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    assert match is not None
    return match.end()


def _join(parts: list[str]) -> str:
    return "\n\n".join(part for part in map(str.strip, parts) if part)
