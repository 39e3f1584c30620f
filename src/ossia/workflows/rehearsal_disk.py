"""The folders of a rehearsal: the random model, which stays, and the run, which is removed."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ossia import files, recipes, runs
from ossia.checkpoint.layout import Shape, bytes_of
from ossia.checkpoint.reader import INDEX, SINGLE, CheckpointReader, with_weights
from ossia.config import Recipe
from ossia.errors import UserError
from ossia.events import OnEvent, ignore, transferring
from ossia.plan import Plan
from ossia.plan.inputs import Disk


def scratch_folder() -> Path:
    """Return the folder of the checkpoints and runs of rehearsals."""
    return files.cache_folder() / "rehearsal"


def is_here(folder: Path, shape: Shape) -> bool:
    """Return whether the folder contains a complete checkpoint of this shape, with random or published weights.

    Raises:
        UserError: the folder contains another model or other files, so the model cannot be written to it. Also if it
            is not a folder.
    """
    place = with_weights(folder)
    if place is not None:
        reader = CheckpointReader(place)
        if reader.shape() != shape:
            raise UserError("the folder holds another model", where=str(folder), do="choose another --folder")
        reader.check(shape)
        return True
    names, patterns = (".partial", INDEX, SINGLE), ("model-*.safetensors", files.TEMPORARY)
    others = [file.name for file in _listed(folder) if file.name not in names and not any(map(file.match, patterns))]
    if others:
        raise UserError(
            f"the folder holds other files ({others[0]})", where=str(folder), do="name a new or an empty --folder"
        )
    return False


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        raise UserError("this is not a folder", where=str(folder), do="name a new or an empty --folder") from None


def missing_bytes(folder: Path, shape: Shape) -> int:
    """Return the bytes that are still to be written of a checkpoint, which may be partly written."""
    begun = [*folder.glob("model*.safetensors"), *folder.glob(".partial/model*.safetensors")]
    return max(0, bytes_of(shape) - sum(file.stat().st_size for file in begun))


def adapter_bytes(plan: Plan) -> int:
    """Return the bytes of the checkpoint that training writes at its end: the adapter and AdamW's moments."""
    return plan.disk_needed // (plan.recipe.train.keep_checkpoints + 2)


def require_disk(folder: Path, missing: int, adapter: int) -> None:
    """Check that the disks have room for the model, and for a checkpoint of the adapter until it is removed.

    Args:
        folder: the folder of the model.
        missing: bytes of the model that are still to be written.
        adapter: bytes of the checkpoint.

    Raises:
        DoesNotFitError: a disk is too small.
    """
    if Disk.of(folder).volume == Disk.of(scratch_folder()).volume:
        files.check_disk(folder, missing + adapter, "the model with a checkpoint of its adapter")
        return
    files.check_disk(folder, missing, "the model")
    files.check_disk(scratch_folder(), adapter, "the checkpoint of the adapter")


def write_random_model(name: str, folder: Path, shape: Shape, on_event: OnEvent = ignore) -> None:
    """Write a checkpoint of random weights, or continue one that is partly written.

    Raises:
        DoesNotFitError: the disk is too small.
    """
    from ossia.checkpoint.synthetic import write_synthetic
    from ossia.harmony.tokenizer.vocabulary import offline_tokenizer_folder

    tokenizer: Path | None = None
    try:
        offline_tokenizer_folder()
    except UserError:
        tokenizer = scratch_folder()  # a folder without a tokenizer: none is copied, and random tokens need none
    with transferring(on_event, f"writing {name}") as report:
        write_synthetic(folder, shape, progress=report, tokenizer_folder=tokenizer)


@contextlib.contextmanager
def scratch_run(recipe: Recipe) -> Iterator[runs.Run]:
    """Yield a run folder that is removed when the rehearsal ends."""
    home = scratch_folder()
    home.mkdir(parents=True, exist_ok=True)
    _remove_dead(home)
    run = runs.Run(home / f"run-{os.getpid()}")
    shutil.rmtree(run.path, ignore_errors=True)  # left by a killed process with the same id
    run.path.mkdir()
    try:
        files.write_atomically(run.path / "recipe.yaml", recipes.dump(recipe))
        yield run
    finally:
        shutil.rmtree(run.path, ignore_errors=True)


def _remove_dead(home: Path) -> None:
    """Remove the runs of rehearsals that were killed."""
    for path in home.glob("run-*"):
        number = path.name.removeprefix("run-")
        if number.isdecimal() and not files.is_alive(int(number)):
            shutil.rmtree(path, ignore_errors=True)
