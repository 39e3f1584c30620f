"""The workflow that fine-tunes: a new run of a recipe, or the continuation of a run."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ossia import events, hardware, recipes, runs
from ossia.config import Recipe
from ossia.errors import UserError
from ossia.events import Event, Note, OnEvent, counting, ignore
from ossia.train.distributed import agreed, is_main, leave

if TYPE_CHECKING:
    from ossia.data.prepare import PreparedData
    from ossia.sequences.sharing import Saving

__all__ = ["TrainResult", "TrainingPrepared", "leave", "train"]


@dataclass(frozen=True, kw_only=True)
class TrainingPrepared(Event):
    """The data are compiled, the run folder is there, and the model is loaded next.

    The event is not written to the run's events.jsonl.
    """

    kind: ClassVar[str] = "training-prepared"
    run: str
    """Id of the run."""
    recipe: Recipe
    examples: int
    tokens: int
    """Sum of the lengths of the training examples."""
    trained_tokens: int
    """Number of supervised tokens among them."""
    validation_examples: int
    saving: Saving | None
    """The saving by shared prefixes in an epoch. None: sharing is not wanted or not exact."""


@dataclass(frozen=True)
class TrainResult:
    """The result of a training."""

    run: runs.Run
    last: events.Finished
    """The last event, with the reason of the end."""
    is_interrupted: bool
    """Whether Ctrl-C stopped it. `train(resume=...)` continues the run."""
    is_main: bool
    """Whether this is the main process of the job, which reports. False in all other processes."""

    @property
    def summary(self) -> runs.Summary:
        """The summary of the run: status, step and losses."""
        return self.run.summary()


def train(
    recipe: str | Path | Recipe | None = None,
    *,
    resume: str | Path | None = None,
    overrides: Iterable[str] = (),
    command: str = "",
    accept_changed_base: bool = False,
    on_event: OnEvent = ignore,
) -> TrainResult:
    """Train a new run of a recipe, or continue a run at its newest checkpoint, and return the result.

    If a launcher has started a job of several processes, each of them calls this function. They share one run, and the
    main process reports.

    Args:
        recipe: a file, the name of a recipe that comes with Ossia, or a recipe itself.
        resume: the run to continue in place of a recipe: its folder, id, a part of it, or `last`.
        overrides: `section.key=value`, on top of the recipe. A resumed run takes none.
        command: what started this, for the record.
        accept_changed_base: go on although the base is not the one that the adapter was trained on; it is recorded.
        on_event: called with progress and notes, once with `TrainingPrepared`, and with every event of the run.

    Raises:
        UserError: the recipe, its data or its model cannot be read or used, as in `ossia.train.supervised.train`. Also
            if neither or both of `recipe` and `resume` are given.
        OssiaError: the loss or a gradient is not finite, or a checkpoint could not be written.
        DoesNotFitError: the GPU ran out of memory.
    """
    found, settings = _settled(recipe, resume, list(overrides))
    prepared = _prepared(settings, on_event)
    saving = _saving(settings, prepared)
    from ossia.train.callbacks import INTERRUPTED
    from ossia.train.supervised import train as run_training

    on_cpu = hardware.device(settings.model.device).value == "cpu"
    run = agreed(lambda: found or runs.create(settings, command), cpu=on_cpu)
    watch = on_event if is_main() else ignore
    try:
        for line in prepared.remarks():
            watch(Note(level="info", message=line))
        watch(_announcement(run.id, settings, prepared, saving))
        last = run_training(
            settings, run, prepared.train, prepared.validation, command=command, watch=watch, saving=saving,
            accept_changed_base=accept_changed_base,
        )  # fmt: skip
    except BaseException:
        if found is None and is_main() and not (run.path / events.FILE).exists():
            shutil.rmtree(run.path, ignore_errors=True)  # training has not begun
        raise
    return TrainResult(run, last, last.reason == INTERRUPTED, is_main())


def _settled(
    recipe: str | Path | Recipe | None, resume: str | Path | None, overrides: list[str]
) -> tuple[runs.Run | None, Recipe]:
    """Return the run to continue, if there is one, and the recipe."""
    if resume is None:
        if recipe is None:
            raise UserError("name a recipe, or a run with --resume", do="ossia train tiny-demo")
        return None, recipes.load_recipe(recipe, overrides)
    if recipe is not None:
        raise UserError("name a recipe, or a run with --resume", do="ossia train tiny-demo")
    if overrides:
        raise UserError(
            "a resumed run keeps its settings",
            why="the loss would not continue where it stopped",
            do="a new run: ossia train <recipe> --set ...",
        )
    run = runs.find_run(str(resume))
    return run, run.recipe()


def _prepared(recipe: Recipe, on_event: OnEvent) -> PreparedData:
    """Return the recipe's conversations, compiled on all cores."""
    from ossia.checkpoint.locate import vocabulary as vocabulary_of
    from ossia.data.compile import usable_cores
    from ossia.data.prepare import prepare

    vocabulary = vocabulary_of(recipe.model.path)
    with counting(on_event, "compiling conversations", unit="MB") as advance:
        return prepare(
            recipe.data, vocabulary, recipe.train.seed,
            workers=usable_cores(), progress=lambda count: advance(count / 1e6),
        )  # fmt: skip


def _saving(recipe: Recipe, prepared: PreparedData) -> Saving | None:
    """Return the saving by shared prefixes, or None if sharing is not wanted or not exact.

    Training makes its decision with the same figure.
    """
    from ossia.plan.work import recipe_obstacles
    from ossia.sequences.sharing import Obstacles, epoch_saving

    # The adapter of `start_from` is read later, and its errors are reported then.
    obstacles = Obstacles() if recipe.lora.start_from else recipe_obstacles(recipe)
    return epoch_saving(recipe.train, obstacles, prepared.train)


def _announcement(run: str, recipe: Recipe, prepared: PreparedData, saving: Saving | None) -> TrainingPrepared:
    return TrainingPrepared(
        run=run,
        recipe=recipe,
        examples=len(prepared.train),
        tokens=sum(map(len, prepared.train)),
        trained_tokens=sum(example.trained_tokens for example in prepared.train),
        validation_examples=len(prepared.validation),
        saving=saving,
    )
