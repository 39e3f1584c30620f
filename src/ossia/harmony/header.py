"""Message headers, read leniently: what stands between `<|start|>` and `<|message|>`.

Well-formed headers, in both orders:

    assistant<|channel|>commentary to=functions.f <|constrain|>json
    assistant to=functions.f<|channel|>commentary <|constrain|>json
    functions.f to=assistant<|channel|>commentary

Everything else that models have been seen to write is mended, and text that is no header goes to the content.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ossia.harmony.conversation import CHANNELS, ROLES, Role

CONTENT_TYPES = ("json", "code", "text", "plain", "yaml", "xml", "markdown")
_BUILT_INS = ("python", "browser", "container")

_REPEATED_ROLE = re.compile(r"^(?:\s*assistant(?=assistant|to=|\s|$))+")
_AUTHOR = re.compile(r"^\s*([^\s<:]+)(?::([^\s<]+))?")
_CHANNEL = re.compile(rf"^\s*({'|'.join(CHANNELS)})(?![a-z0-9_])")
_RECIPIENT = re.compile(r"^\s*to=([^\s<]+)")
_CONSTRAINT = re.compile(r"<\|constrain\|>\s?([A-Za-z0-9_.+/-]*)\s*")
_IDENTIFIER = re.compile(r"^[A-Za-z_][\w.:/-]*$")


@dataclass(slots=True)
class Header:
    """A header taken apart. `rest` is what was no header, to be put in front of the content."""

    role: Role = "assistant"
    name: str | None = None
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None
    rest: str = ""
    text: str = ""
    """The header as read."""
    repairs: list[str] = field(default_factory=list)


def read_header(author: str, channel: str | None, implied_role: bool, closed: bool) -> Header:
    """Take a header apart. Any text gives a header.

    Args:
        author: the text before `<|channel|>`.
        channel: the text after it; None without that token.
        implied_role: the prompt has already said `<|start|>assistant`.
        closed: `<|message|>` followed. Without it, only explicit fields count and the rest is content.
    """
    header = Header(text=author if channel is None else f"{author}<|channel|>{channel}")
    is_header = closed or channel is not None
    remaining = _read_author(header, author, implied_role, is_header)
    remaining = _read_recipient(header, remaining) if is_header else remaining
    if channel is None and closed and _CHANNEL.match(remaining):
        header.repairs.append("<|channel|> is missing")
        remaining, channel = "", remaining
    if channel is not None:
        tail = _read_recipient(header, _read_channel(header, channel))
        remaining = f"{remaining} {tail}" if remaining.strip() else tail
    if is_header:
        remaining = _read_content_type(header, remaining, closed)
    header.rest = remaining.lstrip() if is_header else remaining
    if header.rest and closed:
        what = "moved to the content" if re.search(r"\w", header.rest) else "left out"
        header.repairs.append(f"text in the header ({header.rest[:40]!r}): {what}")
        header.rest = header.rest if re.search(r"\w", header.rest) else ""
    return header


def _read_author(header: Header, text: str, implied_role: bool, is_header: bool) -> str:
    """Set role and name, return what follows them."""
    if implied_role:
        found = _REPEATED_ROLE.match(text)
        if found and (is_header or found.end() == len(text)):
            header.repairs.append("the role is repeated")
            return text[found.end() :]
        return text
    found = _AUTHOR.match(text)
    if not found:
        header.repairs.append("no role: taken as assistant")
        return text
    word, remaining = found[1], text[found.end() :]
    for role in ROLES:
        if word == role:
            header.role, header.name = role, found[2]
            return remaining
    glued = re.match(rf"assistant(?=({'|'.join((*ROLES, *CHANNELS, 'to='))}))", word)
    if glued:  # `assistantassistant`, `assistantanalysis`
        header.repairs.append("the role runs into the next word")
        return _REPEATED_ROLE.sub("", text.lstrip()[len("assistant") :])
    if is_header and ("." in word or _RECIPIENT.match(remaining)):
        header.role, header.name = "tool", text[: found.end()].strip()
        return remaining
    header.repairs.append(f"unknown role {word[:40]!r}: taken as assistant")
    return text


def _read_channel(header: Header, text: str) -> str:
    found = _CHANNEL.match(text)
    if found:
        header.channel = found[1]
        return text[found.end() :]
    if not text.strip():
        header.repairs.append("<|channel|> without a name")
        return text
    # Nobody can tell what an unknown channel is for; as a thought it cannot leak into an answer.
    header.channel = "analysis"
    header.repairs.append(f"unknown channel {text.split()[0][:40]!r}: taken as analysis")
    word, *others = text.split(maxsplit=1)
    explicit = _IDENTIFIER.match(word) and (not others or others[0].startswith(("to=", "<|constrain|>")))
    return " ".join(others) if explicit else text


def _read_recipient(header: Header, text: str) -> str:
    found = _RECIPIENT.match(text)
    if not found:
        return text
    if header.recipient is not None:
        header.repairs.append("the recipient is given twice")
    header.recipient = found[1]
    return text[found.end() :]


def _read_content_type(header: Header, text: str, closed: bool) -> str:
    """Set the content type, and a recipient without `to=`; return the text that is neither."""
    before, after = text, ""
    if found := _CONSTRAINT.search(text):
        header.content_type = f"<|constrain|>{found[1]}"
        before, after = text[: found.start()], text[found.end() :]
    words = before.split() if closed else []
    if words and header.content_type is None and _is_content_type(header, words):
        header.content_type = words.pop()
        before = " ".join(words)
    if len(words) == 1 and header.recipient is None and _may_be_recipient(header, words[0]):
        header.recipient = words[0]
        before = ""
    return before + after


def _is_content_type(header: Header, words: list[str]) -> bool:
    if header.recipient is not None:
        return len(words) == 1 and bool(_IDENTIFIER.match(words[0]))
    return len(words) <= 2 and words[-1] in CONTENT_TYPES and all(_may_be_recipient(header, w) for w in words[:-1])


def _may_be_recipient(header: Header, word: str) -> bool:
    """Whether a bare word is a recipient. Harmony allows leaving `to=` out."""
    if not _IDENTIFIER.match(word):
        return False
    built_in = "." in word.strip(".") or word in _BUILT_INS
    return built_in if header.channel == "analysis" else header.channel != "final"
