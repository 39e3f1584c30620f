"""The workflows that check, show and count the conversations of files or of a recipe, and write a repaired copy.

Each function takes files, folders or hub data set ids, or one recipe: its name, its file, or a `Recipe`. More than
about three megabytes are compiled in further processes. So a script needs the line `if __name__ == "__main__":`
(see multiprocessing).
"""

from __future__ import annotations

import dataclasses
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ossia import recipes
from ossia.checkpoint.locate import vocabulary as vocabulary_of
from ossia.config import DataSection, DataSource, Recipe, Sources, sources_of
from ossia.data import corpus
from ossia.data.branches import Branch, Stretch, forest, stretches, whose
from ossia.data.compile import Compiled, Compiling, compile_rows, compile_sources, total_bytes, usable_cores
from ossia.data.fix import FIXES, Written, write_fixed
from ossia.data.page import write_page
from ossia.data.rendered import Example
from ossia.data.sources import settings_for
from ossia.data.stats import LIMITS, Statistics, detect_languages, statistics
from ossia.data.templates import compare_with_template, read_template
from ossia.data.views import examples_as_json, tree_as_json
from ossia.errors import Problem, UserError
from ossia.events import Note, OnEvent, counting, ignore
from ossia.harmony.preview import CHANNEL_COLOURS, preview
from ossia.harmony.tokenizer.vocabulary import Vocabulary

__all__ = [
    "CHANNEL_COLOURS",
    "LIMITS",
    "Branch",
    "Checked",
    "Compiling",
    "Counted",
    "OpenData",
    "RepairedCopy",
    "Statistics",
    "Stretch",
    "Vocabulary",
    "check",
    "command_arguments",
    "compare_with_template",
    "count_tokens",
    "examples_as_json",
    "forest",
    "is_recipe",
    "preview",
    "read_conversations",
    "read_template",
    "repair",
    "stretches",
    "tree_as_json",
    "whose",
    "write_page",
]

Named = Sources | Recipe
"""References to data: files, folders and hub data set ids, or a recipe."""


@dataclass(frozen=True)
class Checked:
    """The results of a check: problems of single rows and of all rows together."""

    rows: int
    """Number of rows, held-out data included."""
    usable: int
    """Number of rows that give a conversation."""
    formats: Counter[str]
    """Format -> number of rows."""
    problems: list[Problem]

    @property
    def errors(self) -> list[Problem]:
        """Problems because of which a row cannot be used."""
        return [problem for problem in self.problems if problem.level == "error"]

    @property
    def warnings(self) -> list[Problem]:
        """Problems of rows that are used nevertheless."""
        return [problem for problem in self.problems if problem.level == "warning"]

    @property
    def is_mendable(self) -> bool:
        """Whether `repair` can repair at least one of the problems."""
        return any(problem.code in FIXES for problem in self.problems)

    def as_dict(self) -> dict[str, Any]:
        """Return all results for JSON. Each problem also has its place as one text, `where`."""
        return {
            "rows": self.rows,
            "usable": self.usable,
            "formats": self.formats,
            "errors": len(self.errors),
            "warnings": len(self.warnings),
            "problems": [{**dataclasses.asdict(problem), "where": problem.where} for problem in self.problems],
        }


def check(
    data: Named,
    *,
    against: Sources = (),
    similar: bool = True,
    overrides: Iterable[str] = (),
    model: str | None = None,
    on_event: OnEvent = ignore,
) -> Checked:
    """Return the problems of the rows, one by one and together. The weights of a mixture are ignored.

    Args:
        data: files, folders or hub data set ids, or a recipe.
        against: held-out data. Its rows that are also in `data` are reported. By default it is the recipe's validation
            data.
        similar: whether to search for near-duplicates.
        overrides: `section.key=value`, applied to the recipe.
        model: the checkpoint with the tokenizer. None: the published vocabulary.
        on_event: called with progress.

    Raises:
        UserError: the data do not exist, a file cannot be read, or there are no rows.
    """
    named = _named(data, overrides, model).once()
    compiled = _compiled(named.train, named, on_event)
    held_out = sources_of(against) or named.validation
    test = _compiled(held_out, named, on_event) if held_out else Compiled()
    problems = [*compiled.problems, *test.problems]
    if similar:
        with counting(on_event, "searching near-duplicates", len(compiled.conversations)) as advance:
            problems += corpus.near_duplicates(compiled.conversations, advance)
    if held_out:
        problems += corpus.leak_problems(corpus.leaks(compiled.conversations, test.conversations))
    return Checked(
        rows=compiled.rows + test.rows,
        usable=len(compiled.conversations) + len(test.conversations),
        formats=compiled.formats + test.formats,
        problems=[*problems, *corpus.effort_labels(compiled.conversations)],
    )


@dataclass(frozen=True)
class RepairedCopy:
    """A repaired copy, with the settings that read it."""

    written: Written
    """The record of the repairs."""
    settings: DataSection | None
    """Settings with the `format` and `columns` of the copy. None: its rows need different ones."""


def repair(data: Named, to: Path | str, *, overrides: Iterable[str] = (), model: str | None = None) -> RepairedCopy:
    """Write a repaired copy of the data to a JSONL file, and return the record of the repairs.

    Args:
        data: files, folders or hub data set ids, or a recipe.
        to: the file of the copy. Rows that cannot be repaired go to `TO.rejected.jsonl`.
        overrides: `section.key=value`, applied to the recipe.
        model: the checkpoint with the tokenizer. None: the published vocabulary.

    Raises:
        UserError: the data do not exist, or one of the two files exists already or cannot be written.
    """
    named = _named(data, overrides, model).once()
    written = write_fixed(named.train, named.settings, Path(to))
    owns = [settings_for(source, named.settings) for source in named.train]
    alike = all((own.format, own.columns) == (owns[0].format, owns[0].columns) for own in owns)
    return RepairedCopy(written, owns[0] if alike else None)


@dataclass(frozen=True)
class OpenData:
    """Conversations that are compiled one by one, during iteration."""

    rows: Iterator[Compiling]
    """The usable rows. Iterating raises UserError if there are none, or if the requested row cannot be used."""
    vocabulary: Vocabulary
    settings: DataSection

    def examples(self, done: Compiling) -> Iterator[tuple[Example, bool]]:
        """Yield the training examples of a row, each with whether it is the rejected answer of a preference pair."""
        assert done.rendered is not None
        yield from ((example, False) for example in done.rendered.examples)
        if done.rendered.rejected is not None:
            yield done.rendered.rejected, True


def read_conversations(
    data: Named,
    *,
    row: int | None = None,
    limit: int | None = None,
    overrides: Iterable[str] = (),
    model: str | None = None,
) -> OpenData:
    """Return usable conversations with their tokens, for display. They are compiled during iteration.

    Args:
        data: files, folders or hub data set ids, or a recipe.
        row: the line number in the file, from 1, of the only row to read. None: all rows.
        limit: the largest number of conversations.
        overrides: `section.key=value`, applied to the recipe.
        model: the checkpoint with the tokenizer. None: the published vocabulary.

    Raises:
        UserError: the data do not exist.
    """
    named = _named(data, overrides, model)
    return OpenData(_rows(named, row, limit), named.vocabulary, named.settings)


@dataclass(frozen=True)
class Counted:
    """The statistics of a data set, with the settings of the count."""

    statistics: Statistics
    languages: dict[str, dict[str, int]]
    """user, analysis or final -> ISO 639 code -> number of conversations in a sample."""
    limit: int
    """`data.max_tokens`. Examples are counted without this limit, so that those above it can be counted."""
    examples_per_step: int
    """`train.examples_per_step`, with which the saving by shared prefixes is counted."""

    def as_dict(self) -> dict[str, Any]:
        """Return all figures for JSON."""
        shares = {"trained_share": self.statistics.trained_share, "saved_share": self.statistics.saved_share}
        given = {"limit": self.limit, "examples_per_step": self.examples_per_step}
        return {**dataclasses.asdict(self.statistics), **shares, **given, "languages": self.languages}


def count_tokens(
    data: Named,
    *,
    at: Sequence[int] = LIMITS,
    overrides: Iterable[str] = (),
    model: str | None = None,
    on_event: OnEvent = ignore,
) -> Counted:
    """Return lengths, trained share, channels, turns, tools, languages, and the saving by shared prefixes.

    Args:
        data: files, folders or hub data set ids, or a recipe.
        at: lengths in tokens at which truncation is counted.
        overrides: `section.key=value`, applied to the recipe.
        model: the checkpoint with the tokenizer. None: the published vocabulary.
        on_event: called with progress, and with a note if rows cannot be used.

    Raises:
        UserError: the data do not exist, or no row can be used.
    """
    changes = list(overrides)
    named = _named(data, changes, model)
    limit = named.settings.max_tokens
    unlimited = dataclasses.replace(named, settings=named.settings.model_copy(update={"max_tokens": 1 << 30}))
    compiled = _compiled(named.train + named.validation, unlimited, on_event)
    if not compiled.conversations:
        do = f"ossia data check {command_arguments(named.names, changes, model)}"
        raise UserError("no row can be used", where=", ".join(named.names), do=do)
    if compiled.errors:
        message = f"{len(compiled.errors)} rows cannot be used (ossia data check lists them)"
        on_event(Note(level="warning", message=message))
    with counting(on_event, "counting", len(compiled.conversations)) as advance:
        steps = (named.examples_per_step, named.seed)
        counted = statistics(compiled.conversations, limit, at, advance, steps)
    languages = detect_languages(compiled.conversations, named.vocabulary)
    return Counted(counted, languages, limit, named.examples_per_step)


def command_arguments(files: Sequence[str], overrides: Iterable[str] = (), model: str | None = None) -> str:
    """Return files and options, quoted for a shell, for another command on the same data."""
    changes = (word for change in overrides for word in ("--set", change))
    return shlex.join([*files, *changes, *(("--model", model) if model else ())])


def is_recipe(files: Sequence[str]) -> bool:
    """Return whether a list of names is one recipe, given by its file or its name."""
    return len(files) == 1 and (files[0] in recipes.available() or files[0].endswith((".yaml", ".yml")))


@dataclass(frozen=True)
class _NamedData:
    """Data sets with the settings that are needed to compile them."""

    names: list[str]
    """The names as the user gave them, for messages."""
    train: list[DataSource]
    validation: list[DataSource]
    settings: DataSection
    vocabulary: Vocabulary
    seed: int
    examples_per_step: int

    def once(self) -> _NamedData:
        """Return the same data with all weights set to 1, so that every row is used once."""
        train, validation = (
            [source.model_copy(update={"weight": 1.0}) for source in sources]
            for sources in (self.train, self.validation)
        )
        return dataclasses.replace(self, train=train, validation=validation)


def _named(data: Named, overrides: Iterable[str], model: str | None) -> _NamedData:
    """Return data sets with their settings. A recipe has its own settings."""
    changes = list(overrides)
    given = [] if isinstance(data, Recipe) else sources_of(data)
    names = [data.name] if isinstance(data, Recipe) else [source.path for source in given]
    if isinstance(data, Recipe) or is_recipe(names):
        recipe = recipes.load_recipe(data if isinstance(data, Recipe) else names[0], changes)
        train, validation = sources_of(recipe.data.train), sources_of(recipe.data.validation)
    else:
        recipe = recipes.parse_recipe("", where="--set", overrides=changes)
        train, validation = given, []
        if recipe.data.train or recipe.data.validation:
            do = "name all of them as arguments"
            raise UserError("the files are named already", where="--set data.train", do=do)
    if not train:
        do = "--set data.train=conversations.jsonl"
        raise UserError("the recipe has no training data", where=", ".join(names) or None, do=do)
    return _NamedData(
        names=names,
        train=train,
        validation=validation,
        settings=recipe.data,
        vocabulary=vocabulary_of(model),
        seed=recipe.train.seed,
        examples_per_step=recipe.train.examples_per_step,
    )


def _compiled(sources: list[DataSource], named: _NamedData, on_event: OnEvent) -> Compiled:
    """Return the conversations of sources, compiled on all cores. Raises UserError if there are no rows."""
    total = sum(map(total_bytes, sources)) // 10**6 or None
    with counting(on_event, "compiling", total, "MB") as advance:
        compiled = compile_sources(
            sources, named.vocabulary, named.settings, workers=usable_cores(), cache=named.settings.cache,
            seed=named.seed, progress=lambda count: advance(count / 1e6),
        )  # fmt: skip
    if not compiled.rows:
        raise UserError("there are no rows", where=", ".join(source.path for source in sources))
    return compiled


def _rows(named: _NamedData, row: int | None, limit: int | None) -> Iterator[Compiling]:
    """Yield usable conversations as they are read. The errors are those of `OpenData.rows`."""
    count, first = 0, ""
    for source in named.train + named.validation:
        for done in compile_rows(source, named.vocabulary, named.settings, row):
            if done.rendered is None:
                first = first or next(str(problem) for problem in done.problems if problem.level == "error")
                if row is not None:
                    raise UserError(f"row {row} cannot be used", why=first, do="ossia data check FILE --fix COPY")
                continue
            yield done
            count += 1
            if row is not None or count == limit:
                return
    if not count:
        what = "there is no usable conversation" if row is None else f"there is no row {row}"
        raise UserError(what, why=first or None, where=", ".join(source.path for source in named.train))
