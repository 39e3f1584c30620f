"""Repairs of rows whose intended content is certain, with a description of every change.

Repairs use the results of the checks. The code of a problem selects the repair (see `repairs`), and its path gives the
place in the row. So a repair works in every format. First all values are repaired at once. If nothing is left to
repair in place, messages and calls are removed. The row is read again after each step.

A repair is not made if it would make a usable row unusable, change its format, or remove an answer or a call with
content. A row that cannot be repaired is left out of the copy. It goes to another file, unchanged, with the reason.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ossia.config import DataSection, Sources, sources_of
from ossia.data.checks import Duplicates
from ossia.data.load import read_row
from ossia.data.loose_json import loads, loads_loosely
from ossia.data.repairs import IN_PLACE, STRUCTURAL, without_trailing_commas
from ossia.data.sources import Row, read_rows, settings_for
from ossia.errors import Problem, UserError
from ossia.files import write_atomically
from ossia.harmony.conversation import Conversation

FIXES = {**IN_PLACE, **STRUCTURAL}
"""Code of a problem -> its repair."""
_ONE_TEXT = ("glaive", "harmony")  # formats in which control tokens end a message


@dataclass(slots=True)
class Fixed:
    """The result of repairing a row: its repaired value, or None with the remaining problems."""

    row: Row
    value: dict[str, Any] | None
    changes: list[str] = field(default_factory=list)
    """One text per change, such as `messages[0].role: role 'usr' -> 'user'`."""
    problems: list[Problem] = field(default_factory=list)
    """The remaining errors, if `value` is None."""

    @property
    def is_duplicate(self) -> bool:
        """Whether the row was left out because an earlier row is equal."""
        return any(problem.code == "duplicate" for problem in self.problems)


def fix_rows(sources: Sources, settings: DataSection) -> Iterator[Fixed]:
    """Yield every row after its repair, each source with its own settings and limit.

    A row that needs no repair keeps its value. The value is None for a row that cannot be used, and for an exact
    duplicate with the same settings of format and columns.

    Raises:
        UserError: a source cannot be read.
    """
    duplicates = Duplicates()
    for source in sources_of(sources):
        own, usable = settings_for(source, settings), 0
        for row in read_rows(source):
            if source.limit is not None and usable == source.limit:
                break
            fixed = fix_row(row, own)
            if fixed.value is not None:
                usable += 1
                key = json.dumps([own.format, own.columns, fixed.value], sort_keys=True)
                if found := duplicates.check(key, row.where):
                    fixed = Fixed(row, None, [f"left out: {found[0].what}"], found)
            yield fixed


def fix_row(row: Row, settings: DataSection) -> Fixed:
    """Return one row after its repair. No content of a row raises an error."""
    try:
        fixed = _fix_row(row, settings)
        json.dumps([[[[fixed.value]]]])  # with a margin of four levels of nesting
        return fixed
    except RecursionError:
        what = "the row is nested more deeply than Python can follow"
        return Fixed(row, None, [], [Problem("error", "too-deep", what, file=row.file, line=row.line)])


def _fix_row(row: Row, settings: DataSection) -> Fixed:
    value, changes = row.value, list[str]()
    if value is None:
        value = _parse_leniently(row)
        if value is None:
            return Fixed(row, None, [], read_row(row, settings)[0])
        changes.append("the line was not JSON: read leniently")
    now = _read(value, row, settings)
    while step := _in_place(now) or _structural(now):
        now, made = step
        changes += made
    if now.conversation is None:
        return Fixed(row, None, [], [problem for problem in now.problems if problem.level == "error"])
    return Fixed(row, now.value, changes)


def _parse_leniently(row: Row) -> dict[str, Any] | None:
    """Return a row whose text is a Python dictionary, or JSON with trailing commas. None for any other text."""
    if "not UTF-8" in row.error:  # the decoding has already replaced bytes
        return None
    text = row.text.strip().rstrip(",")
    for parse, attempt in ((loads_loosely, text), (loads, without_trailing_commas(text))):
        try:
            value = parse(attempt)
            if isinstance(value, dict) and all(isinstance(key, str) for key in value):
                # As in JSON, keys are texts and tuples are lists. A key with the value null counts as absent.
                value = json.loads(json.dumps(value))
                return {key: item for key, item in value.items() if item is not None}
        except (ValueError, TypeError, RecursionError):
            continue
    return None


# ---------------------------------------------------------------------------------------------------------- one row


@dataclass(slots=True)
class _State:
    """A row after some repairs, with its remaining problems."""

    row: Row
    value: dict[str, Any]
    settings: DataSection
    problems: list[Problem]
    conversation: Conversation | None
    format: str

    @property
    def is_preference(self) -> bool:
        return self.format.endswith("preference")


_Step = tuple[_State, list[str]]


def _read(value: dict[str, Any], row: Row, settings: DataSection) -> _State:
    return _State(row, value, settings, *read_row(Row(value, row.file, row.line), settings))


def _in_place(now: _State) -> _Step | None:
    """Return the row with all possible repairs of values, or None if there are none."""
    codes = set(IN_PLACE)
    # In a preference pair a cleaned alternative could differ from the other by its end alone.
    if now.is_preference or now.format in _ONE_TEXT:
        codes.discard("special-tokens")
    return _try(now, [problem for problem in now.problems if problem.code in codes])


def _structural(now: _State) -> _Step | None:
    """Return the row without the messages or calls of one kind of problem, or None if no removal is possible.

    The last place in the row is removed first, so that the other places stay valid. While the row has errors, its
    warnings are ignored, because the errors may cause them. Preference pairs are never changed, because both
    alternatives share the messages of the prompt.
    """
    if now.is_preference:
        return None
    only_errors = now.conversation is None
    for code in STRUCTURAL:
        problems = [p for p in now.problems if p.code == code and (p.level == "error" or not only_errors)]
        problems.sort(key=lambda problem: [int(number) for number in re.findall(r"\[(\d+)\]", problem.path)])
        if problems and (step := _try(now, problems[::-1])):
            return step
    return None


def _try(now: _State, problems: list[Problem]) -> _Step | None:
    """Return the row after all repairs. If these do harm, halves of them are tried. None: no repair is possible."""
    value = copy.deepcopy(now.value)
    changes = [line for problem in problems for line in _mend(value, problem, now.format)]
    if not changes:
        return None
    new = _read(value, now.row, now.settings)
    if _is_no_worse(new, now, problems[0].code in STRUCTURAL):
        return new, changes
    if len(problems) == 1:
        return None
    half = len(problems) // 2
    return _try(now, problems[:half]) or _try(now, problems[half:])


def _mend(value: dict[str, Any], problem: Problem, format: str) -> Iterator[str]:
    """Repair `value` in place, and yield a text for each change."""
    paths = [problem.path, *(_twins(value, problem.path) if format == "trl-preference" else ())]
    for path in paths:
        if change := FIXES[problem.code](value, replace(problem, path=path)):
            yield f"{path}: {change}" if path else change


def _twins(value: dict[str, Any], path: str) -> list[str]:
    """Return the places of the same message in other lists.

    Alternatives that contain their prompt must have the same prompt after the repair.
    """
    named = re.match(r"([^.\[\]]+)\[(\d+)\](.*)", path)
    own = value.get(named[1]) if named else None
    if named is None or not isinstance(own, list) or int(named[2]) >= len(own):
        return []
    index = int(named[2])
    others = ((key, item) for key, item in value.items() if key != named[1] and isinstance(item, list))
    return [f"{key}[{index}]{named[3]}" for key, item in others if index < len(item) and item[index] == own[index]]


def _is_no_worse(new: _State, old: _State, removes: bool) -> bool:
    """Return whether a usable row is still usable and has the same format.

    Args:
        removes: whether the repair removes messages or calls. Then all answers and calls with content must remain.
    """
    if old.conversation is None:
        return True
    if new.conversation is None or new.format != old.format:
        return False
    return not removes or _trained(new.conversation) == _trained(old.conversation)


def _trained(conversation: Conversation) -> list[str]:
    """Return the contents of the trained answers and calls, without empty ones."""
    return [
        message.content
        for message in conversation.messages
        if message.role == "assistant" and message.weight != 0 and message.content.strip()
        if message.channel != "analysis" or message.recipient is not None
    ]


# ------------------------------------------------------------------------------------------------------------ files


@dataclass(slots=True)
class Written:
    """The record of a repaired copy."""

    path: str
    """The file of the copy. It is written only if at least one row can be used."""
    rejects: str | None = None
    """The file with the rows that could not be repaired, if there are any."""
    rows: int = 0
    """The number of rows read. It is the sum of the next three."""
    unchanged: int = 0
    repaired: int = 0
    left_out: int = 0
    faulty: int = 0
    """The number of rows left out that are not duplicates."""
    lines: list[str] = field(default_factory=list)
    """A line for every change, with file, row, place and description."""


def write_fixed(sources: Sources, settings: DataSection, to: Path) -> Written:
    """Write a repaired copy of data sets to the JSONL file `to`, and return the record of it.

    Rows that cannot be repaired, and duplicates, go to a second file: `copy.rejected.jsonl` for `copy.jsonl`.

    Raises:
        UserError: `to` is not .jsonl or .ndjson, one of the two files exists already or cannot be written, or a source
            cannot be read.
    """
    rejects = to.with_name(f"{to.name.removesuffix('.jsonl')}.rejected.jsonl")
    if to.suffix not in (".jsonl", ".ndjson"):
        raise UserError(
            "the repaired copy must be a file of JSON lines",
            where=str(to),
            do=f"--fix {to.with_suffix('.jsonl').name}",
        )
    for path in (to, rejects):
        if path.exists():
            raise UserError("the file exists already", where=str(path), do="choose another name, or remove it first")
    written, good, bad = Written(str(to)), list[str](), list[str]()
    for fixed in fix_rows(sources, settings):
        written.rows += 1
        (bad if fixed.value is None else good).append(_line(fixed, written))
    try:
        if good:
            write_atomically(to, "".join(line + "\n" for line in good).encode("utf-8", "backslashreplace"))
        if bad:
            written.rejects = str(rejects)
            write_atomically(rejects, "".join(line + "\n" for line in bad))
    except OSError as error:
        raise UserError(f"the copy cannot be written ({error.strerror})", where=str(to)) from error
    return written


def _line(fixed: Fixed, written: Written) -> str:
    """Return the line for the copy or for the rejected rows, and count the row in `written`."""
    changes, where = list(fixed.changes), fixed.row.where
    if fixed.value is not None:
        line, is_exact = _strict_json(fixed.value)
        changes += () if is_exact else ["NaN and infinite numbers -> null"]
        written.repaired += bool(changes)
        written.unchanged += not changes
    else:
        why = [problem.what for problem in fixed.problems]
        row = fixed.row.text if fixed.row.value is None else fixed.row.value
        line, _ = _strict_json({"from": where, "why": why, "row": row}, ensure_ascii=True)
        changes += () if fixed.is_duplicate else [f"left out: {'; '.join(why)}"]
        written.faulty += not fixed.is_duplicate
        written.left_out += 1
    written.lines += [f"{where}: {change}" for change in changes]
    return line


def _strict_json(value: dict[str, Any], ensure_ascii: bool = False) -> tuple[str, bool]:
    """Return the row as strict JSON, and whether its value is unchanged. NaN and infinite numbers become null."""
    try:
        return json.dumps(value, ensure_ascii=ensure_ascii, allow_nan=False), True
    except RecursionError:
        return json.dumps({**value, "row": "nested too deeply to be written"}), False
    except ValueError:
        return json.dumps(_without_infinities(value), ensure_ascii=ensure_ascii), False


def _without_infinities(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_infinities(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_infinities(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
