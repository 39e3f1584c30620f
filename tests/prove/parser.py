"""The proof of the parser: random and mutated token streams, and an independent judge.

The judge uses only the ids, the spans and the texts. It finds the channel of every token on its own.
"""

from __future__ import annotations

import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ossia.harmony.conversation import Message, ParsedMessage
from ossia.harmony.parse import Parser, Start
from ossia.harmony.render import render_messages
from ossia.harmony.tokenizer.vocabulary import Vocabulary

STARTOFTEXT, ENDOFTEXT, RETURN, CONSTRAIN, CHANNEL, START, END, MESSAGE, CALL = (
    199998, 199999, 200002, 200003, 200005, 200006, 200007, 200008, 200012,
)  # fmt: skip
CONTROL = {
    STARTOFTEXT: "<|startoftext|>", ENDOFTEXT: "<|endoftext|>", RETURN: "<|return|>", CONSTRAIN: "<|constrain|>",
    CHANNEL: "<|channel|>", START: "<|start|>", END: "<|end|>", MESSAGE: "<|message|>", CALL: "<|call|>",
}  # fmt: skip
STARTS: tuple[Start, Start] = ("assistant-header", "message")
CHUNK = 5000  # streams
CHUNKS = 200


class Fault(NamedTuple):
    """A fault in the result of the parser."""

    kind: str
    """exception, leak or lost."""
    what: str


# The judge


def check(ids: Sequence[int], vocabulary: Vocabulary, start: Start = "assistant-header") -> list[Fault]:
    """Parse a stream and return the faults of the result."""
    try:
        parser = Parser(vocabulary, start)
        pieces: dict[int, list[str]] = {}
        for id in ids:
            for index, text in parser.push(id):
                pieces.setdefault(index, []).append(text)
        for index, text in parser.finish():
            pieces.setdefault(index, []).append(text)
        messages = parser.messages
    except Exception as error:  # the parser must never raise
        return [Fault("exception", repr(error))]
    faults = [Fault("lost", what) for what in _lost(ids, messages, parser.repairs, vocabulary)]
    grown = {index: "".join(texts) for index, texts in pieces.items()}
    if grown != {index: m.content for index, m in enumerate(messages) if m.content}:
        faults.append(Fault("lost", "the deltas do not add up to the contents"))
    faults += [Fault("leak", what) for what in _leaks(ids, messages, vocabulary)]
    return faults


def _lost(
    ids: Sequence[int], messages: list[ParsedMessage], repairs: list[str], vocabulary: Vocabulary
) -> Iterator[str]:
    """Yield faults where a token has no place in a message, or a text differs from its tokens."""
    at = 0
    said = "\n".join(repairs + [repair for m in messages for repair in m.repairs])
    outside: list[int] = []
    for m in messages:
        edges = (at, m.span[0], *m.header_span, *m.content_span, m.span[1], len(ids))
        if list(edges) != sorted(edges):
            yield f"the spans are out of order: {edges}"
            return
        outside += ids[at : m.span[0]]
        between = [*ids[m.span[0] : m.header_span[0]], *ids[m.header_span[1] : m.content_span[0]]]
        structure = [*between, *ids[m.content_span[1] : m.span[1]]]
        if any(id not in CONTROL for id in structure):
            yield "text in no span"
        at = m.span[1]
        yield from _texts(ids, m, vocabulary)
    outside += ids[at:]
    if any(id not in CONTROL for id in outside):
        yield "text outside of the messages"
    elif unnamed := {CONTROL[id] for id in outside if CONTROL[id] not in said}:
        yield f"no repair names {unnamed}"


def _texts(ids: Sequence[int], m: ParsedMessage, vocabulary: Vocabulary) -> Iterator[str]:
    """Yield faults of a message whose header or content differs from its tokens.

    The content is the text moved from the header, followed by the text of the content's tokens.
    """
    if m.header != vocabulary.decode(ids[slice(*m.header_span)]):
        yield "the header is not that of its span"
    body = ids[slice(*m.content_span)]
    text = [id for id in body if id not in CONTROL]
    if m.content[m.moved :] != vocabulary.decode(text) or not 0 <= m.moved <= len(m.content):
        yield "the content is not that of its span"
    if len(text) < len(body) and any(CONTROL[id] not in "\n".join(m.repairs) for id in set(body) & CONTROL.keys()):
        yield "a control token in the content that no repair names"
    place = 0
    for word in m.content[: m.moved].split():
        found = m.header.find(word, place)
        if found < 0:
            yield f"moved text that is not in the header: {word!r}"
        place = max(found, place)
    told = " ".join([m.content[: m.moved], *m.repairs, m.recipient or "", m.content_type or "", m.name or ""])
    if hidden := [word for word in _PLAIN.findall(m.header) if word not in told]:
        yield f"words of the header that are told nowhere: {hidden}"
    if m.complete != (m.stop is not None):
        yield "complete without a stop"


def _leaks(ids: Sequence[int], messages: list[ParsedMessage], vocabulary: Vocabulary) -> Iterator[str]:
    """Yield faults where a message is final without a final header, or where a thought is in another message.

    A thought is the text after `<|channel|>analysis`.
    """
    thought = _thoughts(ids, vocabulary)
    for m in messages:
        first, stop = m.header_span
        marked = [index for index in range(first, stop) if ids[index] == CHANNEL]
        if (m.channel == "final") != (bool(marked) and _channel_word(ids, marked[-1], stop, vocabulary) == "final"):
            yield f"{m.header!r} gave channel {m.channel}"
        if m.channel == "analysis":
            continue
        if m.channel == "final":
            under = vocabulary.decode(ids[marked[-1] : stop]) if marked else ""
            if any(word not in under for word in m.content[: m.moved].split()):
                yield "text from before <|channel|> in an answer"
        if any(thought[slice(*m.content_span)]):
            yield f"a thought in the content of a message on {m.channel}"
        if m.moved:
            moved = m.content[: m.moved]
            open_ = vocabulary.decode(ids[i] for i in range(first, stop) if not thought[i])
            hidden = {vocabulary.token_text(ids[i]).strip() for i in range(first, stop) if thought[i]}
            if any(len(word) > 3 and word in moved and word not in open_ for word in hidden):
                yield f"a thought in the text moved to a message on {m.channel}"


def _thoughts(ids: Sequence[int], vocabulary: Vocabulary) -> list[bool]:
    """Return for every text token whether it is part of a thought.

    It is, if the latest `<|channel|>` before it names analysis and no `<|start|>` follows that.
    """
    under, flags = False, []
    for index, id in enumerate(ids):
        if id == START:
            under = False
        elif id == CHANNEL:
            under = _channel_word(ids, index, len(ids), vocabulary).startswith("analysis")
        flags.append(under and id not in CONTROL)
    return flags


def _channel_word(ids: Sequence[int], channel: int, stop: int, vocabulary: Vocabulary) -> str:
    """Return the text after a `<|channel|>`, up to white space, `<` or a control token."""
    data = b""
    for index in range(channel + 1, stop):
        if ids[index] in CONTROL:
            break
        data += vocabulary.token_bytes(ids[index])
        if len(data) > 200 and data.strip():
            break
    found = re.match(r"\s*([^\s<]*)", data.decode("utf-8", "replace"))
    return found[1] if found else ""


# The streams

WORDS = """apple river stone cloud garden window bottle candle forest bridge silver yellow purple orange market kitchen
pencil paper doctor teacher planet rocket winter summer spring autumn monday tuesday friday coffee butter cheese bread
sugar pepper carrot tomato potato banana cherry lemon melon peach grape tiger zebra camel eagle falcon rabbit turtle
dragon castle temple palace harbor island valley desert meadow"""

_PLAIN = re.compile(rf"\b(?:{'|'.join(WORDS.split())})\b")

PIECES = [
    "analysis", "commentary", "final", " to=functions.f", "assistant", "user", "system", "functions.f to=assistant",
    " json", " code", " final", " analysis", "?", "foo", "<|channel|>final", "<|start|>", "to=", " to=python", "日本",
    "\n", " ", "finale", "analysisfinal", "{", '{"a": 1}', "functions.f", "comment", "fin", ".", "final.", "final?",
    "👩‍🚀",
    "assistantanalysis", "assistantfinal", "developer", "tool", "user:bob", "browser.search", "python", " I", "Final",
]  # fmt: skip


class Streams:
    """An endless iterator of streams of token ids with their starts. All texts are encoded beforehand."""

    def __init__(self, vocabulary: Vocabulary, seed: object) -> None:
        self._rng = random.Random(str(seed))
        encode = vocabulary.encode
        self._pieces = [encode(piece) for piece in PIECES]
        self._words = [encode(f" {word}") for word in WORDS.split()]
        self._words = [ids for ids in self._words if len(ids) == 1]
        self._control = [*CONTROL] + [CHANNEL, START, MESSAGE, END] * 2
        self._good = [self._well_formed(vocabulary) for _ in range(150)]

    def __iter__(self) -> Iterator[tuple[list[int], Start]]:
        while True:
            kind = self._rng.random()
            ids = self._soup() if kind < 0.35 else self._mutated()
            yield ids, STARTS[self._rng.random() < 0.35]

    def _text(self, most: int = 5) -> list[int]:
        return [id for _ in range(self._rng.randint(0, most)) for id in self._rng.choice(self._words)]

    def _any_id(self) -> int:
        rng = self._rng
        return rng.choice(
            [
                rng.randint(-3, 201_100),
                rng.randint(0, 255),
                rng.randint(199_990, 200_030),
                rng.choice([9552, 2**31, 2**40, -(2**33), 201_087, 201_088, 200_018]),
            ]
        )

    def _anything(self) -> list[int]:
        kind = self._rng.random()
        if kind < 0.45:
            return [self._rng.choice(self._control)]
        if kind < 0.68:
            return self._rng.choice(self._pieces)
        return self._text(3) if kind < 0.93 else [self._any_id()]

    def _soup(self) -> list[int]:
        return [id for _ in range(self._rng.randint(0, 25)) for id in self._anything()]

    def _mutated(self) -> list[int]:
        rng = self._rng
        ids = list(rng.choice(self._good))
        for _ in range(rng.choice([1, 1, 2, 3, 5])):
            kind, at = rng.randrange(7), rng.randrange(len(ids) + 1)
            if kind == 0:
                del ids[at : at + rng.choice([1, 1, 2, 4])]
            elif kind == 1:
                ids[at:at] = self._anything()
            elif kind == 2:
                ids[at:at] = ids[at : at + rng.choice([1, 1, 3])]
            elif kind == 3 and len(ids) > 1:
                one, other = rng.randrange(len(ids)), rng.randrange(len(ids))
                ids[one], ids[other] = ids[other], ids[one]
            elif kind == 4:
                ids[at : at + 1] = self._anything()
            elif kind == 5:
                del ids[at:]
            else:
                other_ids = rng.choice(self._good)
                ids[at:] = other_ids[rng.randrange(len(other_ids)) :]
        return ids

    def _well_formed(self, vocabulary: Vocabulary) -> list[int]:
        rng = self._rng

        def text() -> str:
            return vocabulary.decode(self._text())

        messages: list[Message] = []
        if rng.random() < 0.2:
            messages.append(Message("user", text(), name=rng.choice([None, "bob"])))
        for _ in range(rng.randint(0, 2)):
            messages += [Message("assistant", text(), "analysis")] * rng.randint(0, 1)
            messages += [Message("assistant", text(), "commentary")] * rng.randint(0, 1)
            target = rng.choice(["functions.f", "functions.lookup", "python", "browser.search"])
            channel = rng.choice(["commentary", "commentary", "analysis"])
            kind = rng.choice([None, "json", "code", "<|constrain|>json"])
            messages.append(Message("assistant", text(), channel, target, kind))
            messages.append(Message("tool", text(), channel, "assistant", name=target))
        messages += [Message("assistant", text(), "analysis")] * rng.randint(0, 1)
        messages.append(Message("assistant", text(), "final"))
        ids = render_messages(messages, vocabulary, rng.choice(["channel-first", "recipient-first"]), stop=True).ids
        return ids[2:] if messages[0].role == "assistant" and rng.random() < 0.8 else ids


# The run


def run(seed: object, count: int) -> Counter[str]:
    """Check `count` streams and return the counts. The same seed gives the same streams."""
    vocabulary, found = Vocabulary.load(), Counter[str]()
    streams = iter(Streams(vocabulary, seed))
    for _ in range(count):
        ids, start = next(streams)
        faults = check(ids, vocabulary, start)
        found["streams"] += 1
        found["tokens"] += len(ids)
        found.update({fault.kind for fault in faults})
        if faults and found["shown"] < 3:
            found["shown"] += 1
            print(f"seed {seed}: {faults[0]}\n  {start} {ids}\n  {vocabulary.decode(ids)!r}", file=sys.stderr)
    return found


def run_chunk(number: int) -> dict[str, int]:
    """Check one chunk of streams and return the counts."""
    return dict(run(f"0/{number}", CHUNK))


def verdict(totals: dict[str, int]) -> dict[str, object]:
    """Return the totals. The proof passes without exceptions, leaks and losses."""
    names = {"streams": "streams", "tokens": "tokens", "exceptions": "exception", "leaks": "leak", "lost": "lost"}
    counts = {name: totals.get(key, 0) for name, key in names.items()}
    return {"passed": not any(counts[name] for name in ("exceptions", "leaks", "lost")), **counts}
