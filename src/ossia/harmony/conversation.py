"""What a conversation is: an ordered list of atomic Harmony messages under a system and a developer message.

Every input format becomes this, and everything else is made from it. "Atomic" means one message per step of the model:

    a thought      assistant, channel analysis
    a call         assistant, channel commentary, to functions.NAME, content type <|constrain|>json
    its result     tool functions.NAME, to assistant, channel commentary
    a preamble     assistant, channel commentary, no recipient: text the user sees before a call
    an answer      assistant, channel final

Plain data without behaviour; `render` turns it into token ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ossia.config import CHANNELS, DEFAULT_IDENTITY, DEFAULT_KNOWLEDGE_CUTOFF, Effort

Role = Literal["system", "developer", "user", "assistant", "tool"]

ROLES: tuple[Role, ...] = ("system", "developer", "user", "assistant", "tool")
JSON_CONTENT = "<|constrain|>json"

TokenRange = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Message:
    """One Harmony message. `content` is plain text; control tokens in it stay text."""

    role: Role
    content: str
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None
    name: str | None = None
    """The author's name: the tool for role tool (needed there), else written `role:name`."""
    weight: float | None = None
    """Factor on the training loss of this message; None means 1, 0 keeps it as context."""
    place: str = field(default="", compare=False, repr=False)
    """The place of the chat message that it came from, as in `messages[2]`; for problems."""


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


@dataclass(frozen=True, slots=True)
class ToolDescription:
    """A function the model may call. `parameters` is a JSON Schema of type object, or None for no arguments."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ToolNamespace:
    """Built-in tools announced in the system message, such as `browser` or `python` (which is all description)."""

    name: str
    tools: tuple[ToolDescription, ...] = ()
    description: str | None = None


@dataclass(frozen=True, slots=True)
class SystemSettings:
    """The system message. A field that is None (or empty) leaves its line out.

    `date` is out by default, so that the same conversation gives the same tokens every day.
    """

    identity: str | None = DEFAULT_IDENTITY
    knowledge_cutoff: str | None = DEFAULT_KNOWLEDGE_CUTOFF
    date: str | None = None
    effort: Effort | None = "medium"
    namespaces: tuple[ToolNamespace, ...] = ()
    channels: tuple[str, ...] = CHANNELS


DEFAULT_SYSTEM = SystemSettings()


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """A JSON Schema that answers have to follow, announced at the end of the developer message."""

    name: str
    schema: Mapping[str, Any]
    description: str = ""


@dataclass(frozen=True, slots=True)
class OtherAnswer:
    """An answer to a conversation's prompt beside the one that its messages end with."""

    messages: tuple[Message, ...]
    score: float | None = None
    """What the row says of its worth, on the scale of `Conversation.score`."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages and what stands before them. `source` names the row it came from, as in `data.jsonl:17`."""

    messages: tuple[Message, ...]
    system: SystemSettings | None = DEFAULT_SYSTEM
    instructions: str | None = None
    tools: tuple[ToolDescription, ...] = ()
    response_formats: tuple[ResponseFormat, ...] = ()
    rejected: tuple[Message, ...] = ()
    """Of a preference pair: the worse alternative to what follows the prompt (`messages` ends with the better)."""
    others: tuple[OtherAnswer, ...] = ()
    """Of a row with several answers to one prompt: those that `messages` does not end with."""
    score: float | None = None
    """Of such a row: the worth of the answer that `messages` ends with."""
    prompt: int | None = None
    """How many messages the alternatives share. None: those before the assistant's last turn."""
    source: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else the row said: an expected answer, labels, an id. Never rendered."""


def user(text: str, name: str | None = None, place: str = "") -> Message:
    """What a person says."""
    return Message("user", text, name=name, place=place)


def developer(text: str, place: str = "") -> Message:
    """Instructions given in the middle of a conversation. Those at the start belong to `Conversation.instructions`."""
    return Message("developer", f"# Instructions\n\n{text}", place=place)


def thought(text: str, weight: float | None = None, place: str = "") -> Message:
    """Chain of thought."""
    return Message("assistant", text, "analysis", weight=weight, place=place)


def preamble(text: str, weight: float | None = None, place: str = "") -> Message:
    """Text for the user that does not end the turn, such as a plan before tool calls."""
    return Message("assistant", text, "commentary", weight=weight, place=place)


def call(name: str, arguments: str, weight: float | None = None, place: str = "") -> Message:
    """A call of the function `name`; `arguments` is a JSON text and is kept as it is."""
    return Message("assistant", arguments, "commentary", f"functions.{name}", JSON_CONTENT, None, weight, place)


def tool_result(name: str, text: str) -> Message:
    """What the function `name` returned."""
    return Message("tool", text, channel="commentary", recipient="assistant", name=f"functions.{name}")


def answer(text: str, weight: float | None = None, place: str = "") -> Message:
    """The reply that ends the turn."""
    return Message("assistant", text, "final", weight=weight, place=place)


def is_answer(message: Message) -> bool:
    """Whether a message ends the assistant's turn."""
    return message.role == "assistant" and message.channel == "final"


def without_old_thoughts(messages: Iterable[Message]) -> tuple[Message, ...]:
    """Drop every message on channel analysis that precedes the last answer; keep the rest.

    This is what the model sees of its past: thoughts serve one turn, while calls, results and preambles stay (OpenAI
    cookbook, "How to handle the raw chain of thought"). Thoughts after the last answer belong to a turn that is still
    running and stay until it is answered.
    """
    messages = tuple(messages)
    last = max((index for index, message in enumerate(messages) if is_answer(message)), default=-1)
    return tuple(m for index, m in enumerate(messages) if index > last or m.channel != "analysis")
