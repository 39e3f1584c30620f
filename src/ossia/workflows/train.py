"""Fine-tune: a recipe becomes a run, or a run continues."""

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
    """The data are compiled and the run is there; the model is loaded next. It is not written to the run's events."""

    kind: ClassVar[str] = "training-prepared"
    run: str
    """Id of the run."""
    recipe: Recipe
    examples: int
    tokens: int
    """Tokens of the training examples, each example counted by itself."""
    trained_tokens: int
    """Those of them that are supervised."""
    validation_examples: int
    saving: Saving | None
    """What sharing prefixes saves; None where it may not be done."""


@dataclass(frozen=True)
class TrainResult:
    """How a training ended."""

    run: runs.Run
    last: events.Finished
    """The last event: done, or stopped."""
    is_interrupted: bool
    """Ctrl-C stopped it; `train(resume=...)` continues."""
    is_main: bool
    """Whether this is the process of the job that reports. False in all others."""

    @property
    def summary(self) -> runs.Summary:
        """Return the run in one line: status, step, losses."""
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
    """Return the run that was trained, or continued exactly where its newest checkpoint was made.

    Each process of a job that a launcher started calls this; they share one run, and the main process reports.

    Args:
        recipe: a file, the name of a recipe that comes with Ossia, or a recipe itself.
        resume: the run to continue in place of a recipe: its folder, id, a part of it, or `last`.
        overrides: `section.key=value`, on top of the recipe. A resumed run takes none.
        command: what started this, for the record.
        accept_changed_base: go on although the base is not the one that the adapter was trained on; it is recorded.
        on_event: called with progress and notes, once with `TrainingPrepared`, and with every event of the run.

    Raises:
        UserError: the recipe, its data or its model cannot be read or used; see `ossia.train.supervised.train`.
        OssiaError: loss or gradient are not finite, or a checkpoint could not be written.
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
            shutil.rmtree(run.path, ignore_errors=True)  # it never began
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
    """Compile the recipe's conversations on all cores."""
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
    """Return what sharing prefixes saves, where it may be done; training decides with the same figure."""
    from ossia.plan.work import recipe_obstacles
    from ossia.sequences.sharing import Obstacles, epoch_saving

    # What an adapter that is continued has targets on is read, and complained of, later.
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
