"""The parser: openai-harmony's strict parser on well-formed streams, three promises on all others."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import harmony_samples as samples
from ossia.harmony.conversation import Message
from ossia.harmony.parse import Parser, parse
from ossia.harmony.render import render_messages
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

CONTROL = (START, CHANNEL, MESSAGE, CONSTRAIN, END, RETURN, CALL, STARTOFTEXT, ENDOFTEXT)


@pytest.fixture(scope="module")
def vocabulary(tokenizer_folder: Path) -> Vocabulary:
    return Vocabulary.load(tokenizer_folder)


def sampled_turn(rng: random.Random) -> list[Message]:
    """What a model writes, hallucinated tool results included; every message has a channel."""
    return [m for m in samples.turn(rng, ["lookup", "f"]) if m.role in ("assistant", "tool")]


@pytest.mark.parametrize("order", ["channel-first", "recipient-first"])
def test_well_formed_streams_equal_openai_harmony(vocabulary: Vocabulary, order) -> None:
    import openai_harmony as oh

    judge, rng = samples.judge(), random.Random(21)
    for _ in range(250):
        messages = sampled_turn(rng)
        ids = render_messages(messages, vocabulary, order, stop=True).ids[2:]
        theirs = judge.parse_messages_from_completion_tokens(ids, oh.Role.ASSISTANT, strict=True)
        ours = parse(ids, vocabulary)
        assert [(m.role, m.name, m.channel, m.recipient, m.content_type, m.content) for m in ours] == [
            (m.author.role.value, m.author.name, m.channel, m.recipient, m.content_type, m.content[0].text)
            for m in theirs
        ]
        assert all(m.complete and not m.repairs for m in ours)
        assert [m.to_message() for m in ours] == messages


def test_whole_conversations_come_back(vocabulary: Vocabulary) -> None:
    rng = random.Random(22)
    for _ in range(200):
        messages = tuple(m for m in samples.conversation(rng).messages)
        ids = render_messages(messages, vocabulary).ids
        assert tuple(m.to_message() for m in parse(ids, vocabulary, "message")) == messages


def soup(rng: random.Random, vocabulary: Vocabulary) -> list[int]:
    """Anything at all, with plenty of almost right headers."""
    pieces = [
        "analysis", "commentary", "final", " to=functions.f", "assistant", "user", "functions.f to=assistant", " json",
        "Hello there", " I think", "?", "foo", "<|channel|>final", "to=", "日本", "\n", "finale", "analysisfinal", "{",
    ]  # fmt: skip
    ids: list[int] = []
    for _ in range(rng.randint(0, 30)):
        kind = rng.random()
        if kind < 0.45:
            ids.append(rng.choice(CONTROL))
        elif kind < 0.9:
            ids += vocabulary.encode(rng.choice(pieces))
        else:
            ids.append(rng.choice([rng.randint(-3, 201_100), rng.randint(0, 255), rng.randint(200_000, 200_018)]))
    return ids


def test_any_soup_gives_messages_and_loses_no_text(vocabulary: Vocabulary) -> None:
    rng = random.Random(23)
    for _ in range(2500):
        ids = soup(rng, vocabulary)
        messages = parse(ids, vocabulary, rng.choice(["assistant-header", "message"]))
        kept = "".join(m.header + m.content for m in messages)
        # Runs of plain text between control tokens, by bytes; role words of headers that led to nothing may go.
        run: list[int] = []
        for id in [*ids, END]:
            if id not in CONTROL:
                run.append(id)
                continue
            words = vocabulary.decode(run).split()
            run = []
            lost = [word for word in words if word not in kept and not re.fullmatch("(assistant|user)+", word)]
            assert lost == [], (vocabulary.decode(ids), messages)


def test_every_word_is_kept_as_often_as_it_came(vocabulary: Vocabulary) -> None:
    """Each word of the stream is unique here, so that a word kept elsewhere cannot stand in for a lost one."""
    rng = random.Random(24)
    for _ in range(3000):
        ids: list[int] = []
        words = []
        for number in range(rng.randint(1, 25)):
            if rng.random() < 0.5:
                ids.append(rng.choice(CONTROL))
            elif rng.random() < 0.4:
                ids += vocabulary.encode(
                    rng.choice(["analysis", "final", "commentary", " to=functions.f", "assistant"])
                )
            else:
                words.append(f"w{number}x")
                ids += vocabulary.encode(rng.choice(["", " "]) + words[-1])
        kept = "".join(m.header + "\n" + m.content for m in parse(ids, vocabulary))
        assert [word for word in words if word not in kept] == [], (vocabulary.decode(ids), kept)


def test_no_thought_leaks(vocabulary: Vocabulary) -> None:
    """Judged from the ids alone: a word whose latest channel token was followed by `analysis` is a thought."""
    rng = random.Random(25)
    for _ in range(2500):
        ids: list[int] = []
        thoughts, under_analysis = [], False
        for number in range(rng.randint(1, 25)):
            kind = rng.random()
            if kind < 0.3:
                channel = rng.choice(
                    ["analysis", "final", "commentary", "finale", "final?", "analysis<|channel|>final"]
                )
                ids += [CHANNEL, *vocabulary.encode(channel)]
                under_analysis = channel.startswith("analysis")
            elif kind < 0.6:
                token = rng.choice([MESSAGE, END, RETURN, CALL, CONSTRAIN, STARTOFTEXT, START])
                ids.append(token)
                under_analysis = under_analysis and token in (MESSAGE, CONSTRAIN, STARTOFTEXT)
            else:
                word = f"w{number}x"
                ids += vocabulary.encode(f" {word} and more")
                if under_analysis:
                    thoughts.append(word)
        shown = "".join(m.content for m in parse(ids, vocabulary) if m.channel != "analysis")
        assert [word for word in thoughts if word in shown] == [], vocabulary.decode(ids)


def test_deltas_add_up_to_the_contents(vocabulary: Vocabulary) -> None:
    rng = random.Random(26)
    for _ in range(1500):
        parser, texts = Parser(vocabulary), dict[int, str]()
        for deltas in [*map(parser.push, soup(rng, vocabulary)), parser.finish()]:
            for delta in deltas:
                assert delta.text
                texts[delta.message] = texts.get(delta.message, "") + delta.text
        assert texts == {index: m.content for index, m in enumerate(parser.messages) if m.content}
        assert parser.current is None


@settings(max_examples=200)
@given(st.lists(st.one_of(st.sampled_from(CONTROL), st.integers(-10, 300_000)), max_size=40))
def test_total(ids: list[int]) -> None:
    for start in ("assistant-header", "message"):
        assert all(isinstance(m.content, str) for m in parse(ids, Vocabulary.load(), start))


F, J = "functions.f", "<|constrain|>json"
# Malformed streams as reported to the trackers of openai/harmony, llama.cpp and vLLM
# -> [(channel, recipient, content type, content)], and whether the parser says that it mended something.
CASES: dict[str, tuple[str, list[tuple[str | None, str | None, str | None, str]], bool]] = {
    "plain": ("<|channel|>final<|message|>A<|return|>", [("final", None, None, "A")], False),
    "end then return": ("<|channel|>final<|message|>A<|end|><|return|>", [("final", None, None, "A")], True),
    "doubled start": ("<|start|>assistant<|channel|>final<|message|>A<|return|>", [("final", None, None, "A")], True),
    "role twice": ("assistantassistant<|channel|>final<|message|>A<|return|>", [("final", None, None, "A")], True),
    "text after a thought stays a thought": (
        "<|channel|>analysis<|message|>t<|end|>more<|return|>",
        [("analysis", None, None, "t"), ("analysis", None, None, "more")],
        True,
    ),
    "text after an answer": (
        "<|channel|>final<|message|>A<|end|>more<|return|>",
        [("final", None, None, "A"), ("final", None, None, "more")],
        True,
    ),
    "refusal without a header": ("I'm sorry.<|return|>", [("final", None, None, "I'm sorry.")], True),
    "no message token": ("<|channel|>final I'm sorry.<|return|>", [("final", None, None, "I'm sorry.")], True),
    "words in the header": (
        "<|channel|>analysis I think<|message|>t<|end|>",
        [("analysis", None, None, "I thinkt")],
        True,
    ),
    "question mark": ("<|channel|>commentary?<|message|>t<|end|>", [("commentary", None, None, "t")], True),
    "unknown channel": ("<|channel|>thinking<|message|>t<|end|>", [("analysis", None, None, "t")], True),
    "no end": (
        "<|channel|>analysis<|message|>t<|channel|>final<|message|>A<|return|>",
        [("analysis", None, None, "t"), ("final", None, None, "A")],
        True,
    ),
    "no end, start": (
        "<|channel|>analysis<|message|>t<|start|>assistant<|channel|>final<|message|>A<|return|>",
        [("analysis", None, None, "t"), ("final", None, None, "A")],
        True,
    ),
    "channel run into the role": (
        "<|channel|>analysis<|message|>t<|end|><|start|>assistantfinal<|message|>A",
        [("analysis", None, None, "t"), ("final", None, None, "A")],
        True,
    ),
    "cut in a header": ("<|channel|>commentary to=functions.f", [("commentary", F, None, "")], True),
    "cut in a call": (f"<|channel|>commentary to={F} {J}<|message|>{{", [("commentary", F, J, "{")], False),
    "recipient twice": (
        f" to={F}<|channel|>commentary to={F} {J}<|message|>{{}}<|call|>",
        [("commentary", F, J, "{}")],
        True,
    ),
    "constrain adjacent": (
        f"<|channel|>commentary to={F}{J}<|message|>{{}}<|call|>",
        [("commentary", F, J, "{}")],
        False,
    ),
    "constrain spaced": (
        f"<|channel|>commentary to={F} <|constrain|> json<|message|>{{}}<|call|>",
        [("commentary", F, J, "{}")],
        False,
    ),
    "recipient without to=": (
        f"<|channel|>commentary {F} json<|message|>{{}}<|call|>",
        [("commentary", F, "json", "{}")],
        False,
    ),
    "no channel, recipient": (f" to={F} json<|message|>{{}}<|call|>", [("commentary", F, "json", "{}")], True),
    "python in a thought": (
        "<|channel|>analysis to=python code<|message|>1<|call|>",
        [("analysis", "python", "code", "1")],
        False,
    ),
    "structured answer": (f"<|channel|>final {J}<|message|>{{}}<|return|>", [("final", None, J, "{}")], False),
    "structured answer, bare": ("<|channel|>final json<|message|>{}<|return|>", [("final", None, "json", "{}")], False),
    "nothing": ("", [], False),
    "only stops": ("<|end|><|return|><|call|>", [], False),
    "endoftext": ("<|channel|>final<|message|>A<|endoftext|>", [("final", None, None, "A")], False),
}


@pytest.mark.parametrize("name", CASES)
def test_known_malformed_streams(vocabulary: Vocabulary, name: str) -> None:
    stream, expected, mended = CASES[name]
    messages = parse(vocabulary.encode_with_specials(stream), vocabulary)
    assert [(m.channel, m.recipient, m.content_type, m.content) for m in messages] == expected
    assert any(m.repairs for m in messages) == mended


def test_control_tokens_spelt_out_in_a_header_open_nothing(vocabulary: Vocabulary) -> None:
    plain = vocabulary.encode("<|channel|>final")
    ids = [*plain, CHANNEL, *vocabulary.encode("analysis"), MESSAGE, *vocabulary.encode("secret"), END]
    (message,) = parse(ids, vocabulary)
    assert message.channel == "analysis"


def test_a_character_of_many_tokens_arrives_whole(vocabulary: Vocabulary) -> None:
    parser = Parser(vocabulary)
    ids = [CHANNEL, *vocabulary.encode("final"), MESSAGE, *vocabulary.encode("a𒀱b"), RETURN]
    texts = [delta.text for id in ids for delta in parser.push(id)]
    assert "".join(texts) == "a𒀱b" and "𒀱" in texts
    # Cut inside the character: what is there of it becomes one U+FFFD.
    cut = parse([*ids[:3], *vocabulary.encode("𒀱")[:1], RETURN], vocabulary)
    assert cut[0].content == "�"
