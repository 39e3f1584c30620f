"""The claim on a run: only one job trains in it at a time, always on the same data and base model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ossia import hardware
from ossia.adapters.identity import IDENTITY_FILE, Base
from ossia.adapters.trust import (
    Record,
    accept,
    base_of,
    check_recipe,
    check_record,
    check_unchanged,
    new_record,
    read_record,
)
from ossia.config import Recipe
from ossia.errors import UserError
from ossia.events import OnEvent
from ossia.runs import Run
from ossia.train.distributed import is_main


@contextmanager
def claimed(run: Run) -> Iterator[None]:
    """Hold the run's lock inside the block, in the main process of the job.

    The system releases the lock if the process is killed.

    Raises:
        UserError: another process holds the lock.
    """
    if not is_main():
        yield
        return
    lock = FileLock(run.path / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError("another process is training in this run", where=str(run.path)) from None
    try:
        yield
    finally:
        lock.release()


def begun(run: Run, examples: str) -> Record | None:
    """Return what a run began with, after a look at its recipe and its data; None if it begins now.

    Args:
        examples: digest of the examples that the recipe's data give now.

    Raises:
        UserError: recipe or data are not those that the run began with, or nobody wrote down what these were.
    """
    record = read_record(run)
    if record is None:
        if steps := run.steps():
            raise UserError(
                f"the run has checkpoints but no {IDENTITY_FILE}, so nobody knows what it began with",
                where=str(run.path),
                do=f"a new run that continues from the adapter: --set lora.start_from={run.checkpoint(steps[-1])}",
            )
        return None
    check_recipe(run, record)
    if record.examples != examples:
        raise UserError(
            "the training data are not those that this run began with",
            where=str(run.path / IDENTITY_FILE),
            why="the loss would not continue where it stopped",
            do="restore the original, or start a new run",
        )
    return record


def trusted(
    recipe: Recipe, run: Run, record: Record | None, examples: str, newest: int, watch: OnEvent,
    accept_changed_base: bool,
) -> tuple[Base, list[str]]:  # fmt: skip
    """Return the base model, after a check of what the run is continued with, and what was accepted, in words.

    A run that begins gets its record here.

    Args:
        record, examples: what `begun` returned, and what it was given.
        newest: the step of the checkpoint to continue from, 0 for none.

    Raises:
        UserError: base, tokenizer, checkpoint or the adapter of `lora.start_from` are not what they should be.
    """
    base = base_of(recipe.model.path, watch)
    accepted: list[str] = []
    if newest:
        accepted = check_unchanged(run.checkpoint(newest), base, run, accept_changed_base=accept_changed_base)
    elif record is not None:
        accepted = check_record(record, base, accept_changed_base=accept_changed_base)
    if not newest and recipe.lora.start_from:
        accepted += check_unchanged(Path(recipe.lora.start_from), base, accept_changed_base=accept_changed_base)
    if record is None and is_main():
        dtype = hardware.dtype(recipe.model.dtype, hardware.device(recipe.model.device).value).value
        record = new_record(run, base, examples=examples, dtype=dtype)
    if record is not None and accepted and is_main():
        accept(run, record, accepted)
    return base, accepted
