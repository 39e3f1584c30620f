"""The workflow that measures a run, an adapter or a model on held-out questions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ossia.config import Sources
from ossia.errors import OssiaError, UserError
from ossia.evaluate.report import group_table, main_table, remarks
from ossia.events import Note, OnEvent, counting, ignore

if TYPE_CHECKING:
    from ossia.data.rendered import Rendered
    from ossia.evaluate.runner import Evaluation
    from ossia.generate.subject import Subject

__all__ = ["evaluate", "group_table", "main_table", "remarks"]


def evaluate(
    reference: str,
    *,
    data: Sequence[str] = (),
    vs_base: bool = True,
    limit: int | None = None,
    checkpoint: int | None = None,
    overrides: Iterable[str] = (),
    accept_changed_base: bool = False,
    on_event: OnEvent = ignore,
) -> Evaluation:
    """Return the report of an evaluation. It is also written to the run's `evals/`.

    Args:
        reference: a run, checkpoint, adapter or model, see `ossia.generate.subject.open_subject`.
        data: held-out files; by default the recipe's `eval.data`.
        vs_base: ask the base model the same questions. A model without an adapter has no base.
        limit: most questions; a random part of the data. By default the recipe's `eval.limit`.
        checkpoint: step of a run's checkpoint; by default its best one.
        overrides: `section.key=value`, on top of the recipe.
        accept_changed_base: go on although the base is not the one that the adapter was trained on; it is recorded.
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
    warnings = subject.check(accept_changed_base=accept_changed_base, on_event=on_event)
    for message in warnings:
        on_event(Note(level="warning", message=message))
    loaded = load_conversations(files, subject.recipe.data)
    if loaded.errors:
        message = f"{len(loaded.errors)} rows cannot be used (ossia data check {files[0]} lists them)"
        on_event(Note(level="warning", message=message))
    if leak := _leak(subject, files, on_event):
        warnings.append(leak)
        on_event(Note(level="warning", message=leak))
    arms = 2 if subject.adapter is not None and vs_base else 1
    count = min(subject.recipe.eval.limit or len(loaded.conversations), len(loaded.conversations))
    both = ", each also for the base" if arms == 2 else ""
    on_event(Note(level="info", message=f"{subject.name}: {count} questions{both}"))
    with counting(on_event, "answers", count * arms) as advance:
        return runner.run_evaluation(
            subject, loaded.conversations, vs_base=vs_base, data=files, warnings=warnings, on_progress=advance
        )


def _leak(subject: Subject, files: Sequence[str], on_event: OnEvent) -> str:
    """Return in a sentence how many held-out conversations the run was trained on; empty if none, or without a run."""
    if subject.run is None:
        return ""
    from ossia.data.compile import compile_sources, usable_cores
    from ossia.data.corpus import leak_summary, leaks
    from ossia.data.prepare import hold_back

    recipe, vocabulary = subject.run.recipe(), subject.vocabulary()
    section = recipe.data

    def compiled(named: Sources) -> Sequence[Rendered]:
        return compile_sources(
            named, vocabulary, section, workers=usable_cores(), cache=section.cache, seed=recipe.train.seed
        ).conversations

    with counting(on_event, "comparing with the training data"):
        try:
            trained = compiled(section.train)
        except OssiaError as error:
            return f"the questions were not compared with the training data: {error.what}"
        if not section.validation:
            trained, _ = hold_back(trained, section.validation_share, recipe.train.seed)
        held_out = compiled(files)
        return leak_summary(leaks(trained, held_out), len(held_out), "held-out")
