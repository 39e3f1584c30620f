"""Checkpoint folders of a run: `checkpoints/step-000200/`.

A checkpoint is written under another name and renamed when it is complete. So a killed process never leaves an
incomplete folder with the name of a checkpoint. The newest checkpoints and the best one are kept.
`checkpoints/best.json` names the best one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import TrainerState

from ossia.adapters import identity
from ossia.errors import OssiaError, UserError
from ossia.files import atomic_folder, write_json
from ossia.runs import BEST, Run

_REMEDY = "delete that checkpoint to resume from the one before it, or start a new run with lora.start_from"
PARTIAL = ".partial"
"""Suffix of a checkpoint folder that is being written."""


@contextmanager
def new_checkpoint(run: Run, step: int) -> Iterator[Path]:
    """Yield a folder to write the step's checkpoint into. It becomes the checkpoint if the block ends without an error.

    Raises:
        OssiaError: the disk is full or not writable. Older checkpoints stay complete.
    """
    final, partial = run.checkpoint(step), partial_folder(run, step)
    try:
        _remove_partial(run)
        # The checkpoint may exist, because a resumed run repeats steps.
        with atomic_folder(final, partial=partial):
            yield partial
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk gives any of them
        why = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise OssiaError(
            f"the checkpoint of step {step} could not be written ({why})",
            where=str(final),
            why="older checkpoints are complete",
            do=f"free disk space, then: ossia train --resume {run.id}",
        ) from error


def partial_folder(run: Run, step: int) -> Path:
    """Return the folder of a step's checkpoint while it is being written."""
    final = run.checkpoint(step)
    return final.with_name(final.name + PARTIAL)


@contextmanager
def readable(folder: str | None, what: str) -> Iterator[None]:
    """Turn whatever torch says of a state that it cannot read into a sentence.

    Its own texts explain how to switch its protection against foreign pickles off, which nobody should be told.

    Raises:
        UserError: the state is not one that training wrote.
    """
    try:
        yield
    except (OssiaError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # pickle, zipfile, torch and numpy each have exceptions of their own
        raise UserError(
            f"{what} cannot be read ({type(error).__name__})",
            where=folder,
            why="the file is damaged, or training did not write it",
            do=_REMEDY,
        ) from None


def check_state(folder: Path, step: int) -> None:
    """See that trainer_state.json is the state of a training after this step.

    Raises:
        UserError: it is not.
    """
    file = folder / "trainer_state.json"
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        found = state["global_step"]
        TrainerState.load_from_json(str(file))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"the state of the training cannot be read ({type(error).__name__}: {error})",
            where=str(file),
            do=_REMEDY,
        ) from None
    if found != step:
        raise UserError(f"the state is that of step {found}, not {step}", where=str(file), do="use another checkpoint")


def remember_best(run: Run, step: int, loss: float) -> None:
    """Record the checkpoint with the lowest validation loss in `checkpoints/best.json`."""
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
