"""A conversation between a person and an engine, with the model's text in pieces as it arrives.

The history is a list of Harmony messages. For each turn the renderer of the training data renders it again and drops
the thoughts of finished turns. The parser of `ossia.harmony.parse` assigns the arriving text to channels.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from ossia.config import Effort, HeaderOrder
from ossia.generate.engine import Engine, Finish, Request
from ossia.harmony.conversation import Conversation, Message, ParsedMessage, SystemSettings, user
from ossia.harmony.parse import Parser, TextDelta
from ossia.harmony.render import render_prompt
from ossia.harmony.tokenizer.vocabulary import Vocabulary

PieceKind = Literal["thought", "preamble", "call", "answer"]


@dataclass(frozen=True)
class Piece:
    """A piece of text as it arrives."""

    kind: PieceKind
    text: str
    first: bool
    """Whether a new message begins with this piece."""
    recipient: str | None = None
    """The recipient of a tool call. None for other messages."""


@dataclass(frozen=True)
class Reply:
    """The result of one turn of the model."""

    messages: tuple[ParsedMessage, ...]
    tokens: int
    """Number of tokens that the model generated."""
    finish: Finish | None
    """The reason the turn ended. None: the reader stopped early."""
    kept: bool
    """Whether the turn was added to the history."""


class Session:
    """A conversation in progress."""

    def __init__(
        self,
        engine: Engine,
        vocabulary: Vocabulary,
        *,
        system: SystemSettings | None = None,
        instructions: str | None = None,
        adapter: str | None = None,
        order: HeaderOrder = "channel-first",
    ) -> None:
        """
        Args:
            adapter: which of the engine's adapters answers, see `Request.adapter`.
            order: of the headers of the assistant's messages, as in training.
        """
        self._order = order
        self.conversation = Conversation((), system or SystemSettings(), instructions)
        self.reply: Reply | None = None
        """The result of the last turn, or None before the first."""
        self._engine, self._vocabulary, self._adapter, self._turn = engine, vocabulary, adapter, 0

    def restart(self) -> None:
        """Remove all messages from the history. The system message and the instructions stay."""
        self.conversation = replace(self.conversation, messages=())

    def set_effort(self, effort: Effort) -> None:
        """Set the reasoning effort in the system message of the following turns."""
        assert self.conversation.system is not None
        self.conversation = replace(self.conversation, system=replace(self.conversation.system, effort=effort))

    def set_instructions(self, text: str | None) -> None:
        """Set the developer message, which precedes the history. None: no such message."""
        self.conversation = replace(self.conversation, instructions=text)

    def say(self, text: str, like: Request) -> Generator[Piece, None, None]:
        """Yield the model's turn in pieces as it is generated. `self.reply` then holds the result.

        A turn with an answer or a call is added to the history, even if the reader closes the iterator early. A turn
        with a preamble only is added if it ended with a stop token. The reason is that the parser reads text without a
        header as a preamble. Any other turn is dropped together with the question.

        Args:
            text: the message of the person.
            like: the request of the turn without its prompt. Each turn adds its number to the seed.
        """
        asked = (*self.conversation.messages, user(text))
        prompt = render_prompt(replace(self.conversation, messages=asked), self._vocabulary, self._order)
        parser, tokens = Parser(self._vocabulary), 0
        finish: Finish | None = None
        # Each turn has its own seed, so that the same words may get another answer next time.
        request = replace(like, prompt=tuple(prompt), seed=like.seed + self._turn, adapter=self._adapter)
        self._turn += 1
        begun: set[int] = set()
        stream = self._engine.submit(request)
        try:
            for token in stream:
                tokens += 1
                yield from _pieces(parser, parser.push(token.id), begun)
            finish = stream.finish
            yield from _pieces(parser, parser.finish(), begun)
        finally:
            stream.cancel()
            parser.finish()
            # Only messages that the reader has seen. `finish` may have made a message of an incomplete header.
            seen = (parser.messages[index] for index in sorted(begun))
            said = tuple(m.to_message() for m in seen if m.role == "assistant" and m.content)
            kinds = {piece_kind(message) for message in said}
            kept = bool(kinds & {"answer", "call"}) or (finish == "stop" and "preamble" in kinds)
            self.reply = Reply(tuple(parser.messages), tokens, finish, kept)
            if kept:
                self.conversation = replace(self.conversation, messages=asked + said)


def piece_kind(message: ParsedMessage | Message) -> PieceKind:
    """Return the kind of a message of the model, as a reader sees it."""
    if message.recipient is not None:
        return "call"
    if message.channel == "analysis":
        return "thought"
    return "answer" if message.channel == "final" else "preamble"


def _pieces(parser: Parser, deltas: list[TextDelta], begun: set[int]) -> Iterator[Piece]:
    for delta in deltas:
        message = parser.messages[delta.message]
        first = delta.message not in begun
        begun.add(delta.message)
        yield Piece(piece_kind(message), delta.text, first, message.recipient)
