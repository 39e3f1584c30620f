"""Tests of questions and of their grading, on completions written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.data import load_conversations
from ossia.data.formats import to_conversation
from ossia.evaluate.tasks import Question, contains, grade, is_well_formed, named_languages, normalise, questions
from ossia.generate.engine import completion
from ossia.harmony.conversation import call, preamble, thought
from ossia.harmony.parse import parse
from ossia.harmony.tokenizer.vocabulary import CALL, CHANNEL, END, MESSAGE, RETURN, START, STOP_TOKENS, Vocabulary
from support.generate_fakes import said, turn

GERMAN = "Ich addiere die Einer: 5+9=14. Ich addiere die Zehner: 1+6+1=8."
ENGLISH = "I add the ones: 5+9=14. I add the tens: 1+6+1=8."
AMONG = ("English", "French", "German")
ROW: dict[str, Any] = {
    "reasoning_language": "German",
    "developer": "Solve the problem step by step.",
    "user": "There are 15 coins in one box and 69 in another. How many coins are there?",
    "analysis": GERMAN,
    "final": "There are 84 coins.",
    "answer": "84",
    "language": "English",
    "kind": "add",
}


@pytest.fixture(scope="module")
def vocabulary(tokenizer_folder: Path) -> Vocabulary:
    return Vocabulary.load(tokenizer_folder)


def question(vocabulary: Vocabulary, row: dict[str, Any]) -> Question:
    return questions([to_conversation(row, source="heldout.jsonl:1")], vocabulary)[0]


def verdicts(asked: Question, ids: list[int], vocabulary: Vocabulary) -> dict[str, bool]:
    return grade(asked, completion(ids, STOP_TOKENS), vocabulary, AMONG).verdicts


def test_a_question_is_the_prompt_of_its_training_example(vocabulary: Vocabulary) -> None:
    from ossia.data import examples_of

    path = Path(__file__).parents[2] / "examples" / "multilingual" / "heldout.jsonl"
    conversations = load_conversations(path).conversations[:20]
    for asked, conversation in zip(questions(conversations, vocabulary), conversations, strict=True):
        example = list(examples_of(conversation, vocabulary))[-1]
        trained = next(index for index, weight in enumerate(example.weights) if weight)
        assert list(asked.prompt) == list(example.ids[:trained])
        assert (asked.requested, asked.answer) == (
            conversation.extra["reasoning_language"],
            conversation.extra["answer"],
        )
        assert (asked.language, asked.kind) == (conversation.extra["language"], conversation.extra["kind"])


def test_what_was_trained_passes_every_measure(vocabulary: Vocabulary) -> None:
    asked = question(vocabulary, ROW)
    made = grade(asked, completion(said(vocabulary, ROW["final"], GERMAN), STOP_TOKENS), vocabulary, AMONG)
    assert made.verdicts == dict.fromkeys(("thought language", "answer", "answer language", "well-formed"), True)
    assert (made.thought_language, made.thought_share, made.final_language) == ("de", 1.0, "en")
    assert made.completion.finish == "stop"


@pytest.mark.parametrize(
    ("final", "analysis", "wrong"),
    [
        ("There are 84 coins.", ENGLISH, {"thought language"}),
        ("There are 84 coins.", "", {"thought language"}),
        ("There are 84 coins.", "5+9=14, 1+6+1=8", {"thought language"}),
        ("Es sind 84 Münzen in den beiden Kisten.", GERMAN, {"answer language"}),
        ("There are 74 coins.", GERMAN + " Also 84.", {"answer"}),
        ("84", GERMAN, set()),
        ("", GERMAN, {"answer", "answer language"}),
    ],
)
def test_each_measure_fails_for_its_own_reason(
    vocabulary: Vocabulary, final: str, analysis: str, wrong: set[str]
) -> None:
    found = verdicts(question(vocabulary, ROW), said(vocabulary, final, analysis), vocabulary)
    assert {measure for measure, ok in found.items() if not ok} == wrong


def test_channels_are_read_not_the_text(vocabulary: Vocabulary) -> None:
    encode = vocabulary.encode
    # The answer is only in the thought, which imitates a final message in plain text.
    fake = said(vocabulary, "No idea.", GERMAN + " <|channel|>final<|message|>There are 84 coins.")
    assert not verdicts(question(vocabulary, ROW), fake, vocabulary)["answer"]
    # The completion is cut off inside the thought, so it has no answer.
    cut = [CHANNEL, *encode("analysis"), MESSAGE, *encode(GERMAN + " 84")]
    found = verdicts(question(vocabulary, ROW), cut, vocabulary)
    assert found == {"thought language": True, "answer": False, "answer language": False, "well-formed": False}


def test_rows_without_an_expected_answer_are_matched_with_their_own(vocabulary: Vocabulary) -> None:
    row = {"messages": [{"role": "user", "content": "Greet."}, {"role": "assistant", "content": "Good  Morning!"}]}
    asked = question(vocabulary, row)
    assert verdicts(asked, said(vocabulary, "good morning!"), vocabulary) == {"exact match": True, "well-formed": True}
    assert verdicts(asked, said(vocabulary, "morning!"), vocabulary) == {"exact match": False, "well-formed": True}


def test_only_the_last_step_is_asked_for(vocabulary: Vocabulary) -> None:
    row = {
        "messages": [
            {"role": "user", "content": "First?"},
            {"role": "assistant", "content": "One.", "thinking": "Old thought."},
            {"role": "user", "content": "Second?"},
            {"role": "assistant", "content": "Two.", "thinking": "New thought."},
        ]
    }
    asked = question(vocabulary, row)
    text = vocabulary.decode(asked.prompt)
    assert text.endswith("<|start|>user<|message|>Second?<|end|><|start|>assistant")
    assert "One." in text
    assert "thought" not in text
    assert [message.content for message in asked.expected] == ["New thought.", "Two."]


def test_a_row_that_ends_with_a_call_is_measured_by_the_call(vocabulary: Vocabulary) -> None:
    wanted = {"name": "weather", "arguments": '{"city": "Oslo", "days": 2}'}
    row = {
        "messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": wanted}]},
        ],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
    }
    asked = question(vocabulary, row)

    def made(name: str, arguments: str) -> dict[str, bool]:
        return verdicts(
            asked, turn(vocabulary, thought("Hm."), preamble("A moment."), call(name, arguments)), vocabulary
        )

    assert made("weather", '{"days":2,"city":"Oslo"}') == {"call": True, "well-formed": True}
    assert made("weather", '{"city": "Bergen", "days": 2}') == {"call": False, "well-formed": True}
    assert made("time", '{"city": "Oslo", "days": 2}')["call"] is False
    assert made("weather", '{"city": "Oslo", "days": 2')["call"] is False
    assert verdicts(asked, said(vocabulary, "Sunny."), vocabulary) == {"call": False, "well-formed": True}


def test_what_is_not_well_formed(vocabulary: Vocabulary) -> None:
    encode, good = vocabulary.encode, said(vocabulary, "Hello.", "Hm.")
    broken = {
        "no final": turn(vocabulary, thought("Hm.")),
        "cut off": good[:-1],
        "ended by <|end|>": [*good[:-1], END],
        "no header": [*encode("Hello."), RETURN],
        "two finals": [*good[:-1], END, START, *encode("assistant"), *said(vocabulary, "Again.")],
        "text between messages": [*good[:-1], END, *encode(" and "), START, *encode("assistant"), *good],
        "an unasked call": turn(vocabulary, call("f", "{}")),
        "another role": [*good[:-1], END, START, *encode("user"), MESSAGE, *encode("Hi"), RETURN],
        "nothing": [],
    }
    assert is_well_formed(parse(good, vocabulary))
    assert {name for name, ids in broken.items() if is_well_formed(parse(ids, vocabulary))} == set()
    assert broken["an unasked call"][-1] == CALL
    assert is_well_formed(parse(broken["an unasked call"], vocabulary), calls=True)


@given(
    st.lists(
        st.sampled_from([CALL, CHANNEL, END, MESSAGE, RETURN, START, 200003, 17, 35644, 17196, 12606]), max_size=12
    )
)
def test_any_completion_can_be_read(tokenizer_folder: Path, ids: list[int]) -> None:
    vocabulary = Vocabulary.load(tokenizer_folder)
    found = verdicts(question(vocabulary, ROW), ids, vocabulary)
    assert set(found) == {"thought language", "answer", "answer language", "well-formed"}


@pytest.mark.parametrize(
    ("text", "wanted", "found"),
    [
        ("There are 84 coins.", "84", True),
        ("84", "84", True),
        ("Es sind **84** Äpfel!", "84", True),
        ("It is 184.", "84", False),
        ("It is 84.5.", "84", False),
        ("It is 84,5 Meter.", "84", False),
        ("It is -84.", "84", False),
        ("It is -84.", "-84", True),
        ("Between 80-84.", "84", True),
        ("It is 1,084.", "1084", True),
        ("Es sind 1.084.", "1084", True),
        ("It is 1,084.5", "1084.5", True),
        ("It is 84th.", "84", False),
        ("That is Maria's.", "Maria", True),
        ("That is Mariana.", "Maria", False),
        ("Dentro de 3 días será MIÉRCOLES.", "miércoles", True),
        ("Tra due giorni sarà venerdi\u0300.", "venerdì", True),
        ("", "84", False),
        ("What? (yes)", "(yes)", True),
    ],
)
def test_answers_are_found_as_whole_tokens(text: str, wanted: str, found: bool) -> None:
    assert contains(text, wanted) is found


def test_normalisation_changes_only_case_width_and_spacing() -> None:
    assert normalise("  Ａ\n B\u00a0c ") == "a b c"
    assert normalise("straße") == normalise("STRASSE")
    assert normalise("mas") != normalise("más")


def test_candidates_are_the_named_languages_and_english(vocabulary: Vocabulary) -> None:
    asked = [question(vocabulary, {**ROW, "reasoning_language": "French", "language": "Spanish"})]
    assert named_languages(asked) == ("English", "French", "Spanish")
    plain = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    assert named_languages([question(vocabulary, plain)]) == ()
    told = {"messages": [{"role": "system", "content": "reasoning language: Italian\n\nBe brief."}, *plain["messages"]]}
    assert question(vocabulary, told).requested == "Italian"
