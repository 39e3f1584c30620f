"""Rows repaired as far as a program can know what was meant, with a word on every change.

Repairs follow the checks: a problem's code names the repair, its path the place in the row, so a repair works in every
format. What cannot be repaired is left out of the copy and kept in a file of its own, with the reason.
"""

from __future__ import annotations

import ast
import copy
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ossia.data.checks import Duplicates
from ossia.data.load import read_row
from ossia.data.settings import DataSettings
from ossia.data.sources import Row, Sources, read_rows
from ossia.errors import UserError, did_you_mean
from ossia.harmony.chat import CHAT_ROLES
from ossia.harmony.problem import Problem
from ossia.harmony.tokenizer_files import SPECIAL_TOKENS
from ossia.runs import write_atomically

_ALIASES = {
    "human": "user", "person": "user", "customer": "user", "ai": "assistant", "bot": "assistant", "gpt": "assistant",
    "model": "assistant", "chatgpt": "assistant", "agent": "assistant", "observation": "tool", "instruction": "system",
}  # fmt: skip
_ENDS = "|".join(map(re.escape, [*SPECIAL_TOKENS.values(), "<|im_end|>", "<|eot_id|>", "</s>"]))
_TRAILING = re.compile(rf"(?:\s*(?:{_ENDS}))+\s*$")
_LEADING = re.compile(rf"^(?:(?:{_ENDS})\s*)+")
_ROUNDS = 50
"""Repairs of one row after which it is given up."""


@dataclass(slots=True)
class Fixed:
    """What became of a row: its repaired value, or None with the problems that stayed."""

    row: Row
    value: dict[str, Any] | None
    changes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def is_duplicate(self) -> bool:
        """Whether the row was left out for being there before."""
        return any(problem.code == "duplicate" for problem in self.problems)


def fix_rows(rows: Iterator[Row], settings: DataSettings) -> Iterator[Fixed]:
    """Repair row by row. Rows that need nothing come out as they are; exact duplicates are left out."""
    duplicates = Duplicates()
    for row in rows:
        fixed = fix_row(row, settings)
        if fixed.value is not None:
            text = json.dumps(fixed.value, sort_keys=True, ensure_ascii=True)
            if found := duplicates.check(text, row.where):
                fixed = Fixed(row, None, [*fixed.changes, f"left out: {found[0].what}"], found)
        yield fixed


def fix_row(row: Row, settings: DataSettings) -> Fixed:
    """Repair one row."""
    changes: list[str] = []
    value = copy.deepcopy(row.value)
    if value is None:
        value = _parse_leniently(row)
        if value is None:
            return Fixed(row, None, [], read_row(row, settings)[0])
        changes.append("the line was not JSON: read leniently")
    tried: set[tuple[str, str]] = set()
    original, was_usable = copy.deepcopy(value), read_row(Row(value, row.file, row.line), settings)[1] is not None
    for _ in range(_ROUNDS):
        problems, conversation, _ = read_row(Row(value, row.file, row.line), settings)
        change = None
        for problem in problems:
            if problem.code in FIXES and (problem.code, problem.path + problem.what) not in tried:
                tried.add((problem.code, problem.path + problem.what))
                change = FIXES[problem.code](value, problem)
                if change is not None:
                    changes.append(f"{problem.path}: {change}" if problem.path else change)
                    break
        if change is None:
            if conversation is not None:
                return Fixed(row, value, changes)
            if was_usable and row.value is not None:  # no repair may make a row worse
                return Fixed(row, original)
            return Fixed(row, None, changes, [p for p in problems if p.level == "error"])
    return Fixed(row, None, changes, [Problem("error", "unfixable", "the row needs too many repairs")])


def _parse_leniently(row: Row) -> dict[str, Any] | None:
    """A row whose text is nearly JSON: a Python dictionary, or JSON with trailing commas."""
    text = row.text.strip().rstrip(",")
    for attempt in (text, re.sub(r",\s*([}\]])", r"\1", text)):
        for parse in (json.loads, ast.literal_eval):
            try:
                value = parse(attempt)
            except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
                continue
            if isinstance(value, dict) and all(isinstance(key, str) for key in value):
                try:
                    return json.loads(json.dumps(value))  # type: ignore[no-any-return]
                except (TypeError, ValueError):
                    return None
    return None


@dataclass(slots=True)
class Written:
    """What a repaired copy holds."""

    path: str
    """The copy; it is written only if a row can be used."""
    rejects: str | None = None
    """The file with the rows that could not be repaired, if there are any."""
    rows: int = 0
    unchanged: int = 0
    repaired: int = 0
    left_out: int = 0
    faulty: int = 0
    """Of the rows left out, those that are no duplicates."""
    lines: list[str] = field(default_factory=list)
    """A line for every change: file, row, place and what was done."""


def write_fixed(sources: Sources, settings: DataSettings, to: Path) -> Written:
    """Write a repaired copy of data sets to the JSONL file `to`; what cannot be repaired goes to `TO.rejected.jsonl`.

    Raises:
        UserError: one of the two files exists already, or cannot be written.
    """
    rejects = to.with_name(f"{to.name.removesuffix('.jsonl')}.rejected.jsonl")
    for path in (to, rejects):
        if path.exists():
            raise UserError("the file exists already", where=str(path), do="choose another name, or remove it first")
    written, good, bad = Written(str(to)), list[str](), list[str]()
    if to.suffix not in (".jsonl", ".ndjson"):
        raise UserError("the repaired copy is JSON lines", where=str(to), do=f"--fix {to.with_suffix('.jsonl').name}")
    for fixed in fix_rows(read_rows(sources), settings):
        where = fixed.row.where
        written.rows += 1
        written.lines += [f"{where}: {change}" for change in fixed.changes]
        if fixed.value is not None:
            good.append(_strict_json(fixed, written))
            written.repaired += bool(fixed.changes)
            written.unchanged += not fixed.changes
            continue
        why = [problem.what for problem in fixed.problems]
        row = fixed.row.text if fixed.row.value is None else fixed.row.value
        bad.append(json.dumps({"from": where, "why": why, "row": _without_infinities(row)}, ensure_ascii=True))
        written.faulty += not fixed.is_duplicate
        written.left_out += 1
        if not fixed.is_duplicate:
            written.lines.append(f"{where}: left out: {'; '.join(why)}")
    try:
        if good:
            write_atomically(to, "".join(line + "\n" for line in good).encode("utf-8", "backslashreplace"))
        if bad:
            written.rejects = str(rejects)
            write_atomically(rejects, "".join(line + "\n" for line in bad))
    except OSError as error:
        raise UserError(f"the copy cannot be written ({error.strerror})", where=str(to)) from error
    return written


def _strict_json(fixed: Fixed, written: Written) -> str:
    """The row as JSON that every reader takes: Python's own writes NaN and infinite numbers, which JSON has not."""
    try:
        return json.dumps(fixed.value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        written.lines.append(f"{fixed.row.where}: NaN and infinite numbers -> null")
        fixed.changes.append("numbers")
        return json.dumps(_without_infinities(fixed.value), ensure_ascii=False)


def _without_infinities(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_infinities(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_infinities(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ------------------------------------------------------------------------------------------------------- the repairs


def _role(row: Any, problem: Problem) -> str | None:
    holder, key = _find(row, problem.path)
    before = holder[key] if holder is not None else None
    if not isinstance(before, str):
        return None
    word = before.strip().lower()
    after = word if word in CHAT_ROLES else _ALIASES.get(word) or did_you_mean(word, CHAT_ROLES)
    if after is None:
        return None
    holder[key] = after
    return f"role {before!r} -> {after!r}"


def _arguments(row: Any, problem: Problem) -> str | None:
    holder, key = _find(row, problem.path)
    if holder is None or not isinstance(holder[key], str):
        return None
    text = holder[key].strip()
    for attempt in (text, re.sub(r",\s*([}\]])", r"\1", text), f"{{{text}}}"):
        for parse in (json.loads, ast.literal_eval):
            try:
                value = parse(attempt)
                holder[key] = json.dumps(value, ensure_ascii=False)
            except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
                continue
            if isinstance(value, dict):
                return "arguments rewritten as JSON"
    if not text:
        holder[key] = "{}"
        return "empty arguments -> {}"
    return None


def _drop(what: str) -> Callable[[Any, Problem], str | None]:
    """A repair that removes the item of a list (or the key of an object) at the problem's place."""

    def drop(row: Any, problem: Problem) -> str | None:
        holder, key = _find(row, _item(problem.path))
        if holder is None:
            return None
        del holder[key]
        return what

    return drop


def _thought_alone(row: Any, problem: Problem) -> str | None:
    """A turn that is only a thought is of no use; one that says something may be somebody's answer."""
    holder, key = _find(row, _item(problem.path))
    message = holder[key] if holder is not None else None
    said = message.get("content", message.get("value")) if isinstance(message, dict) else "?"
    if said not in (None, "", []):
        return None
    del holder[key]
    return "a turn without an answer: removed"


def _number(row: Any, problem: Problem) -> str | None:
    holder, key = _find(row, problem.path)
    if holder is None:
        return None
    before = holder[key]
    if isinstance(before, str) and before.strip() in ("0", "1", "0.0", "1.0"):
        holder[key] = int(float(before))
    else:
        del holder[key]
    return f"weight {before!r} -> {holder.get(key, 'none')}"


def _effort(row: Any, _: Problem) -> str | None:
    for holder in (row, row.get("chat_template_kwargs")):
        if isinstance(holder, dict) and "reasoning_effort" in holder:
            before = holder.pop("reasoning_effort")
            word = str(before).strip().lower()
            if word in ("low", "medium", "high"):
                holder["reasoning_effort"] = word
            return f"reasoning_effort {before!r} -> {holder.get('reasoning_effort', 'none')}"
    return None


def _specials(row: Any, problem: Problem) -> str | None:
    """Control tokens at the ends of a text are leftovers of another template; inside it they may be its subject."""
    holder, key = _find(row, problem.path)
    if holder is not None and isinstance(holder[key], dict):
        holder, key = holder[key], "content" if "content" in holder[key] else "value"
    if holder is None or not isinstance(text := holder.get(key) if isinstance(holder, dict) else None, str):
        return None
    cleaned = _LEADING.sub("", _TRAILING.sub("", text))
    if cleaned == text:
        return None
    holder[key] = cleaned
    return "control tokens at the end of the text removed"


def _surrogates(row: Any, _: Problem) -> str | None:
    def mend(value: Any) -> Any:
        if isinstance(value, str):
            return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        if isinstance(value, dict):
            return {mend(key): mend(item) for key, item in value.items()}
        return [mend(item) for item in value] if isinstance(value, list) else value

    before = dict(row)
    row.clear()
    row.update(mend(before))
    return "halves of surrogate pairs -> U+FFFD"


FIXES: dict[str, Callable[[Any, Problem], str | None]] = {
    "unknown-role": _role,
    "arguments-not-json": _arguments,
    "result-without-call": _drop("a tool result without a call: removed"),
    "call-without-result": _drop("a parallel call without a result: removed"),
    "last-not-assistant": _drop("a last message that nothing answers: removed"),
    "unfinished-turn": _thought_alone,
    "empty-final": _drop("an empty answer: removed"),
    "weight": _number,
    "effort": _effort,
    "special-tokens": _specials,
    "lone-surrogate": _surrogates,
}
"""Code of a problem -> what mends it: changes the row in place and says what it did, or returns None."""


def _item(path: str) -> str:
    """The list item that a path leads into: `messages[3].content` -> `messages[3]`."""
    found = re.match(r"^(.*\])[^\]]*$", path)
    return found[1] if found else path


def _find(row: Any, path: str) -> tuple[Any, Any]:
    """The container and the key that a path such as `messages[2].role` means; (None, None) if there is none."""
    keys = [int(index) if index else name for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path)]
    holder: Any = row
    try:
        for key in keys[:-1]:
            holder = holder[key]
        holder[keys[-1]]
    except (KeyError, IndexError, TypeError):
        return None, None
    return holder, keys[-1]
