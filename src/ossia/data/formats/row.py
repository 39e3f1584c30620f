"""What every format has in common: columns by another name, settings of a row, and what else the row says."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ossia.config import EFFORTS, Effort
from ossia.data.formats.reading import SYSTEM_KEYS, JsonRow, Reading, is_thought
from ossia.errors import OnProblem, Problem
from ossia.harmony.from_openai import THOUGHT_KEYS

NEVER_EXTRA = frozenset({"chat_template_kwargs", "parallel_tool_calls"})


def renamed(row: JsonRow, columns: Mapping[str, str]) -> JsonRow:
    """The row under the format's keys. A column that is renamed to a key takes the place of one of that name."""
    if not columns:
        return row
    kept = {key: value for key, value in row.items() if key not in columns}
    return {**kept, **{key: row[column] for column, key in columns.items() if column in row}}


def doubled(columns: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with `data.columns` itself: a sentence for every key that several columns stand for."""
    for key in dict.fromkeys(columns.values()):
        named = [repr(column) for column, known in columns.items() if known == key]
        if len(named) > 1:
            yield f"data.columns has {' and '.join(named)} for the one key `{key}`"


def faulty_columns(row: JsonRow, columns: Mapping[str, str]) -> list[Problem]:
    """An error for every key with several columns, and for every renamed column that the row lacks."""
    if not columns:
        return []
    keys = ", ".join(map(str, row)) or "(none)"
    do = "correct data.columns; it names columns of the rows, each with the key it stands for"
    clashes = [Problem("error", "column", what, "leave one of them out") for what in doubled(columns)]
    return clashes + [
        Problem("error", "column", f"the row has no column {column!r} (for `{key}`); keys: {keys}", do)
        for column, key in columns.items()
        if column not in row
    ]


def under_column_names(report: OnProblem, columns: Mapping[str, str]) -> OnProblem:
    """A report whose places begin with the row's own column names."""
    if not columns:
        return report
    names = {key: column for column, key in columns.items()}

    def renaming(problem: Problem) -> None:
        head = problem.path.partition(".")[0].partition("[")[0]
        report(replace(problem, path=names.get(head, head) + problem.path[len(head) :]))

    return renaming


def in_the_row(report: OnProblem, reading: Reading) -> OnProblem:
    """A report that turns places in the chat messages and tools into places in the row.

    A message that the row has in another form has no `.content` there: its own place is the end.
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
    """What a row says of its system message; None where it is silent."""

    effort: Effort | None
    identity: str | None
    date: str | None
    builtin_tools: tuple[str, ...]


def settings_of(row: JsonRow, reading: Reading, report: OnProblem) -> RowSettings:
    """Effort, identity, date and built-in tools from TRL's `chat_template_kwargs`, or from the row."""
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
        what = f"the effort is {effort!r}, not {', '.join(EFFORTS)}: the recipe's is taken"
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
    """A warning for a column of instructions or of a thought that the row's format had no use for."""
    for key in (*SYSTEM_KEYS, *THOUGHT_KEYS):
        value = row.get(key)
        used = key in reading.used or not (value if key in SYSTEM_KEYS else is_thought(value))
        if not used and not (key == "system_prompt" and value == row.get("system")):
            what = f"the column `{key}` is not used in this row: it has no place in its format"
            report(Problem("warning", "ignored-column", what, "put it into the messages, or remove it", key))


def extra_of(row: JsonRow, taken: Collection[str]) -> dict[str, Any]:
    """What the format does not take: an expected answer, labels, an id."""
    return {
        key: value for key, value in row.items() if key not in taken and key not in NEVER_EXTRA and value is not None
    }
