"""What the parser gives: messages, and the text as it comes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from ossia.harmony.conversation import Message, Role

TokenRange = tuple[int, int]


@dataclass(slots=True)
class ParsedMessage:
    """A message read from tokens. Spans are ranges [start, stop) of the stream as pushed; 0 is its first token."""

    role: Role
    channel: str | None
    """Every message of the assistant has one, except a last one of which nothing but the role has come."""
    recipient: str | None
    content_type: str | None
    content: str = ""
    """Text moved from the header, then the decoded content span without control tokens; invalid UTF-8 is U+FFFD."""
    name: str | None = None
    header: str = ""
    """The decoded header span, control tokens spelt out."""
    complete: bool = False
    """Closed by a control token; False when the stream ended first."""
    stop: int | None = None
    """The id of the closing token, `<|end|>`, `<|return|>`, `<|call|>`, or whatever stood in its place."""
    repairs: list[str] = field(default_factory=list)
    moved: int = 0
    """The characters at the front of `content` that come from the header."""
    span: TokenRange = (0, 0)
    """The whole message with its `<|start|>` and its closing token. Between two messages lie only control tokens."""
    header_span: TokenRange = (0, 0)
    """From behind `<|start|>` up to `<|message|>`. A header before it that led to nothing belongs to it."""
    content_span: TokenRange = (0, 0)

    def to_message(self) -> Message:
        """The same as a message of a conversation."""
        return Message(self.role, self.content, self.channel, self.recipient, self.content_type, self.name)


class TextDelta(NamedTuple):
    """Text that a token added to the message `messages[message]`."""

    message: int
    text: str
