"""Loading: rows become conversations, and all their problems are collected."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ossia.config import DataSection, Sources, sources_of
from ossia.data.checks import Duplicates, check_conversation, place, without_dangling_calls
from ossia.data.formats import convert_row
from ossia.data.sources import Row, read_chunks, settings_for
from ossia.errors import Problem, UserError
from ossia.harmony.conversation import Conversation


@dataclass(slots=True)
class Findings:
    """The problems and the counts of the rows of some files, unusable rows included."""

    problems: list[Problem] = field(default_factory=list)
    rows: int = 0
    """The number of rows read."""
    formats: Counter[str] = field(default_factory=Counter)
    """Format -> rows."""

    @property
    def errors(self) -> list[Problem]:
        """The problems of level error. Each left its row out."""
        return [problem for problem in self.problems if problem.level == "error"]

    @property
    def warnings(self) -> list[Problem]:
        """The problems of level warning."""
        return [problem for problem in self.problems if problem.level == "warning"]


@dataclass(slots=True)
class Loaded(Findings):
    """The usable rows of some files as conversations, with the problems of all rows."""

    conversations: list[Conversation] = field(default_factory=list)


def load_conversations(sources: Sources, settings: DataSection = DataSection()) -> Loaded:
    """Return the conversations of files, folders and hub data sets (see `ossia.data.sources.read_rows`).

    A row with an error is left out, and the rows after it are still read, unless `settings.strict`.

    Raises:
        UserError: a source cannot be read at all. With `settings.strict`, also the first row with an error.
    """
    loaded, duplicates = Loaded(), Duplicates()
    for source in sources_of(sources):
        own, usable = settings_for(source, settings), 0
        for row in (row for chunk in read_chunks(source) for _, row in chunk.rows()):
            if source.limit is not None and usable == source.limit:
                break
            loaded.rows += 1
            problems, conversation, format = read_row(row, own)
            if format:
                loaded.formats[format] += 1
            if conversation is not None:
                usable += 1
                said = (conversation.messages, conversation.instructions, conversation.tools, conversation.rejected)
                problems += duplicates.check(repr(said), row.where)
                loaded.conversations.append(conversation)
            loaded.problems += problems
            raise_if_strict(problems, settings)
    return loaded


def read_row(row: Row, settings: DataSection) -> tuple[list[Problem], Conversation | None, str]:
    """Return the problems of a row, its conversation and its format.

    The conversation is None if one of the problems is an error. The format is "" if it is unknown. No content of a row
    raises an exception.
    """
    try:
        return _read(row, settings)
    except Exception as error:
        return failed(row, error), None, ""


def _read(row: Row, settings: DataSection) -> tuple[list[Problem], Conversation | None, str]:
    if row.value is None:
        code = "not-an-object" if "not a JSON object" in row.error else "not-json"
        code = "too-deep" if "nested too deeply" in row.error else code
        return [Problem("error", code, row.error, file=row.file, line=row.line)], None, ""
    found: list[Problem] = []
    try:
        conversation, format = convert_row(row.value, settings, row.where, found.append)
    except UserError as error:
        found = found or [Problem("error", "unknown-format", error.what, error.do or "")]
        return [place(problem, row.where) for problem in found], None, ""
    conversation, dangling = without_dangling_calls(conversation)
    found += dangling
    if not any(problem.level == "error" for problem in found):
        found += check_conversation(conversation, settings)
    bad = any(problem.level == "error" for problem in found)
    return [place(problem, row.where) for problem in found], None if bad else conversation, format


def failed(row: Row, error: Exception) -> list[Problem]:
    """Return the error of a row that raised an unexpected exception. The rows after it can still be read."""
    code = "too-deep" if isinstance(error, RecursionError) else "internal"
    what = "the row is nested too deeply" if code == "too-deep" else f"{type(error).__name__}: {error}"[:300]
    do = "flatten it" if code == "too-deep" else "please report this row: it is a fault of Ossia"
    return [place(Problem("error", code, what, do), row.where)]


def raise_if_strict(problems: list[Problem], settings: DataSection) -> None:
    """Raise the first error among the problems of a row, if `settings.strict`.

    Raises:
        UserError: one of the problems is an error.
    """
    if settings.strict:
        for problem in problems:
            if problem.level == "error":
                raise problem.to_error()
