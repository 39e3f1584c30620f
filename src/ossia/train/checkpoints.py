"""Checkpoint folders of a run: `checkpoints/step-000200/`.

A checkpoint is written under another name and renamed when it is complete. So a killed process never leaves an
incomplete folder with the name of a checkpoint. The newest checkpoints and the best one are kept.
`checkpoints/best.json` names the best one.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ossia.adapters.config import CONFIG_FILE, WEIGHTS_FILE
from ossia.errors import OssiaError, UserError
from ossia.files import atomic_folder, write_json
from ossia.runs import BEST, Run

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
    except (
        OSError,
        RuntimeError,
        SafetensorError,
    ) as error:  # torch.save and safetensors raise the last two on a full disk
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


def check_complete(folder: Path) -> None:
    """Check that all parts that resuming needs are present and undamaged.

    Raises:
        UserError: a part is missing or damaged. The message names the part and the remedy.
    """
    parts = {
        WEIGHTS_FILE: _is_file,
        CONFIG_FILE: _is_json,
        "trainer_state.json": _is_json,
        "optimizer.pt": zipfile.is_zipfile,  # torch.save writes zip archives
        "scheduler.pt": zipfile.is_zipfile,
    }
    states = sorted(folder.glob("rng_state*.pth"))
    found = [name for name, is_whole in parts.items() if not is_whole(folder / name)]
    found += [path.name for path in states if not zipfile.is_zipfile(path)] if states else ["rng_state.pth"]
    if found:
        raise UserError(
            f"{found[0]} is missing or damaged",
            where=str(folder),
            why="without it the run would not continue where it stopped",
            do=f"delete {folder.name} to resume from the checkpoint before it, or start a new run with lora.start_from",
        )


def _is_file(path: Path) -> bool:
    return path.is_file()


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def remember_best(run: Run, step: int, loss: float) -> None:
    """Record the checkpoint with the lowest validation loss in `checkpoints/best.json`."""
    write_json(run.checkpoints / BEST, {"step": step, "validation_loss": loss})


def prune(run: Run, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and the best one."""
    best = run.best_checkpoint()
    for step in run.steps()[:-keep]:
        if run.checkpoint(step) != best:
            shutil.rmtree(run.checkpoint(step), ignore_errors=True)


def _remove_partial(run: Run) -> None:
    for leftover in run.checkpoints.glob(f"*{PARTIAL}"):
        shutil.rmtree(leftover, ignore_errors=True)
