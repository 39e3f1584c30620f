"""The language of a whole text, sentence by sentence.

A thought may start in the requested language and change to English after two sentences, which is a failure. So one
verdict on the whole text, or on its start, is not enough. py3langid judges every sentence among the candidate languages
only. It is a fork of langid.py (Lui and Baldwin 2012), a naive Bayes classifier over byte n-grams. Sentences without
enough words, numbers, code, links and quotations are neutral.

The accuracy was measured on examples/multilingual with py3langid 0.4.0 among its five languages. All of 1,198 thoughts
were accepted in their own language, and none in one of the other four. Short single sentences are harder. Of 2,194
sentences with two words or more, 4 were rejected in their own language. Of the 8,776 pairs of a sentence and another
language, 81 were accepted, such as "Nora ha meno noci.".
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ossia.errors import UserError, did_you_mean

CLOSE_CALL = 0.5
"""Least likelihood of a language, relative to the most likely one, for a sentence to pass as that language."""

CODES = {
    "afrikaans": "af", "arabic": "ar", "basque": "eu", "belarusian": "be", "bengali": "bn", "bulgarian": "bg",
    "catalan": "ca", "chinese": "zh", "croatian": "hr", "czech": "cs", "danish": "da", "dutch": "nl", "english": "en",
    "estonian": "et", "finnish": "fi", "french": "fr", "galician": "gl", "georgian": "ka", "german": "de",
    "greek": "el", "gujarati": "gu", "hebrew": "he", "hindi": "hi", "hungarian": "hu", "icelandic": "is",
    "indonesian": "id", "irish": "ga", "italian": "it", "japanese": "ja", "kannada": "kn", "kazakh": "kk",
    "korean": "ko", "latin": "la", "latvian": "lv", "lithuanian": "lt", "macedonian": "mk", "malay": "ms",
    "malayalam": "ml", "marathi": "mr", "mongolian": "mn", "nepali": "ne", "norwegian": "no", "persian": "fa",
    "polish": "pl", "portuguese": "pt", "punjabi": "pa", "romanian": "ro", "russian": "ru", "serbian": "sr",
    "slovak": "sk", "slovenian": "sl", "spanish": "es", "swahili": "sw", "swedish": "sv", "tagalog": "tl",
    "tamil": "ta", "telugu": "te", "thai": "th", "turkish": "tr", "ukrainian": "uk", "urdu": "ur", "vietnamese": "vi",
    "welsh": "cy",
}  # fmt: skip
"""English names of languages and their ISO 639 codes."""

_NOT_PROSE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`"  # code
    r"|\$\$.*?\$\$|\$[^$\n]+\$|\\\(.*?\\\)|\\\[.*?\\\]"  # formulas
    r"|https?://\S+"
    r'|"[^"\n]*"|“[^”\n]*”|„[^“”\n]*[“”]|«[^»\n]*»|「[^」\n]*」',  # quotations, often from the question
    re.DOTALL,
)
_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])|\n+")
_WORD = re.compile(r"[^\W\d_]+")
_WITHOUT_SPACES = 0x0E00  # scripts from Thai on mostly have no spaces between words


@dataclass(frozen=True)
class LanguageVerdict:
    """The result of judging the language of a text."""

    language: str | None
    """ISO 639 code of the candidate that fits most of the text. None if there is no sentence to judge."""
    share: float
    """Share of the judged letters that are in sentences of the expected language, from 0 to 1."""
    ok: bool
    """Whether there was a sentence to judge and every sentence passed."""


def judge(text: str, expected: str, candidates: Iterable[str]) -> LanguageVerdict:
    """Return a verdict on whether every sentence of `text` is in the expected language.

    Args:
        expected, candidates: English names or ISO 639 codes. Only the candidates and `expected` are considered. A text
            in any other language gets the nearest of them.

    Raises:
        UserError: py3langid does not support a language.
    """
    wanted = code(expected)
    among = tuple(sorted({wanted, *map(code, candidates)}))
    weights: dict[str, int] = {}
    passed = total = 0
    for piece in _pieces(text):
        likelihood = _likelihood(piece, among)
        best = max(likelihood, key=lambda language: likelihood[language])
        letters = len(piece.replace(" ", ""))
        weights[best] = weights.get(best, 0) + letters
        passed += letters * (likelihood[wanted] >= CLOSE_CALL * likelihood[best])
        total += letters
    if not total:
        return LanguageVerdict(None, 0.0, False)
    return LanguageVerdict(max(weights, key=lambda language: weights[language]), passed / total, passed == total)


def code(language: str) -> str:
    """Return the ISO 639 code of a language given by its English name or by its code.

    Raises:
        UserError: py3langid does not support the language.
    """
    word = language.strip().lower()
    if word in CODES:
        return CODES[word]
    if word in _identifier().labels:
        return word
    close = did_you_mean(word, CODES)
    raise UserError(
        f"{language!r} is not a language that can be judged",
        why="known are English names such as French and ISO 639 codes such as fr",
        do=f"did you mean {close.capitalize()}?" if close else None,
    )


def _pieces(text: str) -> list[str]:
    """Return the words of each sentence that has enough of them. If no sentence has, return those of the whole text."""
    prose = _NOT_PROSE.sub(" ", text)
    sentences = [" ".join(_WORD.findall(sentence)) for sentence in _SENTENCE_END.split(prose)]
    enough = [words for words in sentences if _is_enough(words)]
    whole = " ".join(filter(None, sentences))
    return enough or ([whole] if _is_enough(whole) else [])


def _is_enough(words: str) -> bool:
    letters = len(words.replace(" ", ""))
    if any(ord(letter) >= _WITHOUT_SPACES for letter in words):
        return letters >= 4
    return " " in words and letters >= 6


@functools.lru_cache(maxsize=8192)
def _likelihood(words: str, among: tuple[str, ...]) -> dict[str, float]:
    return dict(_restricted(among).rank(words))


@functools.lru_cache(maxsize=64)
def _restricted(among: tuple[str, ...]) -> Any:
    restricted = copy.copy(_identifier())  # shares the tables, because loading them takes a second
    restricted.set_languages(among)
    return restricted


@functools.lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
