"""From a recipe's section `data` to the examples that training takes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ossia.config import DataSection
from ossia.data.examples import Example, examples_of
from ossia.data.load import load_conversations
from ossia.data.settings import DataSettings
from ossia.errors import UserError
from ossia.harmony.conversation import Conversation
from ossia.harmony.problem import Problem
from ossia.harmony.vocabulary import Vocabulary

SHOWN = 5
"""Problems of one kind that are printed one by one; the rest is counted."""


@dataclass(slots=True)
class Prepared:
    """Compiled examples, and what was found on the way."""

    train: list[Example] = field(default_factory=list)
    validation: list[Example] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    """Format -> rows."""

    def remarks(self) -> Iterator[str]:
        """Yield lines for people: what was read, and the problems, many of a kind summed up."""
        rows = ", ".join(f"{count} rows of {name}" for name, count in self.formats.items())
        yield f"read {rows or 'nothing'}"
        seen: Counter[str] = Counter()
        for problem in self.problems:
            seen[problem.code] += 1
            if seen[problem.code] <= SHOWN:
                yield str(problem)
        for code, count in seen.items():
            if count > SHOWN:
                yield f"and {count - SHOWN} more of {code}: ossia data check"


def settings_of(section: DataSection) -> DataSettings:
    """The recipe's choices in the form that the compiler takes."""
    return DataSettings(
        format=section.format,
        turns=section.turns,
        max_tokens=section.max_tokens,
        effort=section.effort,
        date=section.date,
        identity=section.identity,
        strict=section.strict,
    )


def prepare(section: DataSection, vocabulary: Vocabulary, seed: int) -> Prepared:
    """Read, check and compile a recipe's data. Bad rows are left out and reported, unless `section.strict`.

    Without validation files a share of the conversations, chosen by `seed`, is held back, all turns of one together.

    Raises:
        UserError: no data are named, a source cannot be read, or no row can be trained on.
    """
    if not section.train:
        raise UserError(
            "the recipe names no training data", where="data.train", do="--set data.train=conversations.jsonl"
        )
    settings, prepared = settings_of(section), Prepared()
    conversations = _conversations(section.train, settings, prepared)
    held_back: Sequence[Conversation] = []
    if section.validation:
        held_back = _conversations(section.validation, settings, prepared)
    else:
        conversations, held_back = split(conversations, section.validation_share, seed)
    report = prepared.problems.append
    prepared.train = [e for c in conversations for e in examples_of(c, vocabulary, settings, report)]
    prepared.validation = [e for c in held_back for e in examples_of(c, vocabulary, settings, report)]
    if not prepared.train:
        first = next((problem for problem in prepared.problems), None)
        raise UserError(
            "no row can be trained on",
            where=first.where if first else ", ".join(section.train),
            why=first.what if first else "the files are empty",
            do="ossia data check  lists what is wrong with every row",
        )
    return prepared


def split(
    conversations: Sequence[Conversation], share: float, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """Hold back a share of the conversations: (the rest, those held back), both in their order. At least one stays."""
    count = min(round(len(conversations) * share), len(conversations) - 1)
    if share and not count and len(conversations) > 1:
        count = 1
    chosen = set(random.Random(seed).sample(range(len(conversations)), max(count, 0)))
    rest = [conversation for index, conversation in enumerate(conversations) if index not in chosen]
    return rest, [conversations[index] for index in sorted(chosen)]


def _conversations(sources: Sequence[str], settings: DataSettings, prepared: Prepared) -> Sequence[Conversation]:
    loaded = load_conversations(sources, settings)
    prepared.problems += loaded.problems
    prepared.formats += loaded.formats
    return loaded.conversations
