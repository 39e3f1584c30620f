"""Tests of a conversation with a scripted engine: the prompts, the shown pieces and the kept messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ossia.generate.engine import Request
from ossia.generate.session import Session
from ossia.harmony.conversation import SystemSettings, call, preamble, thought
from ossia.harmony.tokenizer.vocabulary import RETURN, Vocabulary
from support.generate_fakes import Scripted, said, turn


@pytest.fixture(scope="module")
def vocabulary(tokenizer_folder: Path) -> Vocabulary:
    return Vocabulary.load(tokenizer_folder)


def test_pieces_are_told_apart_and_make_up_the_messages(vocabulary: Vocabulary) -> None:
    messages = (thought("Über 84?"), preamble("One moment…"), call("f", "{}"))
    session = Session(Scripted(lambda _: turn(vocabulary, *messages)), vocabulary)
    texts: dict[str, str] = {}
    firsts = 0
    for piece in session.say("Hi", Request()):
        texts[piece.kind] = texts.get(piece.kind, "") + piece.text
        firsts += piece.first
        assert piece.recipient == ("functions.f" if piece.kind == "call" else None)
    assert texts == {"thought": "Über 84?", "preamble": "One moment…", "call": "{}"}
    assert firsts == 3
    assert session.reply is not None
    assert (session.reply.finish, session.reply.kept) == ("stop", True)


def test_the_next_turn_sees_the_answers_but_not_the_thoughts(vocabulary: Vocabulary) -> None:
    engine = Scripted(lambda _: said(vocabulary, "Forty-two.", "A secret thought."))
    session = Session(engine, vocabulary, system=SystemSettings(effort="low"), instructions="Be brief.")
    for text in ("First?", "Second?"):
        assert "".join(p.text for p in session.say(text, Request()) if p.kind == "answer") == "Forty-two."
    first, second = (vocabulary.decode(prompt) for prompt in engine.prompts)
    assert first.endswith("<|start|>user<|message|>First?<|end|><|start|>assistant")
    middle = "<|start|>assistant<|channel|>final<|message|>Forty-two.<|end|>"
    assert second == first.removesuffix("<|start|>assistant") + middle + (
        "<|start|>user<|message|>Second?<|end|><|start|>assistant"
    )
    assert "Reasoning: low" in first
    assert "# Instructions\n\nBe brief." in first
    assert engine.requests[0].seed != engine.requests[1].seed


def test_settings_change_on_the_way_and_restart_forgets(vocabulary: Vocabulary) -> None:
    engine = Scripted(lambda _: said(vocabulary, "Yes."))
    session = Session(engine, vocabulary)
    list(session.say("First?", Request()))
    session.set_effort("high")
    session.set_instructions("Speak French.")
    list(session.say("Second?", Request()))
    session.restart()
    list(session.say("Third?", Request()))
    second, third = (vocabulary.decode(prompt) for prompt in engine.prompts[1:])
    for text in (second, third):
        assert "Reasoning: high" in text
        assert "Speak French." in text
    assert "First?" in second
    assert "First?" not in third


def test_a_stopped_answer_is_kept_and_a_stopped_thought_is_forgotten(vocabulary: Vocabulary) -> None:
    session = Session(Scripted(lambda _: said(vocabulary, "One two three four", "Long thought")), vocabulary)
    stream = session.say("Count.", Request())
    for piece in stream:
        if piece.kind == "answer" and "two" in piece.text:
            break
    stream.close()
    assert session.reply is not None
    assert (session.reply.finish, session.reply.kept) == (None, True)
    assert [m.content for m in session.conversation.messages] == ["Count.", "Long thought", "One two"]
    stream = session.say("Again.", Request())
    assert next(stream).kind == "thought"
    stream.close()
    assert session.reply.kept is False
    assert [m.content for m in session.conversation.messages] == ["Count.", "Long thought", "One two"]


def test_what_nobody_has_seen_is_not_kept(vocabulary: Vocabulary) -> None:
    def script(_: Sequence[int]) -> list[int]:
        return vocabulary.encode("A long header that never ends")

    class Interrupted(Scripted):
        def ids(self, request: Request) -> Iterator[int]:
            yield from script(request.prompt)
            raise KeyboardInterrupt

    session = Session(Interrupted(script), vocabulary)
    with pytest.raises(KeyboardInterrupt):
        list(session.say("Hi", Request()))
    assert session.reply is not None
    assert session.reply.kept is False
    assert session.conversation.messages == ()


def test_ctrl_c_inside_the_engine_ends_the_turn_in_order(vocabulary: Vocabulary) -> None:
    ids = said(vocabulary, "One two three")

    class Interrupted(Scripted):
        def ids(self, request: Request) -> Iterator[int]:
            yield from ids[:5]
            raise KeyboardInterrupt

    session = Session(Interrupted(lambda _: ids), vocabulary)
    with pytest.raises(KeyboardInterrupt):
        list(session.say("Count.", Request()))
    assert session.reply is not None
    assert (session.reply.finish, session.reply.tokens) == (None, 5)
    assert session.conversation.messages[-1].content == "One two"


def test_a_turn_that_is_cut_off_or_malformed_still_makes_sense(vocabulary: Vocabulary) -> None:
    session = Session(Scripted(lambda _: said(vocabulary, "One two three four")), vocabulary)
    list(session.say("Count.", Request(max_new_tokens=5)))
    assert session.reply is not None
    assert session.reply.finish == "length"
    # The reply has no header, as from some tuned models. It is shown and kept, but it does not count as an answer.
    session = Session(Scripted(lambda _: [*vocabulary.encode("Hello there"), RETURN]), vocabulary)
    pieces = list(session.say("Hi", Request()))
    assert ("".join(p.text for p in pieces), {p.kind for p in pieces}) == ("Hello there", {"preamble"})
    assert session.conversation.messages[-1] == preamble("Hello there")
    assert session.reply is not None
    assert session.reply.messages[0].repairs
