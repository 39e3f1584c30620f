"""Token ids back to messages. Total: any sequence of ids gives messages.

On well-formed streams the messages are those of openai-harmony's strict parser. On all others three promises hold:

* nothing raises, whatever comes;
* no text is lost: every token that is not a control token is in the `content` or `header` of some message;
* no thought leaks: text that the model wrote under `analysis` never appears in a message on another channel.

Whatever had to be mended is named in `ParsedMessage.repairs`. Text without a proper header is filed under a channel
if one was named; else under the channel of the message before it (it is a continuation); else, at the very start of the
model's turn, as the answer, because models that were tuned without thoughts begin like that.

One deviation from the library on legal streams: in `final json` and `final <|constrain|>json` (structured output), the
library takes the content type for a recipient. Here it is the content type.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from ossia.harmony.conversation import Message, Role
from ossia.harmony.header import Header, read_header
from ossia.harmony.vocabulary import (
    CALL,
    CHANNEL,
    CONSTRAIN,
    END,
    ENDOFTEXT,
    MESSAGE,
    RETURN,
    START,
    STARTOFTEXT,
    Vocabulary,
)

Start = Literal["assistant-header", "message"]

_CLOSING = {END: "<|end|>", RETURN: "<|return|>", CALL: "<|call|>", ENDOFTEXT: "<|endoftext|>"}


@dataclass(slots=True)
class ParsedMessage:
    """A message read from tokens. `content` grows while the message is open."""

    role: Role
    channel: str | None
    recipient: str | None
    content_type: str | None
    content: str = ""
    name: str | None = None
    header: str = ""
    """The header as it was read, control tokens spelt out."""
    complete: bool = False
    """Closed by a control token; False when the stream ended first."""
    stop: int | None = None
    """The id of the closing token, `<|end|>`, `<|return|>`, `<|call|>`, or whatever stood in its place."""
    repairs: list[str] = field(default_factory=list)

    def to_message(self) -> Message:
        """The same as a message of a conversation."""
        return Message(self.role, self.content, self.channel, self.recipient, self.content_type, self.name)


@dataclass(frozen=True, slots=True)
class Delta:
    """Text that a token added to the message `messages[message]`."""

    message: int
    text: str


class Parser:
    """Reads one token at a time. `messages` holds what has been read so far, the last one possibly still open."""

    def __init__(self, vocabulary: Vocabulary, start: Start = "assistant-header") -> None:
        """`start`: the stream begins after `<|start|>assistant`, as sampled tokens do, or with `<|start|>`."""
        self.messages: list[ParsedMessage] = []
        self._vocabulary = vocabulary
        self._open = False  # the last message still takes content
        self._header: list[int] | None = [] if start == "assistant-header" else None  # None: between messages
        self._implied_role = start == "assistant-header"  # the prompt has already said "assistant"
        self._repairs: list[str] = []  # for the next message
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def current(self) -> ParsedMessage | None:
        """The message that takes content at the moment."""
        return self.messages[-1] if self._open else None

    def push(self, id: int) -> list[Delta]:
        """Take one token and return the text it added: one piece or none, more where a broken header is mended."""
        if self._open:
            return self._push_content(id)
        if self._header is None:
            return self._push_between(id)
        return self._push_header(id)

    def finish(self) -> list[Delta]:
        """The stream is over. An open message stays incomplete; a header without `<|message|>` becomes one."""
        deltas: list[Delta] = []
        if self._open:
            deltas = self._close(None)
        elif self._header:
            deltas = self._flush_header(None, "the stream ended in a header")
        self._header = None
        if self.messages:
            self.messages[-1].repairs += self._repairs
        self._repairs = []
        return deltas

    def _push_content(self, id: int) -> list[Delta]:
        if id in _CLOSING:
            return self._close(id)
        if id in (START, CHANNEL):
            self.messages[-1].repairs.append(f"{self._vocabulary.token_text(id)} inside the content: closed before it")
            deltas = self._close(id)
            self._header, self._implied_role = ([], False) if id == START else ([id], True)
            return deltas
        if id in (MESSAGE, CONSTRAIN, STARTOFTEXT):
            self.messages[-1].repairs.append(f"{self._vocabulary.token_text(id)} inside the content: left out")
            return []
        return self._grow(self._utf8.decode(self._vocabulary.token_bytes(id)))

    def _push_between(self, id: int) -> list[Delta]:
        if id == START:
            self._header, self._implied_role = [], False
        elif id in _CLOSING or id == STARTOFTEXT:
            self._note(f"stray {self._vocabulary.token_text(id)} between messages: left out")
        else:
            self._repairs.append("<|start|> is missing")
            self._header, self._implied_role = [], True
            return self._push_header(id)
        return []

    def _push_header(self, id: int) -> list[Delta]:
        assert self._header is not None
        if id == MESSAGE:
            return self._open_message()
        if id in _CLOSING:
            deltas = self._flush_header(id, f"{_CLOSING[id]} instead of <|message|>")
            self._header = None
            return deltas
        if id == START:
            deltas = self._flush_header(id, "<|start|> inside a header")
            self._header, self._implied_role = [], False
            return deltas
        if id == STARTOFTEXT:
            self._repairs.append("<|startoftext|> inside a header: left out")
            return []
        if id == CHANNEL and CHANNEL in self._header:
            # Two channels: what was said under the first one stays there, what follows belongs to the second.
            deltas = self._flush_header(id, "a second <|channel|> in one header")
            self._header, self._implied_role = [id], True
            return deltas
        self._header.append(id)
        return []

    def _open_message(self) -> list[Delta]:
        header = self._read_header(closed=True)
        self._start(header)
        self._header, self._open = None, True
        return self._grow(header.rest)

    def _flush_header(self, stop: int | None, repair: str) -> list[Delta]:
        """A header that never came to `<|message|>`. With something to tell it becomes a message, else a note."""
        header = self._read_header(closed=False)
        self._repairs.append(repair)
        if not (header.rest or header.channel or header.recipient or header.content_type or header.name):
            return []
        self._start(header)
        self._open = True
        return self._grow(header.rest) + self._close(stop)

    def _read_header(self, closed: bool) -> Header:
        # Cut at the control token, not at its spelling: plain text that says "<|channel|>" opens none.
        assert self._header is not None
        cut = self._header.index(CHANNEL) if CHANNEL in self._header else len(self._header)
        author, channel = (self._vocabulary.decode(ids) for ids in (self._header[:cut], self._header[cut + 1 :]))
        return read_header(author, channel if cut < len(self._header) else None, self._implied_role, closed)

    def _start(self, header: Header) -> None:
        channel, repairs = header.channel, self._repairs + header.repairs
        if channel is None and header.role == "assistant":
            channel = "commentary" if header.recipient else self._channel_of_continuation()
            repairs.append(f"no channel: taken as {channel}")
        self._repairs = []
        self.messages.append(
            ParsedMessage(
                header.role,
                channel,
                header.recipient,
                header.content_type,
                name=header.name,
                header=header.text,
                repairs=repairs,
            )
        )

    def _channel_of_continuation(self) -> str:
        before = next((m for m in reversed(self.messages) if m.role == "assistant"), None)
        return "final" if before is None else before.channel or "final"

    def _grow(self, text: str) -> list[Delta]:
        if not text:
            return []
        self.messages[-1].content += text
        return [Delta(len(self.messages) - 1, text)]

    def _close(self, stop: int | None) -> list[Delta]:
        deltas = self._grow(self._utf8.decode(b"", final=True))
        self._utf8.reset()
        message = self.messages[-1]
        message.complete, message.stop = stop is not None, stop
        self._open = False
        return deltas

    def _note(self, repair: str) -> None:
        (self.messages[-1].repairs if self.messages else self._repairs).append(repair)


def parse(ids: Iterable[int], vocabulary: Vocabulary, start: Start = "assistant-header") -> list[ParsedMessage]:
    """All messages in a stream of token ids; see the module's promises."""
    parser = Parser(vocabulary, start)
    for id in ids:
        parser.push(id)
    parser.finish()
    return parser.messages
