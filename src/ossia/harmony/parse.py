"""Parsing of token ids to messages. The parser accepts any sequence of ids and raises no errors.

On well-formed streams the messages are those of openai-harmony's strict parser. On all others,
`ParsedMessage.repairs` lists the corrections. Two guarantees hold, and the ids and the spans suffice to check them:

* No text is lost. Every token that is not a control token lies in exactly one header span or content span. A message's
  `header` is the decoded header span, byte for byte. Its `content` is `moved` characters of text from the header,
  followed by the decoded content span without control tokens.
* No hidden text becomes visible. A message is on channel `final` only if exactly that word follows the last
  `<|channel|>` of its header. Text after `<|channel|>analysis` stays on channel analysis until the next `<|channel|>`
  or `<|start|>`, even if other tokens lie between.

Text without a channel continues the previous message if that is a thought. Otherwise it becomes commentary, which
users see but which does not count as an answer.

The library's strict parser accepts some streams that Ossia reads differently (L the library, O Ossia):

    final json, final <|constrain|>json   L: recipient json. O: content type json, as in structured output.
    analysis I think                      L: recipient I, content type think. O: text, moved to the content. A bare word
                                          is a recipient on commentary, or else if it is dotted or a built-in tool.
    commentary?, final.                   L: a channel of that name. O: commentary.
    thinking, FINAL, finale               L: a channel of that name. O: analysis.
    no <|channel|>                        L: no channel. O: see above; a bare name is not a recipient.
    two <|channel|> in one header         L: the second is the recipient. O: the last one counts.
    foo bar<|message|> after <|start|>    L: a result of tool foo for bar. O: the assistant's text.
    <|channel|> inside a content          L: text. O: the content ends there and a header begins.
    <|message|>, <|constrain|>, <|startoftext|> there   L: text. O: left out and listed in the repairs.
    <|endoftext|> there                   L: text. O: it ends the message, as it ends sampling.
    <|endofprompt|> there                 L: <|reserved_200018|>. O: its name.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from ossia.harmony.conversation import ParsedMessage
from ossia.harmony.header import Header, HeaderDraft, parse_header, text_before_channel
from ossia.harmony.tokenizer.vocabulary import (
    CHANNEL,
    CLOSING_TOKENS,
    CONSTRAIN,
    CONTROL_TOKENS,
    MESSAGE,
    SPECIAL_TOKENS,
    START,
    STARTOFTEXT,
    VOCABULARY_SIZE,
    Pieces,
    Vocabulary,
)

Start = Literal["assistant-header", "message"]

_MOST_REPAIRS = 50


class TextDelta(NamedTuple):
    """Text that a token added to `Parser.messages[message]`."""

    message: int
    text: str


class Parser:
    """A parser of one stream, which takes one token at a time."""

    def __init__(self, vocabulary: Vocabulary | Pieces, start: Start = "assistant-header") -> None:
        """
        Args:
            start: "assistant-header" if the stream begins after `<|start|>assistant`, as sampled tokens do. "message"
                if it begins with `<|start|>`.
        """
        self.repairs: list[str] = []
        """Corrections of a stream that gave no message, in words."""
        self._bytes: Callable[[int], bytes] = vocabulary.token_bytes
        self._messages: list[ParsedMessage] = []
        self._count = 0  # tokens read
        self._open = False  # whether the last message is unfinished
        self._parts: list[str] = []  # content of the last message that is not in `content` yet
        self._unfinished = b""  # first bytes of an incomplete character
        self._draft = HeaderDraft(0, 0, True) if start == "assistant-header" else None
        self._between = start == "message"  # between messages, where a draft is a header that made no message
        self._continuation = "commentary"  # channel of text without one
        self._pending: list[str] = []  # repairs for the next message

    @property
    def messages(self) -> list[ParsedMessage]:
        """The messages read so far. Each access brings content and spans of an open message up to date."""
        if self._open:
            self._settle(self._count)
        return self._messages

    @property
    def current(self) -> ParsedMessage | None:
        """The open message, which receives the next content; None between messages and inside a header."""
        return self.messages[-1] if self._open else None

    def push(self, id: int) -> list[TextDelta]:
        """Read one token and return the text that it added: at most one piece, or more where a header was repaired."""
        self._count += 1
        if self._open:
            return self._push_content(id) if 0 <= id < STARTOFTEXT else self._push_special(int(id))
        if self._between:
            return self._push_between(int(id))
        return self._push_header(int(id))

    def finish(self) -> list[TextDelta]:
        """End the stream and return the text that this added.

        An open message stays incomplete. A header without `<|message|>` becomes a message.
        """
        deltas: list[TextDelta] = []
        if self._open:
            deltas = self._close(None, self._count)
        elif not self._between and self._draft and self._draft.begin < self._count:
            deltas = self._end_header(None, self._count, "the stream ended in a header")
        if self._draft is not None and self._draft.has_text():
            header = self._draft.header or self._read(self._draft, closed=False)
            self._start(header, None, self._count, self._count)
            self._close(None, self._count)
        self._draft, self._between = None, True
        target = self._messages[-1].repairs if self._messages else self.repairs
        target += [repair for repair in self._pending if repair not in target]
        self._pending = []
        return deltas

    # Content

    def _push_content(self, id: int) -> list[TextDelta]:
        data = self._unfinished + self._bytes(id) if self._unfinished else self._bytes(id)
        text, used = codecs.utf_8_decode(data, "replace", False)
        self._unfinished = data[used:] if used < len(data) else b""
        return self._grow(text)

    def _push_special(self, id: int) -> list[TextDelta]:
        at = self._count - 1
        if id in CLOSING_TOKENS:
            return self._close(id, at)
        if id in (START, CHANNEL):
            self._repair(f"{SPECIAL_TOKENS[id]} inside the content: closed before it")
            deltas = self._close(id, at)
            self._begin_header(id, at)
            return deltas
        if id in CONTROL_TOKENS:
            self._repair(f"{SPECIAL_TOKENS[id]} inside the content: left out")
            return []
        self._repair(_oddity(id))
        return self._push_content(id)

    def _grow(self, text: str) -> list[TextDelta]:
        if not text:
            return []
        self._parts.append(text)
        return [TextDelta(len(self._messages) - 1, text)]

    def _settle(self, stop: int) -> None:
        message = self._messages[-1]
        if self._parts:
            message.content += "".join(self._parts)
            self._parts = []
        message.content_span = message.content_span[0], stop
        message.span = message.span[0], stop

    def _close(self, stop: int | None, at: int) -> list[TextDelta]:
        """End the content before the token `at`, which belongs to the message if it is a closing token."""
        deltas = self._grow(self._unfinished.decode("utf-8", "replace"))
        self._settle(at)
        message = self._messages[-1]
        message.complete, message.stop = stop is not None, stop
        if stop in CLOSING_TOKENS:
            message.span = message.span[0], at + 1
        self._unfinished, self._open, self._between = b"", False, True
        return deltas

    # Between messages

    def _push_between(self, id: int) -> list[TextDelta]:
        if id in CLOSING_TOKENS or id == STARTOFTEXT:
            self._repair(f"stray {SPECIAL_TOKENS[id]} between messages: left out")
            if self._draft is not None:
                self._draft.ids.append(id)
        elif id == START:
            self._begin_header(id, self._count - 1)
        else:
            self._note("<|start|> is missing")
            self._begin_header(None, self._count - 1)
            return self._push_header(id)
        return []

    def _begin_header(self, first: int | None, at: int) -> None:
        """Begin a header at the token `at`: with START, with CHANNEL, or (None) with text."""
        if self._draft is None:
            self._draft = HeaderDraft(at, at + 1 if first == START else at, first != START)
        else:
            draft = self._draft
            draft.ids += [START] if first == START else []
            draft.own, draft.implied_role = len(draft.ids), first != START
            draft.author_stop = draft.channel = draft.before = None
        if first == CHANNEL:
            self._draft.author_stop = self._draft.channel = len(self._draft.ids)
            self._draft.ids.append(CHANNEL)
        self._between = False

    # Headers

    def _push_header(self, id: int) -> list[TextDelta]:
        assert self._draft is not None
        at = self._count - 1
        if id == MESSAGE:
            return self._open_message(at)
        if id in CLOSING_TOKENS:
            return self._end_header(id, at, f"{SPECIAL_TOKENS[id]} instead of <|message|>")
        if id == START:
            deltas = self._end_header(id, at, "<|start|> inside a header")
            self._begin_header(id, at)
            return deltas
        if id == CHANNEL:
            return self._push_channel(at)
        if id == STARTOFTEXT:
            self._draft.has_startoftext = True
            self._note("<|startoftext|> inside a header: left out")
        elif id != CONSTRAIN and not 0 <= id < STARTOFTEXT:
            self._note(_oddity(id))
        self._draft.ids.append(id)
        return []

    def _push_channel(self, at: int) -> list[TextDelta]:
        """Read a `<|channel|>`. Text before it in the header becomes a message on a channel of its own."""
        draft = self._draft
        assert draft is not None
        repair = ""
        if draft.channel is None:
            has_text = any(id not in CONTROL_TOKENS for id in draft.ids[draft.own :])
            if has_text and text_before_channel(self._author(draft), draft.implied_role):
                repair = "text before <|channel|>: a message of its own"
        else:
            header = draft.before = self._read(draft, closed=False)
            repair = "a second <|channel|> in one header"
            if not header.rest:
                self._note(repair)
                self._note_all(header)
                repair = ""
        if repair:
            deltas = self._end_header(CHANNEL, at, repair)
            self._begin_header(CHANNEL, at)
            return deltas
        draft.channel = len(draft.ids)
        if draft.author_stop is None:
            draft.author_stop = draft.channel
        draft.ids.append(CHANNEL)
        return []

    def _open_message(self, at: int) -> list[TextDelta]:
        draft = self._draft
        assert draft is not None
        header = self._read(draft, closed=True)
        self._start(header, self._channel_of(header, draft), at, at + 1)
        return self._grow(header.rest)

    def _end_header(self, stop: int | None, at: int, repair: str) -> list[TextDelta]:
        """End a header that has no `<|message|>`. It becomes a message if it has more than a role."""
        draft = self._draft
        assert draft is not None
        self._note(repair)
        self._between = True
        header, own = self._read(draft, closed=False), draft.ids[draft.own :]
        if header.says_nothing or all(id in CONTROL_TOKENS for id in own):
            self._keep_for_the_next(draft, header, stop)
            return []
        channel, content_start, text = self._channel_of(header, draft), at, header.rest
        if draft.channel is None and header.rest == self._author(draft):
            # The text has no header, so its tokens are the content.
            content_start = draft.start + draft.own
            header.rest, text = "", self._decode(id for id in own if id not in CONTROL_TOKENS)
            if CONSTRAIN in own:
                header.repairs.append("<|constrain|> inside the content: left out")
        self._start(header, channel, content_start, content_start)
        return self._grow(text) + self._close(stop, at)

    def _keep_for_the_next(self, draft: HeaderDraft, header: Header, stop: int | None) -> None:
        """Keep the tokens of a header that made no message for the next header, unless they have no text."""
        if not draft.has_text():
            for id in draft.ids if draft.implied_role else [START, *draft.ids]:
                self._note(f"{SPECIAL_TOKENS[id]} in a header without text: left out")
            self._draft = None
            return
        draft.header, header.rest = header, ""
        self._note_all(header)
        if stop in CLOSING_TOKENS:
            draft.ids.append(stop)

    def _read(self, draft: HeaderDraft, closed: bool) -> Header:
        # Cut at the control token and not at its spelling, because plain text "<|channel|>" does not open a channel.
        channel = None if draft.channel is None else self._decode(draft.ids[draft.channel + 1 :])
        header = parse_header(self._author(draft), channel, draft.implied_role, closed)
        if draft.before is not None:
            header.inherit(draft.before)
        if draft.has_startoftext:
            header.rest = header.rest.replace(SPECIAL_TOKENS[STARTOFTEXT], " ")
        return header

    def _author(self, draft: HeaderDraft) -> str:
        """Return the header's text before `<|channel|>`."""
        ids = draft.ids[draft.own : draft.author_stop]
        return b"".join(b" " if id == STARTOFTEXT else self._bytes(id) for id in ids).decode("utf-8", "replace")

    def _channel_of(self, header: Header, draft: HeaderDraft) -> str | None:
        goes_on = draft.implied_role and draft.channel is None and self._continuation == "analysis"
        if header.role != "assistant" or (header.channel is not None and not goes_on):
            return header.channel
        channel = self._continuation
        if not draft.implied_role and (header.recipient or (self._messages and self._messages[-1].role == "user")):
            channel = "commentary"  # this text cannot be the continuation of a thought
        header.repairs.append(f"no channel: taken as {channel}")
        return channel

    def _start(self, header: Header, channel: str | None, header_stop: int, content_start: int) -> None:
        """Append the message that the draft begins."""
        draft = self._draft
        assert draft is not None
        self._note_all(header)
        message = ParsedMessage(header.role, channel, header.recipient, header.content_type, name=header.name)
        message.header = self._decode(draft.ids[: header_stop - draft.start])
        message.repairs, message.moved = self._pending, len(header.rest)
        message.span, message.header_span = (draft.begin, content_start), (draft.start, header_stop)
        message.content_span = content_start, content_start
        self._messages.append(message)
        if channel == "analysis" or header.role == "assistant":
            self._continuation = "analysis" if channel == "analysis" else "commentary"
        self._pending, self._draft = [], None
        self._open, self._between = True, False

    # Repairs

    def _repair(self, repair: str) -> None:
        """Record a repair of the last message, or of the next one inside a header and before the first message."""
        repairs = self._messages[-1].repairs if self._messages and self._draft is None else self._pending
        if repair not in repairs:
            repairs.append(repair)

    def _note(self, repair: str) -> None:
        """Record a repair of the next message."""
        if repair not in self._pending:
            self._pending.append(repair)

    def _note_all(self, header: Header) -> None:
        for repair in header.repairs:
            if len(self._pending) < _MOST_REPAIRS:  # headers can be arbitrarily long
                self._note(repair)

    def _decode(self, ids: Iterable[int]) -> str:
        return b"".join(map(self._bytes, ids)).decode("utf-8", "replace")


def _oddity(id: int) -> str:
    if 0 <= id < VOCABULARY_SIZE:
        return f"{SPECIAL_TOKENS.get(id, 'a reserved token')} in the text: kept by its name"
    return "an id outside the vocabulary: kept as U+FFFD"


def parse(ids: Iterable[int], vocabulary: Vocabulary, start: Start = "assistant-header") -> list[ParsedMessage]:
    """Return all messages in a stream of token ids. The module's docstring states the guarantees."""
    parser = Parser(vocabulary, start)
    for id in ids:
        parser.push(id)
    parser.finish()
    return parser.messages


def parse_text(text: str, start: Start = "message") -> list[ParsedMessage]:
    """Return all messages in a text with control tokens spelt out, such as Harmony text in a data set.

    The parser is the same, but needs no tokenizer. The text between two control tokens counts as one token, also in
    the spans. Lone surrogates become U+FFFD.
    """
    pieces = Pieces()
    parser = Parser(pieces, start)
    for piece in pieces.split(text):
        parser.push(pieces.id_of(piece))
    parser.finish()
    return parser.messages
