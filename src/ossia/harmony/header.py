"""Lenient parsing of message headers, the text between `<|start|>` and `<|message|>`.

Well-formed headers, in both orders:

    assistant<|channel|>commentary to=functions.f <|constrain|>json
    assistant to=functions.f<|channel|>commentary <|constrain|>json
    functions.f to=assistant<|channel|>commentary

Other headers that models have been observed to write are repaired. Text that is not part of a header moves to the
content. A channel is `final` only if the control token `<|channel|>` is followed by exactly that word. In doubt, text
that looks like an answer becomes `commentary`, which users see too. Everything else becomes `analysis`, which they do
not see.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import get_args

from ossia.config import CHANNELS, BuiltinTool
from ossia.harmony.conversation import ROLES, Role
from ossia.harmony.tokenizer.vocabulary import CONTROL_TOKENS

CONTENT_TYPES = ("json", "code", "text", "plain", "yaml", "xml", "markdown")
_BUILT_INS = (*get_args(BuiltinTool), "container")

_NAMES = "|".join(CHANNELS)
_REPEATED_ROLE = re.compile(rf"^(?:\s*assistant(?=assistant|{_NAMES}|to=|\s|\Z))+")
_GLUED_ROLE = re.compile(rf"assistant(?=(?:{'|'.join(ROLES)}|{_NAMES}|to=))")
_AUTHOR = re.compile(r"^\s*([^\s<:]+)(?::([^\s<]+))?")
_CHANNEL = re.compile(  # the name, optionally followed by punctuation and more names: `commentary?commentary?`
    rf"^(\s*)({_NAMES})(?![a-z0-9_])((?:[^\w\s<]++(?:(?:{_NAMES})(?![a-z0-9_]))?)*+)(?=([\s<]|\Z)?)"
)
_RECIPIENT = re.compile(r"^\s*to(?:=([^\s<]*)|\Z)")
_MISPLACED_RECIPIENT = re.compile(r"(?:^|\s)to=([A-Za-z_][\w.:/-]*)(?![^\s<])")
_CONSTRAINT = re.compile(r"<\|constrain\|>\s?([A-Za-z0-9_.+/-]*)\s*")
_CONTENT_TYPE = re.compile(rf"^\s*(?:{'|'.join(CONTENT_TYPES)}|<\|constrain\|>\s?[A-Za-z0-9_.+/-]*)\s*\Z")
_LONE_CALL = re.compile(r"^(?:\s*to=[^\s<]*+(?:\s++[A-Za-z]*+|\s*+<\|constrain\|>\s?\w*+)?\s*+|\s+to)\Z")
_IDENTIFIER = re.compile(r"^[A-Za-z_][\w.:/-]*\Z")
_WORD = re.compile(r"\w")


@dataclass(slots=True)
class Header:
    """The fields of a parsed header."""

    role: Role = "assistant"
    name: str | None = None
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None
    rest: str = ""
    """Text that is not part of a header and belongs in front of the content."""
    repairs: list[str] = field(default_factory=list)
    """Deviations from the format that were corrected, in words."""

    @property
    def says_nothing(self) -> bool:
        """Whether the header has no field except, possibly, the role."""
        return not (self.rest or self.channel or self.recipient or self.content_type or self.name)

    def inherit(self, before: Header) -> None:
        """Take recipient and content type from `before`, the part up to an earlier `<|channel|>` of the same header."""
        for field_ in ("recipient", "content_type"):
            old, new = getattr(before, field_), getattr(self, field_)
            # The assistant does not address itself. With `to=assistant` it begins to invent a tool's result.
            usable = old is not None and not (self.role == "assistant" and old == "assistant")
            if new is None and usable:
                setattr(self, field_, old)
            elif old is not None and old != new:
                self.repairs.append(f"{field_.replace('_', ' ')} {old!r} before the last <|channel|>: left out")


@dataclass(slots=True)
class HeaderDraft:
    """The tokens of an unfinished header."""

    begin: int
    """Position in the stream where the message's span begins."""
    start: int
    """Position in the stream where the header's span begins."""
    implied_role: bool
    """Whether no `<|start|>` precedes the header."""
    ids: list[int] = field(default_factory=list)
    """All tokens from `start` on."""
    own: int = 0
    """Index in `ids` where this header begins. Tokens before it belong to earlier headers that made no message."""
    author_stop: int | None = None
    """Index of this header's first `<|channel|>` in `ids`."""
    channel: int | None = None
    """Index of this header's last `<|channel|>` in `ids`."""
    before: Header | None = None
    """The header up to the last `<|channel|>`, if there are several."""
    header: Header | None = None
    """The parsed header, if it ended without making a message."""
    has_startoftext: bool = False
    """Whether a `<|startoftext|>` is among `ids`."""

    def has_text(self) -> bool:
        """Return whether any token is text."""
        return any(id not in CONTROL_TOKENS for id in self.ids)


def parse_header(author: str, channel: str | None, implied_role: bool, closed: bool) -> Header:
    """Return the fields of a header. Any text gives a header; nothing is raised.

    Args:
        author: the text before `<|channel|>`.
        channel: the text after `<|channel|>`; None without that token.
        implied_role: whether no `<|start|>` precedes the header, so that the role is the assistant's.
        closed: whether `<|message|>` follows. Otherwise only explicit fields count and the rest is content.
    """
    header, early = Header(), Header()
    is_header = closed or channel is not None
    remaining = _read_author(header, author, implied_role, is_header)
    if not is_header and _LONE_CALL.match(remaining):  # a call cut off before its channel
        is_header = True
    if is_header:
        remaining = _read_recipient(header, remaining)
    if channel is None:
        remaining = _read_unmarked_channel(header, remaining, closed)
    else:
        tail = _read_recipient(header, _read_channel(header, channel, closed))
        if _CONTENT_TYPE.match(remaining):
            remaining = _read_content_type(early, remaining, closed=True)
        elif remaining.strip() and (header.role == "assistant" or header.channel == "final"):
            # Text before an answer's `<|channel|>` is not part of the answer.
            header.repairs.append(f"{remaining.strip()!r} before <|channel|>: left out of the content")
            remaining = ""
        remaining = f"{remaining} {tail}" if remaining.strip() else tail
    if is_header:
        remaining = _read_content_type(header, remaining, closed)
    header.inherit(early)
    if header.role == "tool" and header.recipient is None:
        header.repairs.append("the tool's message has no recipient")
    header.rest = remaining.lstrip() if is_header else remaining
    if header.rest and closed:
        moved = bool(_WORD.search(header.rest))
        what = "moved to the content" if moved else "left out of the content"
        header.repairs.append(f"text in the header ({header.rest[:40]!r}): {what}")
        header.rest = header.rest if moved else ""
    return header


def text_before_channel(author: str, implied_role: bool) -> bool:
    """Return whether the assistant's `author`, the part before `<|channel|>`, has text besides header fields.

    Header fields are the author, a recipient, a content type after a recipient, and a channel's bare name.
    """
    header = Header()
    remaining = _read_recipient(header, _read_author(header, author, implied_role, True))
    if header.role != "assistant" or not _WORD.search(remaining) or remaining.strip() in CHANNELS:
        return False
    return header.recipient is None or not _CONTENT_TYPE.match(remaining)


def _read_author(header: Header, text: str, implied_role: bool, is_header: bool) -> str:
    """Set role and name, and return the text after them."""
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
    if _GLUED_ROLE.match(word):  # `assistantassistant`, `assistantanalysis`
        header.repairs.append("the role runs into the next word")
        return _REPEATED_ROLE.sub("", text.lstrip()[len("assistant") :])
    tool = "." in word.strip(".") if is_header else word.startswith("functions.") and not remaining.strip()
    if tool or (_RECIPIENT.match(remaining) if is_header else _LONE_CALL.match(remaining)):
        header.role, header.name = "tool", text[: found.end()].strip()
        return remaining
    header.repairs.append(f"unknown role {word[:40]!r}: taken as assistant")
    # A word in the role's place is dropped if nothing follows it. Otherwise all of it is text.
    return "" if is_header and _IDENTIFIER.match(word) and not remaining.strip() else text


def _read_unmarked_channel(header: Header, text: str, closed: bool) -> str:
    """Set the channel from a name without `<|channel|>`. Such a name may hide text but never makes it an answer."""
    found = _CHANNEL.match(text)
    if found and closed:
        header.repairs.append("<|channel|> is missing")
        remaining = _read_channel(header, text, closed)
        if header.channel == "final":
            header.channel = "commentary"
            header.repairs.append("final without <|channel|>: taken as commentary")
        return _read_recipient(header, remaining)
    if found and (found[2] == "analysis" or not found[1]):  # `assistantfinal I'm`, but not `assistant final words`
        header.channel = "analysis" if found[2] == "analysis" else "commentary"
        header.repairs.append(f"{found[2]} without <|channel|> and <|message|>: taken as {header.channel}")
    return text


def _read_channel(header: Header, text: str, closed: bool) -> str:
    """Set the channel from the text after `<|channel|>`, and return the text after the channel's name."""
    found = _CHANNEL.match(text)
    if found:
        space, name, marks, ends = found.groups()
        header.channel = name
        if space:
            header.repairs.append("space before the channel's name")
        if marks or ends is None:  # `final?`, `final日本`
            header.channel = "commentary" if name == "final" else name
            header.repairs.append(f"the channel reads {text.split()[0][:40]!r}: taken as {header.channel}")
        return text[found.end() :]
    word, *others = text.split(maxsplit=1) or [""]
    if not word or word.startswith(("to=", "<|constrain|>")):
        header.repairs.append("<|channel|> without a name")
        return text
    # An unknown channel counts as a thought, because a thought is never shown as an answer.
    cut = not closed and not others and "commentary".startswith(word)
    header.channel = "commentary" if cut else "analysis"
    header.repairs.append(f"unknown channel {word[:40]!r}: taken as {header.channel}")
    explicit = _IDENTIFIER.match(word) and (not others or others[0].startswith(("to=", "<|constrain|>")))
    return " ".join(others) if explicit else text


def _read_recipient(header: Header, text: str) -> str:
    while found := _RECIPIENT.match(text):
        if not found[1]:
            header.repairs.append("to= without a name")
        else:
            if header.recipient is not None:
                header.repairs.append(f"the recipient is given twice: {header.recipient!r} left out")
            header.recipient = found[1]
        text = text[found.end() :]
    return text


def _read_content_type(header: Header, text: str, closed: bool) -> str:
    """Set the content type and a recipient without `to=`, and return the remaining text."""
    before, after = text, ""
    if found := _CONSTRAINT.search(text):
        header.content_type = f"<|constrain|>{found[1]}"
        before, after = text[: found.start()], text[found.end() :]
    if closed and header.recipient is None and header.channel != "final":
        before, after = _read_misplaced_recipient(header, before), _read_misplaced_recipient(header, after)
    words = before.split()
    if not closed:
        sure = header.recipient is not None or "".join(words) in CONTENT_TYPES
        words = words if sure and len(words) == 1 else []
    if words and header.content_type is None and _is_content_type(header, words):
        header.content_type = words.pop()
        before = " ".join(words)
    if closed and len(words) == 1 and header.recipient is None and _may_be_recipient(header, words[0]):
        header.recipient = words[0]
        before = ""
    return f"{before} {after}" if before.strip() and after.strip() else before + after


def _read_misplaced_recipient(header: Header, text: str) -> str:
    found = _MISPLACED_RECIPIENT.search(text)
    if not found:
        return text
    header.recipient = found[1]
    header.repairs.append("the recipient stands in the wrong place")
    return f"{text[: found.start()]} {text[found.end() :]}"


def _is_content_type(header: Header, words: list[str]) -> bool:
    if header.recipient is not None:
        return len(words) == 1 and bool(_IDENTIFIER.match(words[0]))
    return len(words) <= 2 and words[-1] in CONTENT_TYPES and all(_may_be_recipient(header, w) for w in words[:-1])


def _may_be_recipient(header: Header, word: str) -> bool:
    """Return whether a bare word can be a recipient. Harmony allows omitting `to=`."""
    if not _IDENTIFIER.match(word) or header.channel == "final":
        return False
    return header.channel == "commentary" or "." in word.strip(".") or word in _BUILT_INS
