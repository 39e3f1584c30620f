"""Checkpoint folders of a run: `checkpoints/step-000200/`.

A checkpoint is written under another name and renamed when it is complete, so a killed process never leaves one that
looks usable. The newest few stay, and the best one, which `checkpoints/best.json` names.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ossia.adapters import identity
from ossia.errors import OssiaError
from ossia.files import atomic_folder, write_json
from ossia.runs import BEST, Run

PARTIAL = ".partial"


@contextmanager
def new_checkpoint(run: Run, step: int) -> Iterator[Path]:
    """Yield a folder to write the step's checkpoint into; it becomes the checkpoint when the block ends well.

    Raises:
        OssiaError: the disk is full or not writable; older checkpoints are untouched.
    """
    final, partial = run.checkpoint(step), partial_folder(run, step)
    try:
        _remove_partial(run)
        # A resumed run repeats a step that it had already saved.
        with atomic_folder(final, partial=partial):
            yield partial
    except (
        OSError,
        RuntimeError,
        SafetensorError,
    ) as error:  # on a full disk torch.save and safetensors raise their own
        why = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise OssiaError(
            f"the checkpoint of step {step} could not be written ({why})",
            where=str(final),
            why="older checkpoints are complete",
            do=f"free disk space, then: ossia train --resume {run.id}",
        ) from error


def partial_folder(run: Run, step: int) -> Path:
    """Where a step's checkpoint is while it is being written."""
    final = run.checkpoint(step)
    return final.with_name(final.name + PARTIAL)


def remember_best(run: Run, step: int, loss: float) -> None:
    """Name the checkpoint with the lowest validation loss."""
    write_json(run.checkpoints / BEST, {"step": step, "validation_loss": loss})


def prune(run: Run, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, the best one, and those that somebody put a file into."""
    best = run.best_checkpoint()
    for step in run.steps()[:-keep]:
        folder = run.checkpoint(step)
        if folder != best and not identity.foreign_files(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _remove_partial(run: Run) -> None:
    for leftover in run.checkpoints.glob(f"*{PARTIAL}"):
        shutil.rmtree(leftover, ignore_errors=True)
