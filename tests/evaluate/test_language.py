"""Tests of the language judge on the sentences of the example task, and on texts that are hard to judge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ossia.errors import UserError
from ossia.evaluate.language import CODES, code, judge

LANGUAGES = ("English", "German", "French", "Spanish", "Italian")
GERMAN = "Ich addiere die Einer: 5+9=14. Ich addiere die Zehner: 1+6+1=8. Also ist die Antwort 84."
ENGLISH = "I add the ones: 5+9=14. I add the tens: 1+6+1=8. So the answer is 84."


@pytest.fixture(scope="module")
def thoughts() -> list[tuple[str, str]]:
    """The pairs (thought, language) of the held-out rows in examples/, each thought once."""
    path = Path(__file__).parents[2] / "examples" / "multilingual" / "heldout.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted({(row["analysis"], row["reasoning_language"]) for row in rows})


def test_thoughts_are_accepted_in_their_language_and_in_no_other(thoughts: list[tuple[str, str]]) -> None:
    assert len(thoughts) > 100
    for text, language in thoughts:
        verdict = judge(text, language, LANGUAGES)
        assert verdict.ok, text
        assert (verdict.language, verdict.share) == (code(language), 1.0)
        others = [other for other in LANGUAGES if other != language]
        assert not any(judge(text, other, LANGUAGES).ok for other in others), text


@pytest.mark.parametrize(
    "text",
    [
        GERMAN + " So the answer is 84.",
        "So we have to add the numbers. " + GERMAN,
        GERMAN.replace("Ich addiere die Zehner", "Now I add the tens"),
        GERMAN + "\nWait, let me check that again\n" + GERMAN,
    ],
)
def test_one_sentence_in_another_language_is_enough(text: str) -> None:
    verdict = judge(text, "German", LANGUAGES)
    assert not verdict.ok
    assert verdict.language == "de"
    assert 0.5 < verdict.share < 1


@pytest.mark.parametrize(
    "addition",
    [
        " 5+9=14. 1+6+1=8.",
        " OK.",
        ' Die Frage lautet: "How many coins are there in the box?"',
        " Die Frage lautet: „How many coins are there in the box?“",
        "\n```python\nfor coin in the_box:\n    count the coins and add them\n```\n",
        " Siehe https://example.org/how-many-coins-are-there hier.",
        " Also $x = \\text{the number of coins}$ hier.",
    ],
)
def test_numbers_code_and_quotations_are_neutral(addition: str) -> None:
    assert judge(GERMAN + addition, "German", LANGUAGES).ok


@pytest.mark.parametrize("text", ["", "   \n", "84.", "5+9=14", "Hm.", '"I add the ones and the tens."', "`all of it`"])
def test_a_text_without_words_obeys_nothing(text: str) -> None:
    verdict = judge(text, "German", LANGUAGES)
    assert (verdict.language, verdict.share, verdict.ok) == (None, 0.0, False)


def test_scripts_without_spaces_are_judged() -> None:
    text = "一の位を足します。十の位を足します。答えは八十四です。"
    assert judge(text, "Japanese", ["English", "Chinese"]).ok
    assert not judge(text + "So the answer is eighty-four.", "Japanese", ["English"]).ok
    assert not judge(text, "English", ["Japanese"]).ok


def test_the_expected_language_is_always_a_candidate() -> None:
    assert judge(GERMAN, "German", []).ok
    assert not judge(ENGLISH, "German", ["English"]).ok


def test_every_named_language_can_be_judged_and_unknown_ones_are_refused() -> None:
    assert all(code(name) == CODES[name] for name in CODES)
    assert {code(short) for short in CODES.values()} == set(CODES.values())
    assert code(" French ") == "fr"
    with pytest.raises(UserError, match=r"(?s)Frensh.*French"):
        code("Frensh")
    with pytest.raises(UserError, match="Klingon"):
        judge(GERMAN, "Klingon", LANGUAGES)
