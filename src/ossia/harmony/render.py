"""Rendering of conversations to token ids. No other module writes Harmony's control tokens.

A message is  <|start|> author  header  <|message|> content  end.  Two header orders are valid and parse the same:

    channel-first     <|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>…<|call|>
    recipient-first   <|start|>assistant to=functions.f<|channel|>commentary <|constrain|>json<|message|>…<|call|>

The model samples channel-first, so this order is the default, both for training targets and for the context. The
library openai-harmony writes recipient-first, and in that order the ids here equal its ids. The order concerns the
assistant only. In tool results the recipient always comes first, as in OpenAI's format.md.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ossia.config import HeaderOrder
from ossia.harmony.conversation import (
    Conversation,
    Message,
    ResponseFormat,
    SystemSettings,
    ToolNamespace,
    without_old_thoughts,
)
from ossia.harmony.tokenizer.vocabulary import CALL, CHANNEL, CONSTRAIN, END, MESSAGE, RETURN, START, Vocabulary
from ossia.harmony.typescript import compact_json, lines_of, tools_section

Part = Literal["start", "header", "content", "end"]

_CONSTRAIN_TEXT = "<|constrain|>"
_CACHED_HEADERS = 4096


class Span(NamedTuple):
    """Tokens [start, stop) of a rendering: one part of one message."""

    start: int
    stop: int
    message: int
    """Index into the rendered messages."""
    part: Part
    """start: `<|start|>` and the author. header: up to and including `<|message|>`. end: the closing token."""
    label: str
    """The channel, or the role of a message without a channel."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """Token ids with the part that each belongs to. The spans are in order and cover all ids; empty parts have none."""

    ids: list[int]
    spans: list[Span]


def system_text(settings: SystemSettings, has_functions: bool) -> str:
    """Return the content of the system message. `has_functions`: whether the developer message offers functions."""
    head = [] if settings.identity is None else [settings.identity]
    if settings.knowledge_cutoff is not None:
        head.append(f"Knowledge cutoff: {settings.knowledge_cutoff}")
    if settings.date is not None:
        head.append(f"Current date: {settings.date}")
    sections = ["\n".join(head)] if head else []
    if settings.effort is not None:
        sections.append(f"Reasoning: {settings.effort}")
    if settings.namespaces:
        sections.append(tools_section(settings.namespaces))
    if settings.channels:
        names = ", ".join(settings.channels)
        rule = f"# Valid channels: {names}. Channel must be included for every message."
        calls = "\nCalls to these tools must go to the commentary channel: 'functions'."
        sections.append(rule + (calls if has_functions else ""))
    return "\n\n".join(sections)


def developer_text(
    instructions: str | None, tools: ToolNamespace | None, formats: Sequence[ResponseFormat] = ()
) -> str:
    """Return the content of the developer message: instructions, functions, and formats that answers must follow."""
    sections = [] if instructions is None else ["# Instructions", instructions]
    if tools is not None:
        sections.append(tools_section([tools]))
    if formats:
        sections.append(response_formats_section(formats))
    return "\n\n".join(sections)


def response_formats_section(formats: Sequence[ResponseFormat]) -> str:
    """Return the section "# Response Formats" with the schemas as compact JSON.

    Source: OpenAI's docs/format.md, "Structured output".
    """
    parts = ["# Response Formats"]
    for one in formats:
        comment = "".join(f"// {line}\n" for line in lines_of(one.description))
        parts += [f"## {one.name}", comment + compact_json(one.schema)]
    return "\n\n".join(parts)


def prologue(conversation: Conversation) -> tuple[Message, ...]:
    """Return the system message unless `system` is None, and the developer message unless it would be empty."""
    functions = ToolNamespace("functions", conversation.tools) if conversation.tools else None
    messages = []
    if conversation.system is not None:
        messages.append(Message("system", system_text(conversation.system, functions is not None)))
    formats = conversation.response_formats
    if conversation.instructions is not None or functions is not None or formats:
        messages.append(Message("developer", developer_text(conversation.instructions, functions, formats)))
    return tuple(messages)


def message_parts(
    message: Message, vocabulary: Vocabulary, order: HeaderOrder = "channel-first"
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]:
    """Return the token ids of a message's start, header, content and end.

    The pieces of text are encoded separately, as in openai-harmony.

    Raises:
        ValueError: a message of role tool has no name.
    """
    m = message
    start, header, end = _frame(vocabulary, order, m.role, m.name, m.channel, m.recipient, m.content_type)
    return start, header, vocabulary.encode_tuple(m.content), end


@functools.lru_cache(maxsize=_CACHED_HEADERS)
def _frame(
    vocabulary: Vocabulary,
    order: HeaderOrder,
    role: str,
    name: str | None,
    channel: str | None,
    recipient: str | None,
    content_type: str | None,
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Return start, header and end of a message, all parts except the content.

    A corpus has few different ones, so the results are cached.
    """
    encode = vocabulary.encode_tuple
    if role == "tool":
        if not name:
            raise ValueError("a tool message needs the tool's name")
        start = (START, *encode(name))
    else:
        start = (START, *encode(role), *(() if name is None else encode(f":{name}")))
    on = () if channel is None else (CHANNEL, *encode(channel))
    to = () if recipient in (None, "all") else encode(f" to={recipient}")
    header = on + to if order == "channel-first" and role == "assistant" else to + on
    end = CALL if role == "assistant" and recipient is not None else END
    return start, (*header, *_content_type(content_type, vocabulary), MESSAGE), end


def render_message(message: Message, vocabulary: Vocabulary, order: HeaderOrder = "channel-first") -> list[int]:
    """Return the token ids of one message. It ends with `<|call|>` if the assistant's message has a recipient.

    Otherwise it ends with `<|end|>`.

    Raises:
        ValueError: as `message_parts`.
    """
    start, header, content, end = message_parts(message, vocabulary, order)
    return [*start, *header, *content, end]


def render_messages(
    messages: Sequence[Message], vocabulary: Vocabulary, order: HeaderOrder = "channel-first", stop: bool = False
) -> Rendering:
    """Return the token ids of all messages with their spans. No message is dropped.

    Args:
        stop: whether a last answer ends with `<|return|>`, as the model samples it. In the context it is `<|end|>`.

    Raises:
        ValueError: as `message_parts`.
    """
    ids: list[int] = []
    spans: list[Span] = []
    at = 0
    for index, message in enumerate(messages):
        start, header, content, end = message_parts(message, vocabulary, order)
        label = message.channel or message.role
        named: tuple[tuple[Part, tuple[int, ...]], ...] = (
            ("start", start),
            ("header", header),
            ("content", content),
            ("end", (end,)),
        )
        for part, tokens in named:
            if tokens:
                ids += tokens
                spans.append(Span(at, at := at + len(tokens), index, part, label))
    if stop and messages and messages[-1].role == "assistant" and messages[-1].channel == "final":
        ids[-1] = RETURN
    return Rendering(ids, spans)


def render_conversation(
    conversation: Conversation, vocabulary: Vocabulary, order: HeaderOrder = "channel-first"
) -> list[int]:
    """Return the token ids of the whole conversation, with system and developer message.

    No message is dropped, and every answer ends with `<|end|>`.
    """
    return render_messages(prologue(conversation) + conversation.messages, vocabulary, order).ids


def render_prompt(
    conversation: Conversation, vocabulary: Vocabulary, order: HeaderOrder = "channel-first"
) -> list[int]:
    """Return the token ids of the prompt: the conversation without old thoughts, then `<|start|>assistant`."""
    kept = without_old_thoughts(conversation.messages)
    ids = render_messages(prologue(conversation) + kept, vocabulary, order).ids
    return [*ids, *assistant_start(vocabulary)]


def assistant_start(vocabulary: Vocabulary) -> list[int]:
    """Return the token ids of `<|start|>assistant`, after which the model samples."""
    return [START, *vocabulary.encode_tuple("assistant")]


def _content_type(content_type: str | None, vocabulary: Vocabulary) -> tuple[int, ...]:
    if content_type is None:
        return ()
    if not content_type.startswith(_CONSTRAIN_TEXT):
        return vocabulary.encode_tuple(f" {content_type}")
    rest = content_type.removeprefix(_CONSTRAIN_TEXT)
    return (*vocabulary.encode_tuple(" "), CONSTRAIN, *vocabulary.encode_tuple(rest))
