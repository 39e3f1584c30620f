"""Preparation of the section `data` of a recipe: the examples of training and validation."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from ossia.config import DataSection, DataSource, Sources, sources_of
from ossia.data.compile import Compiled, OnBytes, compile_sources
from ossia.data.corpus import leak_summary, leaks
from ossia.data.rendered import Example, Rendered
from ossia.errors import Problem, UserError
from ossia.files import cache_folder
from ossia.harmony.tokenizer.vocabulary import Vocabulary

MOST_OF_A_KIND = 5
"""Largest number of problems with one code that are printed. The rest is counted."""


@dataclass(slots=True)
class PreparedData:
    """The examples of training and validation, with the problems of the rows."""

    train: list[Example] = field(default_factory=list)
    validation: list[Example] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    """Format -> rows."""
    warnings: list[str] = field(default_factory=list)
    """Sentences about faults of the split, such as validation rows that are in the training data."""

    def remarks(self) -> Iterator[str]:
        """Yield lines to print: the formats of the rows, and the problems, at most `MOST_OF_A_KIND` per code."""
        rows = ", ".join(f"{count} rows of {name}" for name, count in self.formats.items())
        yield f"read {rows or 'nothing'}"
        yield from (f"warning: {warning}" for warning in self.warnings)
        seen: Counter[str] = Counter()
        for problem in self.problems:
            seen[problem.code] += 1
            if seen[problem.code] <= MOST_OF_A_KIND:
                yield str(problem)
        for code, count in seen.items():
            if count > MOST_OF_A_KIND:
                yield f"and {count - MOST_OF_A_KIND} more of {code}: ossia data check"


def prepare(
    section: DataSection, vocabulary: Vocabulary, seed: int, *, workers: int = 1, progress: OnBytes | None = None
) -> PreparedData:
    """Return the examples of a recipe's data: read, checked and compiled.

    Bad rows are left out and reported, unless `section.strict`. Without validation files, a share of the conversations
    is held back for validation, each with all its turns. Validation conversations that are in the training data are
    reported in `warnings`.

    Args:
        seed: seed for the choice of the conversations to hold back, and of those from weighted sources.
        workers: number of processes, as in `compile_sources`.
        progress: a callback for the number of bytes, as in `compile_sources`.

    Raises:
        UserError: the recipe has no training data, or a source cannot be read. Or no row can be trained on, or no row
            of the validation files can be used.
    """
    if not section.train:
        raise UserError(
            "the recipe has no training data", where="data.train", do="--set data.train=conversations.jsonl"
        )

    def compiled(named: list[str | DataSource]) -> Compiled:
        with _one_of_many(section):
            return compile_sources(
                named, vocabulary, section,
                workers=workers, cache=section.cache, seed=seed, progress=progress,
            )  # fmt: skip

    found = compiled(section.train)
    prepared = PreparedData(problems=found.problems, formats=found.formats)
    conversations: Sequence[Rendered] = found.conversations
    held_back: Sequence[Rendered] = []
    if section.validation:
        other = compiled(section.validation)
        prepared.problems += other.problems
        prepared.formats += other.formats
        held_back = other.conversations
        if not held_back:
            raise _nothing("no row of the validation data can be used", section.validation, other.problems)
    else:
        conversations, held_back = hold_back(conversations, section.validation_share, seed)
    prepared.train = [example for conversation in conversations for example in conversation.examples]
    prepared.validation = [example for conversation in held_back for example in conversation.examples]
    if not prepared.train:
        raise _nothing("no row can be trained on", section.train, prepared.problems)
    if leak := leak_summary(leaks(conversations, held_back), len(held_back), "validation"):
        prepared.warnings.append(leak)
    return prepared


def _nothing(what: str, named: Sources, problems: Sequence[Problem]) -> UserError:
    """Return the exception for sources without a usable row, with their first error as the reason."""
    first = next((problem for problem in problems if problem.level == "error"), None)
    return UserError(
        what,
        where=first.where if first else ", ".join(source.path for source in sources_of(named)),
        why=first.what if first else "the files are empty",
        do="ossia data check  lists the problems of every row",
    )


def hold_back(conversations: Sequence[Rendered], share: float, seed: int) -> tuple[list[Rendered], list[Rendered]]:
    """Return the conversations for training and those held back for validation, both in their order.

    At least one conversation stays for training. With a share above 0 and two or more different conversations, at least
    one is held back. Conversations of equal content are on the same side. They may be repeats of a weighted source or
    equal rows. Each held-back conversation occurs once.
    """
    first: dict[object, Rendered] = {}
    for conversation in conversations:
        first.setdefault(_content(conversation), conversation)
    distinct = list(first.values())
    count = min(round(len(distinct) * share), len(distinct) - 1)
    if share and not count and len(distinct) > 1:
        count = 1
    chosen = {_content(distinct[index]) for index in random.Random(seed).sample(range(len(distinct)), max(count, 0))}
    rest = [conversation for conversation in conversations if _content(conversation) not in chosen]
    return rest, [conversation for conversation in distinct if _content(conversation) in chosen]


def _content(conversation: Rendered) -> object:
    """Return a key that is equal for conversations of equal content."""
    return conversation.facts.get("digest", id(conversation))


def _one_of_many(section: DataSection) -> AbstractContextManager[object]:
    """Return a lock in a job of several processes. One process compiles, and the others then read the cache."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or not section.cache:
        return nullcontext()
    from filelock import FileLock

    cache_folder().mkdir(parents=True, exist_ok=True)
    return FileLock(cache_folder() / "compiling.lock")
