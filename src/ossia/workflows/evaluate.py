"""The workflow that measures a run, an adapter or a model on held-out questions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ossia.errors import UserError
from ossia.evaluate.report import group_table, main_table, remarks
from ossia.events import Note, OnEvent, counting, ignore

if TYPE_CHECKING:
    from ossia.evaluate.runner import Evaluation

__all__ = ["evaluate", "group_table", "main_table", "remarks"]


def evaluate(
    reference: str,
    *,
    data: Sequence[str] = (),
    vs_base: bool = True,
    limit: int | None = None,
    checkpoint: int | None = None,
    overrides: Iterable[str] = (),
    on_event: OnEvent = ignore,
) -> Evaluation:
    """Return the report of an evaluation. It is also written to the run's `evals/`.

    Args:
        reference: a run, checkpoint, adapter or model, as in `ossia.generate.subject.open_subject`.
        data: held-out files. By default they are the recipe's `eval.data`.
        vs_base: whether the base model gets the same questions. Without an adapter there is no base to compare with.
        limit: the largest number of questions, drawn at random from the data. By default it is the recipe's
            `eval.limit`.
        checkpoint: the step of a run's checkpoint. By default it is the run's best checkpoint.
        overrides: `section.key=value`, applied to the recipe.
        on_event: called with notes and progress.

    Raises:
        UserError: nothing matches the reference, there are no questions, or the data cannot be read.
    """
    from ossia.data import load_conversations
    from ossia.evaluate import runner
    from ossia.generate.subject import open_subject

    changes = [*overrides, *([f"eval.limit={limit}"] if limit else [])]
    subject = open_subject(reference, checkpoint=checkpoint, overrides=changes)
    files = list(data) or subject.recipe.eval.data
    if not files:
        raise UserError("there are no held-out questions", do="--data FILE, or set eval.data in the recipe")
    loaded = load_conversations(files, subject.recipe.data)
    if loaded.errors:
        message = f"{len(loaded.errors)} rows cannot be used (ossia data check {files[0]} lists them)"
        on_event(Note(level="warning", message=message))
    arms = 2 if subject.adapter is not None and vs_base else 1
    count = min(subject.recipe.eval.limit or len(loaded.conversations), len(loaded.conversations))
    both = ", each also for the base" if arms == 2 else ""
    on_event(Note(level="info", message=f"{subject.name}: {count} questions{both}"))
    with counting(on_event, "answers", count * arms) as advance:
        return runner.run_evaluation(subject, loaded.conversations, vs_base=vs_base, data=files, on_progress=advance)
