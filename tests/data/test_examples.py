"""Tests of training examples: their context, their trained tokens, and the prompts of inference as their prefixes."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from ossia.config import CHANNELS, DataSection
from ossia.data import Example, examples_of, statistics
from ossia.data.examples import compile_conversation
from ossia.data.kinds import kinds_of, turns_of
from ossia.errors import Problem
from ossia.harmony import conversation as c
from ossia.harmony.tokenizer.vocabulary import Vocabulary
from prove import examples as fuzz_examples
from support import harmony_samples as samples

ROOMY = DataSection(max_tokens=100_000)


@pytest.fixture(scope="module")
def vocabulary(tokenizer_folder: Path) -> Vocabulary:
    return Vocabulary.load(tokenizer_folder)


def trained_text(example, vocabulary: Vocabulary) -> list[str]:
    """Return the texts of the trained ranges of an example."""
    stretches: list[list[int]] = []
    for position, (id, weight) in enumerate(zip(example.ids, example.weights, strict=True)):
        if weight and (not position or not example.weights[position - 1]):
            stretches.append([])
        if weight:
            stretches[-1].append(id)
    return [vocabulary.decode(stretch) for stretch in stretches]


def test_a_turn_with_a_tool_trains_exactly_what_is_sampled(vocabulary: Vocabulary) -> None:
    messages = (
        c.user("1"), c.thought("old"), c.answer("a1"),
        c.user("2"), c.thought("t"), c.preamble("p"), c.call("f", "{}"), c.tool_result("f", "r"), c.thought("u"),
        c.answer("a2"),
    )  # fmt: skip
    first, second = examples_of(c.Conversation(messages, source="d.jsonl:3"), vocabulary)
    assert trained_text(first, vocabulary) == [
        "<|channel|>analysis<|message|>old<|end|><|start|>assistant<|channel|>final<|message|>a1<|return|>"
    ]
    assert trained_text(second, vocabulary) == [
        "<|channel|>analysis<|message|>t<|end|><|start|>assistant<|channel|>commentary<|message|>p<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
        "<|channel|>analysis<|message|>u<|end|><|start|>assistant<|channel|>final<|message|>a2<|return|>",
    ]
    assert "<|start|>assistant<|channel|>final<|message|>a1<|end|><|start|>user" in vocabulary.decode(second.ids)
    assert "old" not in vocabulary.decode(second.ids)
    assert (second.turn, second.row) == (1, "d.jsonl:3")
    assert {channel for channel, weight in zip(second.channels, second.weights, strict=True) if weight} == set(CHANNELS)


@pytest.mark.parametrize("order", ["channel-first", "recipient-first"])
def test_every_prompt_of_inference_is_a_prefix_and_what_follows_is_trained(vocabulary: Vocabulary, order) -> None:
    """The server renders a prompt at the start of the turn and after each tool result. Each must be in the training."""
    rng, boundaries = random.Random(31), 0
    for _ in range(400):
        seen, faults = fuzz_examples.check(samples.conversation(rng), vocabulary, order)
        assert faults == []
        boundaries += seen
    assert boundaries > 900


@pytest.mark.parametrize("harm", ["weights", "ids"])
def test_the_judge_of_examples_can_fail(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch, harm: str) -> None:
    conversation = c.Conversation((c.user("1"), c.call("f", "{}"), c.tool_result("f", "r"), c.answer("a")))
    assert fuzz_examples.check(conversation, vocabulary, "channel-first") == (2, [])
    right = getattr(Example, harm).fget
    for place in (5, -1):
        broken = property(lambda self, place=place: [x + (i == place % len(self)) for i, x in enumerate(right(self))])
        monkeypatch.setattr(Example, harm, broken)
        if harm == "weights" or place == 5:
            assert fuzz_examples.check(conversation, vocabulary, "channel-first")[1]


def test_context_and_target_make_up_the_whole_turn(vocabulary: Vocabulary) -> None:
    """The judge is openai-harmony, which renders the messages that the rule keeps."""
    import openai_harmony as oh

    judge, keep_all = samples.judge(), oh.RenderConversationConfig(auto_drop_analysis=False)
    rng = random.Random(32)
    for _ in range(150):
        conversation = samples.conversation(rng)
        settings = DataSection(max_tokens=100_000, header_order="recipient-first")
        turns = turns_of(kinds_of(conversation.messages))
        for (start, stop), example in zip(turns, examples_of(conversation, vocabulary, settings), strict=True):
            context = conversation.messages[:start]
            finals = [i for i, m in enumerate(context) if m.channel == "final"]
            last = finals[-1] if finals else -1
            kept = [m for i, m in enumerate(context) if m.channel != "analysis" or i > last]
            whole = replace(conversation, messages=(*kept, *conversation.messages[start:stop]))
            assert example.ids == judge.render_conversation_for_training(samples.to_judge(whole), keep_all)


def test_weights_of_messages_are_honoured(vocabulary: Vocabulary) -> None:
    messages = (c.user("1"), c.thought("t", 0), c.answer("a", 0), c.user("2"), c.thought("u", 0), c.answer("b"))
    (example,) = examples_of(c.Conversation(messages), vocabulary)
    assert example.turn == 1
    assert trained_text(example, vocabulary) == ["<|start|>assistant<|channel|>final<|message|>b<|return|>"]
    half = examples_of(c.Conversation((c.user("1"), c.answer("a", 0.5))), vocabulary)[0]
    assert set(half.weights) == {0.0, 0.5}


def test_after_a_call_without_a_result_the_model_does_not_write_the_next_header(vocabulary: Vocabulary) -> None:
    messages = (c.user("1"), c.call("f", "{}"), c.answer("a"))
    (example,) = examples_of(c.Conversation(messages), vocabulary)
    assert trained_text(example, vocabulary) == [
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
        "<|channel|>final<|message|>a<|return|>",
    ]


def test_last_turn_only_and_no_thought(vocabulary: Vocabulary) -> None:
    messages = (c.user("1"), c.answer("a"), c.user("2"), c.answer("b"))
    (example,) = examples_of(c.Conversation(messages), vocabulary, DataSection(max_tokens=100_000, turns="last"))
    assert trained_text(example, vocabulary) == ["<|channel|>final<|message|>b<|return|>"]


def test_a_second_answer_without_a_user_is_a_turn_of_its_own(vocabulary: Vocabulary) -> None:
    messages = (c.user("1"), c.thought("t"), c.answer("a"), c.answer("b"))
    first, second = examples_of(c.Conversation(messages), vocabulary)
    assert trained_text(second, vocabulary) == ["<|channel|>final<|message|>b<|return|>"]
    assert "t<|end|>" in vocabulary.decode(first.ids) and "t<|end|>" not in vocabulary.decode(second.ids)


def test_too_long_loses_whole_old_turns_and_never_the_target(vocabulary: Vocabulary) -> None:
    old = [m for i in range(10) for m in (c.user(f"question {i} " * 20), c.thought("x"), c.answer(f"answer {i} " * 20))]
    old.insert(3, c.developer("Always rhyme."))
    messages = (*old, c.user("the last question"), c.thought("the thought"), c.answer("the answer"))
    conversation = c.Conversation(messages, instructions="Be kind.")
    full = examples_of(conversation, vocabulary, ROOMY)[-1]
    for limit in (200, 400, 800, 1200):
        example = examples_of(conversation, vocabulary, DataSection(turns="last", max_tokens=limit))[0]
        text = vocabulary.decode(example.ids)
        assert len(example.ids) <= limit and example.dropped_turns > 0
        assert trained_text(example, vocabulary) == trained_text(full, vocabulary)
        assert all(part in text for part in ("Be kind.", "Always rhyme.", "the last question"))
        kept = 10 - example.dropped_turns
        assert [f"question {i} " in text for i in range(10)] == [False] * (10 - kept) + [True] * kept
        assert [f"answer {i} " in text for i in range(10)] == [False] * (10 - kept) + [True] * kept
        longer = examples_of(conversation, vocabulary, DataSection(turns="last", max_tokens=len(example.ids) + 200))[0]
        assert longer.dropped_turns < example.dropped_turns  # no turn was dropped without need


def test_what_does_not_fit_at_all_is_reported(vocabulary: Vocabulary) -> None:
    problems: list[Problem] = []
    conversation = c.Conversation((c.user("q"), c.answer("word " * 500)))
    assert examples_of(conversation, vocabulary, DataSection(max_tokens=100), problems.append) == []
    assert [(p.code, p.level) for p in problems] == [("too-long", "warning")] and "turn 1" in problems[0].what


def test_the_question_is_never_dropped(vocabulary: Vocabulary) -> None:
    conversation = c.Conversation((c.user("a"), c.answer("b"), c.user("word " * 500), c.answer("short")))
    assert examples_of(conversation, vocabulary, DataSection(turns="last", max_tokens=200)) == []


def test_statistics_add_up(vocabulary: Vocabulary) -> None:
    rng = random.Random(33)
    conversations = [replace(samples.conversation(rng), source=f"d:{i}") for i in range(40)]
    made = [compile_conversation(conversation, vocabulary, ROOMY) for conversation in conversations]
    examples = [example for conversation in made for example in conversation.examples]
    found = statistics(made, limit=300, at=[100, 300])
    assert found.examples == len(examples) and sum(k * n for k, n in found.turns.items()) == len(examples)
    assert found.tokens == sum(len(e.ids) for e in examples) == sum(n for n, _ in found.channels.values())
    assert (
        found.trained_tokens
        == sum(w > 0 for e in examples for w in e.weights)
        == sum(n for _, n in found.channels.values())
    )
    assert found.over_limit == found.over[300] == sum(len(e.ids) > 300 for e in examples)
    assert sum(found.histogram.values()) == len(examples) and all(bound & (bound - 1) == 0 for bound in found.histogram)
    assert sum(n for bound, n in found.histogram.items() if bound <= 256) == sum(len(e.ids) <= 256 for e in examples)
    assert found.longest == max(len(e.ids) for e in examples) and found.median <= found.percentile_95 <= found.longest
    assert 0 < found.trained_share < 1 and statistics([]).trained_share == 0


# ------------------------------------------------------------------------------------------------ options and weights


def test_channel_weights_scale_and_message_weights_multiply(vocabulary: Vocabulary) -> None:
    messages = (c.user("1"), c.thought("t"), c.answer("a", 0.5))
    (example,) = examples_of(
        c.Conversation(messages), vocabulary, DataSection(max_tokens=100_000, channel_weights={"analysis": 0.25})
    )
    found = {(channel, weight) for channel, weight in zip(example.channels, example.weights, strict=True) if weight}
    assert found == {("analysis", 0.25), ("final", 0.5)}
    without = DataSection(max_tokens=100_000, channel_weights={"analysis": 0, "final": 2})
    (example,) = examples_of(c.Conversation(messages), vocabulary, without)
    assert trained_text(example, vocabulary) == ["<|start|>assistant<|channel|>final<|message|>a<|return|>"]
    assert set(example.weights) == {0.0, 1.0}


def test_lengths_and_counts_need_no_lists(vocabulary: Vocabulary) -> None:
    rng = random.Random(34)
    for _ in range(60):
        limit = rng.choice([60, 200, 100_000])
        for example in examples_of(samples.conversation(rng), vocabulary, DataSection(max_tokens=limit)):
            assert len(example) == len(example.ids) == len(example.weights) == len(example.channels) <= limit
            assert example.trained_tokens == sum(weight > 0 for weight in example.weights)


def test_the_rejected_answer_stands_in_the_place_of_the_preferred(vocabulary: Vocabulary) -> None:
    context = (c.user("1"), c.thought("t"), c.answer("a"), c.user("2"))
    pair = c.Conversation((*context, c.answer("good")), rejected=(c.thought("hm"), c.answer("bad")))
    compiled = compile_conversation(pair, vocabulary, ROOMY)
    assert compiled.pair is not None
    preferred, rejected = compiled.pair
    assert preferred == compiled.examples[-1] and (preferred.role, rejected.role) == ("target", "rejected")
    (expected,) = examples_of(
        c.Conversation((*context, c.thought("hm"), c.answer("bad"))),
        vocabulary,
        DataSection(max_tokens=100_000, turns="last"),
    )
    assert (rejected.ids, rejected.weights, rejected.turn) == (expected.ids, expected.weights, 1)
    assert all("bad" not in vocabulary.decode(example.ids) for example in examples_of(pair, vocabulary, ROOMY))
    single = compile_conversation(c.Conversation(context[:3]), vocabulary, ROOMY)
    assert single.rejected is None and single.pair is None and single.group == []


def test_alternatives_of_several_turns_begin_where_the_prompt_ends(vocabulary: Vocabulary) -> None:
    asked = (c.user("1"),)
    pair = c.Conversation(
        (*asked, c.answer("a"), c.user("2"), c.answer("good")),
        rejected=(c.answer("b"), c.user("3"), c.answer("bad")),
        prompt=1,
    )
    rejected = compile_conversation(pair, vocabulary, ROOMY).rejected
    assert rejected is not None
    other = c.Conversation((*asked, *pair.rejected))
    expected = examples_of(other, vocabulary, ROOMY)[-1]
    assert (rejected.ids, rejected.weights, rejected.channels) == (expected.ids, expected.weights, expected.channels)


def test_an_alternative_that_is_too_long_is_reported_and_left_out(vocabulary: Vocabulary) -> None:
    pair = c.Conversation((c.user("1"), c.answer("good")), rejected=(c.answer("bad " * 300),))
    told: list[Problem] = []
    compiled = compile_conversation(pair, vocabulary, DataSection(max_tokens=200), told.append)
    assert len(compiled.examples) == 1 and compiled.rejected is None and compiled.pair is None
    (problem,) = told
    assert problem.code == "too-long" and "the rejected answer has" in problem.what


def test_an_alternative_loses_old_turns_as_a_target_does(vocabulary: Vocabulary) -> None:
    turns = [m for n in range(8) for m in (c.user(f"question {n} " * 10), c.answer(f"answer {n} " * 10))]
    settings = DataSection(max_tokens=150)
    pair = c.Conversation(tuple(turns), rejected=(c.answer("bad"),))
    rejected = compile_conversation(pair, vocabulary, settings).rejected
    expected = examples_of(c.Conversation((*turns[:-1], c.answer("bad"))), vocabulary, settings)[-1]
    assert rejected is not None and rejected.dropped_turns == expected.dropped_turns > 0
    assert rejected.ids == expected.ids and len(rejected) <= 150


def test_raw_system_messages_last_when_old_turns_go(vocabulary: Vocabulary) -> None:
    turns = [m for n in range(8) for m in (c.user(f"question {n} " * 10), c.answer(f"answer {n} " * 10))]
    literal = c.Conversation((c.Message("system", "SYSTEM"), c.Message("developer", "DEV"), *turns), system=None)
    example = examples_of(literal, vocabulary, DataSection(max_tokens=150, turns="last"))[0]
    text = vocabulary.decode(example.ids)
    assert example.dropped_turns and "SYSTEM" in text and "DEV" in text and "question 7" in text
    assert "question 0" not in text
