"""From a recipe's section `data` to the examples that training takes."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from ossia.config import DataSection, DataSource, sources_of
from ossia.data.compile import Compiled, OnBytes, compile_sources
from ossia.data.rendered import Example, Rendered
from ossia.errors import Problem, UserError
from ossia.files import cache_folder
from ossia.harmony.tokenizer.vocabulary import Vocabulary

MOST_OF_A_KIND = 5
"""Problems of one kind that are printed one by one; the rest is counted."""


@dataclass(slots=True)
class PreparedData:
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
            if seen[problem.code] <= MOST_OF_A_KIND:
                yield str(problem)
        for code, count in seen.items():
            if count > MOST_OF_A_KIND:
                yield f"and {count - MOST_OF_A_KIND} more of {code}: ossia data check"


def prepare(
    section: DataSection, vocabulary: Vocabulary, seed: int, *, workers: int = 1, progress: OnBytes | None = None
) -> PreparedData:
    """Read, check and compile a recipe's data. Bad rows are left out and reported, unless `section.strict`.

    Without validation files a share of the conversations, chosen by `seed`, is held back, all turns of one together.

    Args:
        workers, progress: as in `compile_sources`.

    Raises:
        UserError: no data are named, a source cannot be read, or no row can be trained on.
    """
    if not section.train:
        raise UserError(
            "the recipe names no training data", where="data.train", do="--set data.train=conversations.jsonl"
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
    else:
        conversations, held_back = hold_back(conversations, section.validation_share, seed)
    prepared.train = [example for conversation in conversations for example in conversation.examples]
    prepared.validation = [example for conversation in held_back for example in conversation.examples]
    if not prepared.train:
        first = next((problem for problem in prepared.problems), None)
        raise UserError(
            "no row can be trained on",
            where=first.where if first else ", ".join(source.path for source in sources_of(section.train)),
            why=first.what if first else "the files are empty",
            do="ossia data check  lists what is wrong with every row",
        )
    return prepared


def hold_back(conversations: Sequence[Rendered], share: float, seed: int) -> tuple[list[Rendered], list[Rendered]]:
    """Hold back a share of the conversations: (the rest, those held back), both in their order. At least one stays.

    Repeats of one conversation, as a weighted source makes them, go to the same side.
    """
    distinct = list({id(conversation): conversation for conversation in conversations}.values())
    count = min(round(len(distinct) * share), len(distinct) - 1)
    if share and not count and len(distinct) > 1:
        count = 1
    chosen = {id(distinct[index]) for index in random.Random(seed).sample(range(len(distinct)), max(count, 0))}
    rest = [conversation for conversation in conversations if id(conversation) not in chosen]
    return rest, [conversation for conversation in distinct if id(conversation) in chosen]


def _one_of_many(section: DataSection) -> AbstractContextManager[object]:
    """In a job of several processes, one compiles and the others then find its work in the cache."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or not section.cache:
        return nullcontext()
    from filelock import FileLock

    cache_folder().mkdir(parents=True, exist_ok=True)
    return FileLock(cache_folder() / "compiling.lock")
