"""The figures of an evaluation: each measure before and after tuning, over all questions and by group.

Every figure is a count with its 95 % interval. A difference compares the same questions before and after. It supports
a claim only when its interval lies on one side of zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ossia.evaluate.statistics import Difference, Proportion, paired_difference, proportion
from ossia.evaluate.tasks import MEASURES, GradedAnswer, Question

TableRow = tuple[str, ...]


@dataclass(frozen=True)
class MeasureResult:
    """One measure over one group of questions."""

    measure: str
    """One of `ossia.evaluate.tasks.MEASURES`."""
    arms: dict[str, Proportion]
    """The proportion of each arm (base, tuned or model)."""
    difference: Difference | None
    """The second arm minus the first. None if there is only one arm."""


@dataclass(frozen=True)
class Group:
    """The results of one group of questions."""

    name: str
    """For example "all questions", "thought in German" or "kind add"."""
    lines: tuple[MeasureResult, ...]
    """The measures that apply to at least one question of the group."""


@dataclass(frozen=True)
class EvaluationSummary:
    """The figures of an evaluation."""

    arms: tuple[str, ...]
    groups: tuple[Group, ...]
    """The group of all questions comes first. Empty if there are no questions."""
    mean_tokens: dict[str, float]
    """Per arm, the mean number of tokens of an answer."""
    cut: dict[str, int]
    """Per arm, the number of answers that reached the length limit."""
    questions: int
    """Number of questions that every arm has answered."""

    def to_json(self) -> dict[str, Any]:
        """Return the figures as nested dictionaries, for the report's file."""
        return asdict(self)

    def brief(self) -> dict[str, Any]:
        """Return the number of questions and each measure's share over all of them, for the run's events."""
        lines = self.groups[0].lines if self.groups else ()
        shares = {line.measure: {arm: round(p.share, 4) for arm, p in line.arms.items()} for line in lines}
        return {"questions": self.questions, **shares}


def summarise(asked: Sequence[Question], answers: Mapping[str, Mapping[int, GradedAnswer]]) -> EvaluationSummary:
    """Return the figures of questions that every arm has answered.

    Args:
        answers: arm -> question number -> answer.
    """
    groups: dict[str, list[Question]] = {"all questions": list(asked)}
    for question in asked:
        if question.requested is not None:
            groups.setdefault(f"thought in {question.requested}", []).append(question)
    for question in asked:
        if question.kind is not None:
            groups.setdefault(f"kind {question.kind}", []).append(question)
    given = {arm: [answers[arm][question.number] for question in asked] for arm in answers}
    return EvaluationSummary(
        arms=tuple(answers),
        groups=tuple(Group(name, _lines(members, answers)) for name, members in groups.items()) if asked else (),
        mean_tokens={arm: sum(len(a.completion.ids) for a in made) / max(1, len(made)) for arm, made in given.items()},
        cut={arm: sum(a.completion.finish == "length" for a in made) for arm, made in given.items()},
        questions=len(asked),
    )


def _lines(members: Sequence[Question], answers: Mapping[str, Mapping[int, GradedAnswer]]) -> tuple[MeasureResult, ...]:
    lines = []
    for measure in MEASURES:
        outcomes = {
            arm: [made[q.number].verdicts[measure] for q in members if measure in made[q.number].verdicts]
            for arm, made in answers.items()
        }
        if not any(outcomes.values()):
            continue
        pairs = list(zip(*outcomes.values(), strict=True)) if len(outcomes) == 2 else None
        difference = paired_difference(pairs) if pairs is not None else None
        lines.append(
            MeasureResult(measure, {arm: proportion(results) for arm, results in outcomes.items()}, difference)
        )
    return tuple(lines)


def main_table(summary: EvaluationSummary) -> tuple[TableRow, list[TableRow]]:
    """Return the columns and rows of the main table: every measure over all questions. It fits into 80 columns."""
    compared = len(summary.arms) == 2
    columns = ("measure", "n", *summary.arms, *(("change",) if compared else ()))
    rows: list[TableRow] = []
    for line in summary.groups[0].lines if summary.groups else ():
        cells = [_cell(line.arms[arm]) for arm in summary.arms]
        if line.difference is not None:
            cells.append(_change(line.difference))
        rows.append((line.measure, _total(line), *cells))
    return columns, rows


def group_table(summary: EvaluationSummary) -> tuple[TableRow, list[TableRow]]:
    """Return the columns and rows of the table by group: the counts before and after, per measure.

    There may be no rows.
    """
    measures = [line.measure for line in summary.groups[0].lines] if summary.groups else []
    rows: list[TableRow] = []
    for group in summary.groups[1:]:
        lines = {line.measure: line for line in group.lines}
        counts = {name: [str(line.arms[arm].count) for arm in summary.arms] for name, line in lines.items()}
        cells = [" > ".join(counts.get(measure, [])) for measure in measures]
        rows.append((group.name, max(map(_total, group.lines), key=int), *cells))
    return ("questions", "n", *measures), rows


def remarks(summary: EvaluationSummary) -> list[str]:
    """Return lines to print below the tables: how to read them, and the length of the answers."""
    lines = ["count, share (95 % interval); change in percentage points on the same questions (95 % interval)"]
    for arm in summary.arms:
        text = f"{arm}: {summary.mean_tokens[arm]:.0f} tokens per answer"
        cut = summary.cut[arm]
        lines.append(f"{text}, {cut} of {summary.questions} cut off at eval.max_new_tokens" if cut else text)
    return lines


def _cell(p: Proportion) -> str:
    return f"{p.count} {100 * p.share:.0f}% ({100 * p.low:.0f}-{100 * p.high:.0f})"


def _change(d: Difference) -> str:
    return f"{100 * d.difference:+.0f} ({100 * d.low:+.0f},{100 * d.high:+.0f})"


def _total(line: MeasureResult) -> str:
    return str(max(p.total for p in line.arms.values()))
