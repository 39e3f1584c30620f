"""The common parts of all formats: columns with other names, settings of a row, and the remaining columns."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ossia.config import EFFORTS, Effort
from ossia.data.formats.reading import SYSTEM_KEYS, JsonRow, Reading, is_thought
from ossia.errors import OnProblem, Problem
from ossia.harmony.from_openai import THOUGHT_KEYS

NEVER_EXTRA = frozenset({"chat_template_kwargs", "parallel_tool_calls"})
"""Columns that are never kept in `Conversation.extra`."""


def renamed(row: JsonRow, columns: Mapping[str, str]) -> JsonRow:
    """Return the row with its columns renamed to keys of the format.

    A renamed column replaces a column that already has the name of the key.
    """
    if not columns:
        return row
    kept = {key: value for key, value in row.items() if key not in columns}
    return {**kept, **{key: row[column] for column, key in columns.items() if column in row}}


def doubled(columns: Mapping[str, str]) -> Iterator[str]:
    """Yield a message for every key of `data.columns` that several columns are mapped to."""
    for key in dict.fromkeys(columns.values()):
        named = [repr(column) for column, known in columns.items() if known == key]
        if len(named) > 1:
            yield f"data.columns has {' and '.join(named)} for the one key `{key}`"


def faulty_columns(row: JsonRow, columns: Mapping[str, str]) -> list[Problem]:
    """Return an error for every key with several columns, and for every renamed column that the row lacks."""
    if not columns:
        return []
    keys = ", ".join(map(str, row)) or "(none)"
    do = "correct data.columns, which maps columns of the rows to keys of the format"
    clashes = [Problem("error", "column", what, "leave one of them out") for what in doubled(columns)]
    return clashes + [
        Problem("error", "column", f"the row has no column {column!r} (for `{key}`); keys: {keys}", do)
        for column, key in columns.items()
        if column not in row
    ]


def under_column_names(report: OnProblem, columns: Mapping[str, str]) -> OnProblem:
    """Return a report that replaces the key at the beginning of a place by the row's column name."""
    if not columns:
        return report
    names = {key: column for column, key in columns.items()}

    def renaming(problem: Problem) -> None:
        head = problem.path.partition(".")[0].partition("[")[0]
        report(replace(problem, path=names.get(head, head) + problem.path[len(head) :]))

    return renaming


def in_the_row(report: OnProblem, reading: Reading) -> OnProblem:
    """Return a report that converts places in the chat messages and tools to places in the row.

    The place of a message that is not a chat message in the row ends at that message, without `.content`.
    """
    made = reading.made | reading.rejected.made if reading.rejected else reading.made

    def placing(problem: Problem) -> None:
        path = problem.path
        if path == "tools" or path.startswith("tools["):
            path = _tool_place(path, reading)
        elif path == "response_format":
            path = reading.response_format_path
        elif made:
            while path and path not in made:
                path = path.rpartition(".")[0]
        report(replace(problem, path=path or problem.path))

    return placing


def _tool_place(path: str, reading: Reading) -> str:
    index, _, rest = path.removeprefix("tools[").partition("]")
    if path == "tools" or not index.isdecimal():
        return reading.tools_path + path.removeprefix("tools")
    if int(index) < len(reading.tool_paths):
        return reading.tool_paths[int(index)]
    return f"{reading.tools_path}[{index}]{rest}"


@dataclass(frozen=True, slots=True)
class RowSettings:
    """The settings of a row for its system message. None: the row does not have the setting."""

    effort: Effort | None
    identity: str | None
    date: str | None
    builtin_tools: tuple[str, ...]


def settings_of(row: JsonRow, reading: Reading, report: OnProblem) -> RowSettings:
    """Return effort, identity, date and built-in tools from TRL's `chat_template_kwargs`, or from the row."""
    kwargs = row.get("chat_template_kwargs")
    kwargs = kwargs if isinstance(kwargs, Mapping) else {}

    def setting(key: str) -> tuple[Any, str]:
        return (kwargs[key], f"chat_template_kwargs.{key}") if key in kwargs else (row.get(key), key)

    effort, path = setting("reasoning_effort")
    if effort is None:
        effort, path = reading.effort, reading.effort_path
    if effort is None and isinstance(word := row.get("reasoning"), str) and word.strip().lower() in EFFORTS:
        effort, path = word, "reasoning"
    known = next((name for name in EFFORTS if name == str(effort).strip().lower()), None)
    if effort is not None and known is None:
        what = f"the effort is {effort!r}, not {', '.join(EFFORTS)}: the recipe's effort is used"
        report(Problem("warning", "effort", what, "choose the nearest one", path))
    texts: dict[str, str | None] = {}
    for key in ("model_identity", "current_date"):
        value, path = setting(key)
        if value is not None and not isinstance(value, str):
            report(Problem("error", "not-text", f"{key} is not text", path=path))
        texts[key] = value if isinstance(value, str) else None
    names, path = setting("builtin_tools")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        report(Problem("error", "unknown-builtin", "builtin_tools is not a list of names", path=path))
        names = None
    return RowSettings(known, texts["model_identity"], texts["current_date"], tuple(names or ()))


def ignored_columns(row: JsonRow, reading: Reading, report: OnProblem) -> None:
    """Report a warning for each column of instructions or of a thought that the row's format did not use."""
    for key in (*SYSTEM_KEYS, *THOUGHT_KEYS):
        value = row.get(key)
        used = key in reading.used or not (value if key in SYSTEM_KEYS else is_thought(value))
        if not used and not (key == "system_prompt" and value == row.get("system")):
            what = f"the column `{key}` is not used in this row: it has no place in its format"
            report(Problem("warning", "ignored-column", what, "put it into the messages, or remove it", key))


def extra_of(row: JsonRow, taken: Collection[str]) -> dict[str, Any]:
    """Return the columns that the format does not use, such as an expected answer, labels or an id."""
    return {
        key: value for key, value in row.items() if key not in taken and key not in NEVER_EXTRA and value is not None
    }
