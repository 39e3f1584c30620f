"""A conversation with an engine: what the person says goes in, what the model says comes out piece by piece.

The history is kept as Harmony messages and rendered anew for each turn by the renderer of the training data, which
drops the thoughts of finished turns. Text is told apart by channel as it arrives, with the same parser as everywhere.
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
    """A piece of text as it arrives. `recipient`: of a call. `first`: a new message begins with it."""

    kind: PieceKind
    text: str
    first: bool
    recipient: str | None = None


@dataclass(frozen=True)
class Reply:
    """How a turn went. `finish` is None when it was interrupted; `kept`: it joined the history."""

    messages: tuple[ParsedMessage, ...]
    tokens: int
    finish: Finish | None
    kept: bool


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
        """The last turn."""
        self._engine, self._vocabulary, self._adapter, self._turn = engine, vocabulary, adapter, 0

    def restart(self) -> None:
        """Forget what was said; the system message and the instructions stay."""
        self.conversation = replace(self.conversation, messages=())

    def set_effort(self, effort: Effort) -> None:
        assert self.conversation.system is not None
        self.conversation = replace(self.conversation, system=replace(self.conversation.system, effort=effort))

    def set_instructions(self, text: str | None) -> None:
        """Set the developer message, which stands before everything that was said. None: no such message."""
        self.conversation = replace(self.conversation, instructions=text)

    def say(self, text: str, like: Request) -> Generator[Piece, None, None]:
        """Yield the model's turn as it is made. `like`: the request of a turn, without its prompt.

        A turn that came to an answer or to a call joins the history, also when the reader stops early (closes the
        iterator) in the middle of the answer; so does a turn that ended with a preamble, which is how the parser reads
        text without a header. A turn without any of these is forgotten together with the question.
        """
        asked = (*self.conversation.messages, user(text))
        prompt = render_prompt(replace(self.conversation, messages=asked), self._vocabulary, self._order)
        parser, tokens = Parser(self._vocabulary), 0
        finish: Finish | None = None
        # The seed moves on, so that the same words may get another answer next time.
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
            # Only what the reader has seen: finishing may have made a message of half a header.
            seen = (parser.messages[index] for index in sorted(begun))
            said = tuple(m.to_message() for m in seen if m.role == "assistant" and m.content)
            kinds = {piece_kind(message) for message in said}
            kept = bool(kinds & {"answer", "call"}) or (finish == "stop" and "preamble" in kinds)
            self.reply = Reply(tuple(parser.messages), tokens, finish, kept)
            if kept:
                self.conversation = replace(self.conversation, messages=asked + said)


def piece_kind(message: ParsedMessage | Message) -> PieceKind:
    """What a message of the model is to a reader."""
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
