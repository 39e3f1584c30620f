"""Rows to conversations, with every problem collected on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ossia.data.checks import Duplicates, check_conversation, check_examples, place
from ossia.data.formats import detect, to_conversation
from ossia.data.settings import DEFAULTS, DataSettings
from ossia.data.sources import Row, read_rows
from ossia.errors import UserError
from ossia.harmony.conversation import Conversation
from ossia.harmony.problem import Problem
from ossia.harmony.vocabulary import Vocabulary


@dataclass(slots=True)
class Loaded:
    """What came out of the files: the good rows, and what was wrong with the others."""

    conversations: list[Conversation] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    rows: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    """Format -> rows."""

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.level == "error"]

    @property
    def warnings(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.level == "warning"]


def load_conversations(sources: str | Path | Iterable[str | Path], settings: DataSettings = DEFAULTS) -> Loaded:
    """Read files, folders and hub data sets (see `read_rows`) into conversations.

    A row with an error is left out and the rest goes on, unless `settings.strict`.

    Raises:
        UserError: a source cannot be read at all; or, with `strict`, the first row with an error.
    """
    loaded, duplicates = Loaded(), Duplicates()
    for row in read_rows(sources):
        loaded.rows += 1
        problems, conversation = _read(row, settings, loaded)
        if conversation is not None:
            problems += [place(problem, row.where) for problem in duplicates.check(conversation)]
            loaded.conversations.append(conversation)
        loaded.problems += problems
        first = next((problem for problem in problems if problem.level == "error"), None)
        if settings.strict and first is not None:
            raise first.to_error()
    return loaded


def check(
    sources: str | Path | Iterable[str | Path], vocabulary: Vocabulary, settings: DataSettings = DEFAULTS
) -> list[Problem]:
    """Every problem in the data, those that only rendering shows included. Never raises for a bad row."""
    loaded = load_conversations(sources, settings)
    check_examples(loaded.conversations, vocabulary, settings, loaded.problems.append)
    return loaded.problems


def _read(row: Row, settings: DataSettings, loaded: Loaded) -> tuple[list[Problem], Conversation | None]:
    """The problems of a row, and its conversation if none of them is an error."""
    if row.value is None:
        code = "not-an-object" if "not a JSON object" in row.error else "not-json"
        return [Problem("error", code, row.error, file=row.file, line=row.line)], None
    found: list[Problem] = []
    try:
        conversation = to_conversation(row.value, settings, row.where, found.append)
        loaded.formats[detect(row.value) if settings.format == "auto" else settings.format] += 1
    except UserError as error:
        problem = Problem("error", "unknown-format", error.what, error.do or "")
        return [place(problem, row.where)], None
    if not any(problem.level == "error" for problem in found):
        found += check_conversation(conversation)
    bad = any(problem.level == "error" for problem in found)
    return [place(problem, row.where) for problem in found], None if bad else conversation
