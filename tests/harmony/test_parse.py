"""Tests of the parser.

On well-formed streams it equals openai-harmony's strict parser. On all others it loses no text and shows no thought.
Fuzzing and its judge are in prove/parser.py. Malformed streams of the real world are in corpus/malformed_streams.jsonl.
"""

from __future__ import annotations

import functools
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.harmony.conversation import Message, ParsedMessage
from ossia.harmony.header import Header, parse_header
from ossia.harmony.parse import Parser, TextDelta, parse, parse_text
from ossia.harmony.render import render_messages
from ossia.harmony.tokenizer.vocabulary import CHANNEL, CONTROL_TOKENS, END, MESSAGE, RETURN, START, Vocabulary
from prove import parser as fuzz
from support import harmony_samples as samples

CORPUS = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "corpus" / "malformed_streams.jsonl")
    .read_text(encoding="utf-8")
    .splitlines()
]


@pytest.fixture(scope="module")
def vocabulary(tokenizer_folder: Path) -> Vocabulary:
    return Vocabulary.load(tokenizer_folder)


def fields(messages: list[ParsedMessage]) -> list[tuple[Any, ...]]:
    return [(m.role, m.name, m.channel, m.recipient, m.content_type, m.content) for m in messages]


def strict(ids: list[int], role: str | None = "assistant") -> list[tuple[Any, ...]] | None:
    """Return the messages of openai-harmony's strict parser, or None if it raises."""
    import openai_harmony as oh

    try:
        found = samples.judge().parse_messages_from_completion_tokens(
            ids, None if role is None else oh.Role(role), strict=True
        )
    except oh.HarmonyError:
        return None
    return [
        (m.author.role.value, m.author.name, m.channel, m.recipient, m.content_type, m.content[0].text) for m in found
    ]


# Well-formed streams


@pytest.mark.parametrize("order", ["channel-first", "recipient-first"])
def test_well_formed_streams_equal_openai_harmony(vocabulary: Vocabulary, order: Any) -> None:
    rng = random.Random(21)
    for _ in range(600):
        # These are messages that a model may write, invented tool results included. Every message has a channel.
        messages = [m for m in samples.turn(rng, ["lookup", "f"]) if m.role in ("assistant", "tool")]
        ids = render_messages(messages, vocabulary, order, stop=True).ids[2:]
        ours = parse(ids, vocabulary)
        assert fields(ours) == strict(ids)
        assert all(m.complete and not m.repairs and not m.moved for m in ours)
        assert [m.to_message() for m in ours] == messages
        assert not fuzz.check(ids, vocabulary)


@pytest.mark.parametrize("order", ["channel-first", "recipient-first"])
def test_whole_conversations_equal_openai_harmony(vocabulary: Vocabulary, order: Any) -> None:
    rng = random.Random(22)
    for _ in range(200):
        messages = list(samples.conversation(rng).messages)
        ids = render_messages(messages, vocabulary, order).ids
        ours = parse(ids, vocabulary, "message")
        assert [m.to_message() for m in ours] == messages
        if not any(m.role == "user" and m.name for m in messages):  # the library cannot read its own names of users
            assert fields(ours) == strict(ids, None)


TYPES = ["", " json", " code", " <|constrain|>json", "<|constrain|>json", " <|constrain|>xml"]
HEADERS = [
    f"{before}<|channel|>{channel}{after}{kind}"
    for channel in ("analysis", "commentary", "final")
    for recipient in ("", " to=functions.f", " to=python", " to=browser.search", " to=container.exec", " to=all")
    for before, after in {(recipient, ""), ("", recipient)}
    for kind in TYPES
    if recipient or not kind
] + [
    "<|channel|>commentary functions.f",
    "<|channel|>commentary f json",
    "<|channel|>final\n",
    "assistant<|channel|>final",
]


@pytest.mark.parametrize("content", ["A", "", " <|end|> spelt", "日本語 👩‍🚀\n", "é\x00"])
def test_every_legal_header_is_read_as_by_openai_harmony(vocabulary: Vocabulary, content: str) -> None:
    for header in HEADERS:
        ids = [*vocabulary.encode_with_specials(header), MESSAGE, *vocabulary.encode(content), END]
        theirs = strict(ids)
        assert theirs is not None, header
        assert fields(parse(ids, vocabulary)) == theirs, header
        tool = [START, *vocabulary.encode("functions.f to=assistant"), CHANNEL, *vocabulary.encode("commentary")]
        ids += [*tool, MESSAGE, *vocabulary.encode(content), END]
        assert fields(parse(ids, vocabulary)) == strict(ids), header


def test_invalid_utf8_in_the_content_equals_openai_harmony(vocabulary: Vocabulary) -> None:
    rng = random.Random(23)
    broken = [9552, 9552, 160, 240, 222, 102, *range(128, 190), *vocabulary.encode("𒀱👩‍🚀")]
    for _ in range(300):
        content = [rng.choice([*broken, 75, 17196]) for _ in range(rng.randint(1, 12))]
        ids = [CHANNEL, 17196, MESSAGE, *content, RETURN]
        assert fields(parse(ids, vocabulary)) == strict(ids)


# Headers that the library accepts and labels wrongly. For each, its (channel, recipient, content type), and ours.
DEVIATIONS: dict[str, tuple[tuple[str | None, ...], tuple[str | None, ...]]] = {
    "<|channel|>final json": (("final", "json", None), ("final", None, "json")),
    "<|channel|>final <|constrain|>json": (("final", "<|constrain|>json", None), ("final", None, "<|constrain|>json")),
    "<|channel|>analysis I think": (("analysis", "I", "think"), ("analysis", None, None)),
    "<|channel|>analysis I": (("analysis", "I", None), ("analysis", None, None)),
    "<|channel|>commentary?": (("commentary?", None, None), ("commentary", None, None)),
    "<|channel|>final.": (("final.", None, None), ("commentary", None, None)),
    "<|channel|>thinking": (("thinking", None, None), ("analysis", None, None)),
    "<|channel|>FINAL": (("FINAL", None, None), ("analysis", None, None)),
    "<|channel|>finale": (("finale", None, None), ("analysis", None, None)),
    "": ((None, None, None), ("commentary", None, None)),
    " to=f json": ((None, "f", "json"), ("commentary", "f", "json")),
    "final": ((None, "final", None), ("commentary", None, None)),
    "hello": ((None, "hello", None), ("commentary", None, None)),
    "<|channel|>analysis<|channel|>final": (("analysis", "<|channel|>final", None), ("final", None, None)),
    "<|channel|>commentary to=": (("commentary", "", None), ("commentary", None, None)),
}


@pytest.mark.parametrize("header", DEVIATIONS)
def test_deviations_from_openai_harmony(vocabulary: Vocabulary, header: str) -> None:
    """The test detects a change of the library or of our parser.

    Structured output is the only legal case, so it needs no repair.
    """
    theirs, ours = DEVIATIONS[header]
    ids = [*vocabulary.encode_with_specials(header), MESSAGE, 32, END]
    judged = strict(ids)
    assert judged is not None
    assert [m[2:5] for m in judged] == [theirs]
    (message,) = parse(ids, vocabulary)
    assert (message.channel, message.recipient, message.content_type) == ours
    assert bool(message.repairs) == (ours[2] is None or "to=" in header)


# Malformed streams


def ids_of(case: dict[str, Any], vocabulary: Vocabulary) -> list[int]:
    return case["ids"] if "ids" in case else vocabulary.encode_with_specials(case["stream"])


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case["name"])
def test_malformed_streams_of_the_real_world(vocabulary: Vocabulary, case: dict[str, Any]) -> None:
    ids, start = ids_of(case, vocabulary), case.get("start", "assistant-header")
    messages = parse(ids, vocabulary, start)
    found = [{key: getattr(m, key) for key in want} for m, want in zip(messages, case["expected"], strict=True)]
    assert found == case["expected"]
    assert any(m.repairs for m in messages) == case["repaired"]
    assert all(m.role == want.get("role", "assistant") for m, want in zip(messages, case["expected"], strict=True))
    assert not fuzz.check(ids, vocabulary, start)


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case["name"])
def test_text_is_parsed_like_tokens(vocabulary: Vocabulary, case: dict[str, Any]) -> None:
    ids, start = ids_of(case, vocabulary), case.get("start", "assistant-header")
    text = case["stream"] if "stream" in case else vocabulary.decode(ids)
    by_text = parse_text(text, start)
    assert fields(by_text) == fields(parse(vocabulary.encode_with_specials(text), vocabulary, start))


def test_text_with_anything_in_it() -> None:
    (message,) = parse_text("<|start|>assistant<|channel|>final<|message|>a\ud800b<|return|>")
    assert (message.content, message.repairs) == ("a�b", [])
    assert message.content_span == (5, 6)
    assert parse_text("") == []
    many = "".join(f"<|start|>user<|message|>{n}<|end|>" for n in range(1000))
    assert [m.content for m in parse_text(many)] == [str(n) for n in range(1000)]


def test_fuzz() -> None:
    found = fuzz.run("suite", 20_000)
    assert found["streams"] == 20_000
    assert {kind: found[kind] for kind in ("exception", "leak", "lost")} == {"exception": 0, "leak": 0, "lost": 0}


@settings(max_examples=200)
@given(
    st.lists(st.one_of(st.sampled_from(sorted(CONTROL_TOKENS)), st.integers(-10, 300_000), st.integers()), max_size=40)
)
def test_total(ids: list[int]) -> None:
    for start in fuzz.STARTS:
        assert not fuzz.check(ids, Vocabulary.load(), start)


# The judge can fail


def broken(name: str, change: Callable[[Any, Any], Any]) -> tuple[str, Callable[..., Any]]:
    """Return the name of a parser's method and a copy of it that returns change(parser, result)."""
    whole = getattr(Parser, name)

    @functools.wraps(whole)
    def method(self: Parser, *arguments: Any, **named: Any) -> Any:
        return change(self, whole(self, *arguments, **named))

    return name, method


def _raise(parser: Parser, deltas: list[TextDelta]) -> list[TextDelta]:
    assert parser._count != 17
    return deltas


def _forget(parser: Parser, result: Any) -> Any:
    parser._continuation = "commentary"
    return result


def _swallow(parser: Parser, result: Any) -> Any:
    parser._parts = [part for part in parser._parts if "river" not in part]
    return result


def _shift(parser: Parser, result: Any) -> Any:
    first, stop = parser._messages[-1].content_span
    parser._messages[-1].content_span = first, stop - 1
    return result


def _rename(parser: Parser, header: Header) -> Header:
    header.channel = "final" if header.channel == "commentary" and not header.recipient else header.channel
    return header


def _without_rest(parser: Parser, header: Header) -> Header:
    header.rest = header.rest[:-1]
    return header


def _unnamed(parser: Parser, result: Any) -> Any:
    parser._pending = [repair for repair in parser._pending if "stray" not in repair]
    for message in parser._messages:
        message.repairs = [repair for repair in message.repairs if "stray" not in repair]
    return result


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("exception", broken("push", _raise)),
        ("leak", broken("_channel_of", lambda self, channel: channel or "final")),
        ("leak", broken("_channel_of", lambda self, channel: "final" if channel == "commentary" else channel)),
        ("leak", broken("_start", _forget)),
        ("leak", broken("_read", _rename)),
        ("lost", broken("_push_content", _swallow)),
        ("lost", broken("_push_content", lambda self, deltas: deltas[1:])),
        ("lost", broken("_settle", _shift)),
        ("lost", broken("_read", _without_rest)),
        ("lost", broken("_push_between", _unnamed)),
        ("lost", broken("_keep_for_the_next", lambda self, _: setattr(self, "_draft", None))),
    ],
)
def test_the_judge_catches_a_broken_parser(
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    change: tuple[str, Callable[..., Any]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Parser, *change)
    assert fuzz.run("broken", 2000)[kind] > 0


def test_the_judge_catches_text_that_surfaces_in_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["ossia.harmony.parse"]
    monkeypatch.setattr(module, "text_before_channel", lambda author, implied_role: False)
    read = parse_header

    def careless(author: str, channel: str | None, implied_role: bool, closed: bool) -> Header:
        header = read(author, channel, implied_role, closed)
        header.rest = f"{author} {header.rest}" if channel is not None and implied_role else header.rest
        return header

    monkeypatch.setattr(module, "parse_header", careless)
    assert fuzz.run("broken", 2000)["leak"] > 0


# Streaming


def test_the_open_message_grows(vocabulary: Vocabulary) -> None:
    parser = Parser(vocabulary)
    assert parser.messages == []
    assert parser.current is None
    for id in vocabulary.encode_with_specials("<|channel|>final<|message|>one two"):
        parser.push(id)
    current = parser.current
    assert current is not None
    assert (current.content, current.content_span, current.complete) == ("one two", (3, 5), False)
    assert parser.push(RETURN) == []
    assert parser.current is None
    assert (current.span, current.complete, current.stop) == ((0, 6), True, RETURN)
    assert parser.finish() == parser.finish() == []
    assert len(parser.messages) == 1


def test_a_character_of_many_tokens_arrives_whole(vocabulary: Vocabulary) -> None:
    parser = Parser(vocabulary)
    ids = [CHANNEL, *vocabulary.encode("final"), MESSAGE, *vocabulary.encode("a𒀱b"), RETURN]
    texts = [delta.text for id in ids for delta in parser.push(id)]
    assert "".join(texts) == "a𒀱b"
    assert "𒀱" in texts
    # If the stream is cut inside the character, its bytes become one U+FFFD.
    cut = parse([*ids[:3], *vocabulary.encode("𒀱")[:1], RETURN], vocabulary)
    assert cut[0].content == "�"


def test_control_tokens_spelt_out_in_a_header_open_nothing(vocabulary: Vocabulary) -> None:
    plain = vocabulary.encode("<|channel|>final")
    ids = [*plain, CHANNEL, *vocabulary.encode("analysis"), MESSAGE, *vocabulary.encode("secret"), END]
    before, message = parse(ids, vocabulary)
    assert (before.channel, before.content) == ("commentary", "<|channel|>final")
    assert (message.channel, message.content) == ("analysis", "secret")


def test_a_header_that_led_to_nothing_belongs_to_the_next(vocabulary: Vocabulary) -> None:
    (message,) = parse(
        vocabulary.encode_with_specials("<|start|>user<|end|><|start|>assistant<|channel|>final<|message|>A<|end|>"),
        vocabulary,
        "message",
    )
    assert (message.role, message.content) == ("assistant", "A")
    assert message.header == "user<|end|><|start|>assistant<|channel|>final"
    assert (message.span, message.header_span, message.content_span) == ((0, 10), (1, 7), (8, 9))


def test_ids_of_numpy_are_ids(vocabulary: Vocabulary) -> None:
    ids = [*vocabulary.encode_with_specials("<|channel|>final<|message|>A"), -1, 200_500, 201_088, RETURN]
    found = parse(np.array(ids), vocabulary)
    assert found == parse(ids, vocabulary)
    assert type(found[0].stop) is int


def test_a_stream_without_messages_says_what_it_left_out(vocabulary: Vocabulary) -> None:
    parser = Parser(vocabulary)
    for id in (END, START, RETURN):
        parser.push(id)
    parser.finish()
    assert parser.messages == []
    assert all(any(name in repair for repair in parser.repairs) for name in ("<|end|>", "<|start|>", "<|return|>"))


def test_repairs_are_few_however_long_the_stream(vocabulary: Vocabulary) -> None:
    ids = [CHANNEL, 17196, MESSAGE, *[200_500, -1, MESSAGE] * 2000, *[END] * 2000]
    (message,) = parse(ids, vocabulary)
    assert len(message.repairs) == 4


def test_messages_come_back_as_they_were(vocabulary: Vocabulary) -> None:
    said = Message("assistant", "{}", "commentary", "functions.f", "<|constrain|>json")
    (message,) = parse(render_messages([said], vocabulary).ids, vocabulary, "message")
    assert message.to_message() == said
