"""Formats with problems and the traces of reasoning models that solve them.

openthoughts   open-thoughts/OpenThoughts-114k: conversations with answers of the form
               <|begin_of_thought|>...<|end_of_thought|> <|begin_of_solution|>...<|end_of_solution|>. The system
               prompt that describes these marks is left out. Later sets have <think> and are read as `sharegpt`
openr1         open-r1/OpenR1-Math-220k: {"problem", "generations": [...], "correctness_math_verify": [...] | null,
               "correctness_llama": [...] | null, "is_reasoning_complete": [...] | null, "finish_reasons": [...] | null}
"""

from __future__ import annotations

from typing import Any

from ossia.data.formats.dialects import ROLE_OF
from ossia.data.formats.reading import JsonRow, Misfit, Reading, RowFormat, add_system
from ossia.data.formats.think import CLOSE
from ossia.data.formats.turns import KEYS, begin, speakers_of, turns_in
from ossia.errors import OnProblem, Problem

_THOUGHT = ("<|begin_of_thought|>", "<|end_of_thought|>")
_SOLUTION = ("<|begin_of_solution|>", "<|end_of_solution|>")
_VERDICTS = ("correctness_math_verify", "correctness_llama")
_OPENR1_KEYS = frozenset({"problem", "generations", "messages", "is_reasoning_complete", "finish_reasons", *_VERDICTS})


def _is_openthoughts(row: JsonRow) -> bool:
    if isinstance(system := row.get("system"), str) and "conversations" in row and _THOUGHT[0] in system:
        return True
    return any(
        isinstance(text, str) and _THOUGHT[0] in text
        for name, text in speakers_of(row)
        if ROLE_OF.get(name) == "assistant"
    )


def _read_openthoughts(row: JsonRow, report: OnProblem) -> Reading:
    reading = begin(row)
    if _describes_marks(row.get("system")):
        reading.used.add("system")
    else:
        add_system(reading, row)
    for turn in turns_in(row, report):
        text, fields = turn.text, turn.further
        if turn.role == "system" and _describes_marks(text):
            continue
        if turn.role == "assistant" and isinstance(text, str) and _THOUGHT[0] in text:
            thought, rest, closed = _between(text, _THOUGHT)
            if not closed:
                what = f"a {_THOUGHT[0]} that is never closed: all of it is thought, and there is no answer"
                report(Problem("warning", "unclosed-think", what, path=turn.path))
            solution, around, _ = _between(rest, _SOLUTION)
            text = "\n\n".join(part for part in (around, solution) if part) if closed else None
            fields = {**fields, "thinking": thought}
        reading.add(turn.path, turn.role, text, **fields)
    return reading


def _describes_marks(text: object) -> bool:
    return isinstance(text, str) and _THOUGHT[0] in text


def _between(text: str, marks: tuple[str, str]) -> tuple[str, str, bool]:
    """Return the text between the first two marks, the text around it, and whether the second mark is there.

    Without the first mark the result is ("", text, True).
    """
    before, opened, inside = text.partition(marks[0])
    if not opened:
        return "", text.strip(), True
    inside, closed, after = inside.partition(marks[1])
    around = "\n\n".join(part for part in map(str.strip, (before, after)) if part)
    return inside.strip(), around, bool(closed)


def _read_openr1(row: JsonRow, report: OnProblem) -> Reading:
    generations = row.get("generations")
    if not isinstance(row.get("problem"), str):
        raise Misfit("`problem` is not text")
    if not isinstance(generations, list):
        raise Misfit("`generations` is not a list of texts")
    reading = Reading()
    add_system(reading, row)
    reading.add("problem", "user", row["problem"])
    ranked = [(_verdict(row, index), index) for index, text in enumerate(generations) if _is_complete(row, index, text)]
    best = max(ranked, key=lambda pair: (pair[0], -pair[1]), default=(0, 0))
    if best[0] <= 0:
        what = f"none of the {len(generations)} traces is known to be both complete and correct"
        do = f"remove the row. The verdicts are in {', '.join(_VERDICTS)} and is_reasoning_complete"
        report(Problem("error", "no-correct-trace", what, do, "generations"))
        return reading
    reading.prompt = len(reading.messages)
    reading.add(f"generations[{best[1]}]", "assistant", generations[best[1]])
    if len(ranked) > 1:
        reading.score = float(best[0])
    for verdict, index in ranked:
        if index != best[1]:
            other = Reading()
            other.add(f"generations[{index}]", "assistant", generations[index])
            reading.others.append((other, float(verdict)))
    return reading


def _verdict(row: JsonRow, index: int) -> int:
    """Return the number of verifiers that accept the trace. Often the second checked only those the first rejected."""
    return sum(_at(row.get(key), index) is True for key in _VERDICTS)


def _is_complete(row: JsonRow, index: int, text: object) -> bool:
    """Return whether a trace is complete. Without a value in the row, it is complete if it closes its thought."""
    if not isinstance(text, str) or _at(row.get("finish_reasons"), index) not in (None, "stop"):
        return False
    complete = _at(row.get("is_reasoning_complete"), index)
    return CLOSE in text if complete is None else complete is True


def _at(values: Any, index: int) -> object:
    return values[index] if isinstance(values, list) and index < len(values) else None


FORMATS = (
    RowFormat("openr1", lambda row: "problem" in row and "generations" in row, _read_openr1, _OPENR1_KEYS),
    RowFormat("openthoughts", _is_openthoughts, _read_openthoughts, KEYS),
)
