"""The data classes of a conversation: a list of atomic Harmony messages after a system and a developer message.

Every input format is converted to these classes, and all other forms are made from them. "Atomic" means one message
per step of the model:

    a thought      assistant, channel analysis
    a call         assistant, channel commentary, to functions.NAME, content type <|constrain|>json
    its result     tool functions.NAME, to assistant, channel commentary
    a preamble     assistant, channel commentary, no recipient: text the user sees before a call
    an answer      assistant, channel final

The classes hold data only. `ossia.harmony.render` turns a conversation into token ids.
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
    """One Harmony message. `content` is plain text, and control tokens spelt out in it stay text."""

    role: Role
    content: str
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None
    name: str | None = None
    """The author's name. For role tool it is the tool and required; for other roles it is written `role:name`."""
    weight: float | None = None
    """Factor on the training loss of this message, from 0 to 1. None means 1; 0 keeps the message as context only."""
    place: str = field(default="", compare=False, repr=False)
    """Place of the chat message that this message was made from, such as `messages[2]`, for reports of problems."""


@dataclass(slots=True)
class ParsedMessage:
    """A message read from tokens. Spans are ranges [start, stop) of token positions; 0 is the stream's first token."""

    role: Role
    channel: str | None
    """Never None for the assistant, except in a last message of which only the role has arrived."""
    recipient: str | None
    content_type: str | None
    content: str = ""
    """Text moved from the header, then the decoded content span without control tokens. Invalid UTF-8 is U+FFFD."""
    name: str | None = None
    header: str = ""
    """The decoded header span, with control tokens spelt out."""
    complete: bool = False
    """Whether a control token closed the message. False when the stream ended first."""
    stop: int | None = None
    """Id of the closing token: `<|end|>`, `<|return|>`, `<|call|>`, or the control token found in its place."""
    repairs: list[str] = field(default_factory=list)
    """Deviations from the format that the parser corrected, in words."""
    moved: int = 0
    """Number of characters at the front of `content` that come from the header."""
    span: TokenRange = (0, 0)
    """The whole message with its `<|start|>` and its closing token. Between two messages are only control tokens."""
    header_span: TokenRange = (0, 0)
    """From after `<|start|>` to before `<|message|>`, with any preceding header that did not make a message."""
    content_span: TokenRange = (0, 0)

    def to_message(self) -> Message:
        """Return the message as a message of a conversation, without spans and repairs."""
        return Message(self.role, self.content, self.channel, self.recipient, self.content_type, self.name)


@dataclass(frozen=True, slots=True)
class ToolDescription:
    """A function that the model may call. `parameters` is a JSON Schema of type object, or None for no arguments."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ToolNamespace:
    """Built-in tools announced in the system message: `browser`, or `python`, which has a description and no tools."""

    name: str
    tools: tuple[ToolDescription, ...] = ()
    description: str | None = None


@dataclass(frozen=True, slots=True)
class SystemSettings:
    """The settings of the system message. A field that is None or empty omits its line.

    `date` is None by default, so that the same conversation gives the same tokens every day.
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
    """A JSON Schema that answers must follow, announced at the end of the developer message."""

    name: str
    schema: Mapping[str, Any]
    description: str = ""


@dataclass(frozen=True, slots=True)
class OtherAnswer:
    """A further answer to a conversation's prompt, besides the one at the end of its messages."""

    messages: tuple[Message, ...]
    score: float | None = None
    """The answer's score in the row, on the scale of `Conversation.score`."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages with their system settings, instructions, tools and response formats."""

    messages: tuple[Message, ...]
    system: SystemSettings | None = DEFAULT_SYSTEM
    """None: no system message."""
    instructions: str | None = None
    """Text of the developer message."""
    tools: tuple[ToolDescription, ...] = ()
    response_formats: tuple[ResponseFormat, ...] = ()
    rejected: tuple[Message, ...] = ()
    """Of a preference pair: the worse alternative to the messages after the prompt. `messages` has the better one."""
    others: tuple[OtherAnswer, ...] = ()
    """Of a row with several answers to one prompt: all answers except the one at the end of `messages`."""
    score: float | None = None
    """Of such a row: the score of the answer at the end of `messages`."""
    prompt: int | None = None
    """Number of messages that the alternatives share. None: all messages before the assistant's last turn."""
    source: str = ""
    """The row that the conversation was made from, such as `data.jsonl:17`."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Other data of the row: an expected answer, labels, an id. Never rendered."""


def user(text: str, name: str | None = None, place: str = "") -> Message:
    """Return a message of the user."""
    return Message("user", text, name=name, place=place)


def developer(text: str, place: str = "") -> Message:
    """Return a developer message for the middle of a conversation.

    Instructions at the start of a conversation belong to `Conversation.instructions` instead.
    """
    return Message("developer", f"# Instructions\n\n{text}", place=place)


def thought(text: str, weight: float | None = None, place: str = "") -> Message:
    """Return a message with chain of thought."""
    return Message("assistant", text, "analysis", weight=weight, place=place)


def preamble(text: str, weight: float | None = None, place: str = "") -> Message:
    """Return a message for the user that does not end the turn, such as a plan before tool calls."""
    return Message("assistant", text, "commentary", weight=weight, place=place)


def call(name: str, arguments: str, weight: float | None = None, place: str = "") -> Message:
    """Return a call of the function `name`. `arguments` is a JSON text, which stays unchanged."""
    return Message("assistant", arguments, "commentary", f"functions.{name}", JSON_CONTENT, None, weight, place)


def tool_result(name: str, text: str) -> Message:
    """Return the message with the result of the function `name`."""
    return Message("tool", text, channel="commentary", recipient="assistant", name=f"functions.{name}")


def answer(text: str, weight: float | None = None, place: str = "") -> Message:
    """Return the answer that ends the assistant's turn."""
    return Message("assistant", text, "final", weight=weight, place=place)


def is_answer(message: Message) -> bool:
    """Return whether a message ends the assistant's turn."""
    return message.role == "assistant" and message.channel == "final"


def without_old_thoughts(messages: Iterable[Message]) -> tuple[Message, ...]:
    """Return the messages without those on channel analysis that precede the last answer.

    The model sees its earlier turns in this form: calls, results and preambles stay, thoughts do not. Source: OpenAI
    cookbook, "How to handle the raw chain of thought". Thoughts after the last answer belong to an unfinished turn.
    They stay until that turn has an answer.
    """
    messages = tuple(messages)
    last = max((index for index, message in enumerate(messages) if is_answer(message)), default=-1)
    return tuple(m for index, m in enumerate(messages) if index > last or m.channel != "analysis")
