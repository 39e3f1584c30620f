"""The claim on a run: only one job trains in it at a time, always on the same data and base model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from ossia.errors import OssiaError, UserError
from ossia.files import write_json
from ossia.runs import Run
from ossia.train.distributed import is_main

RECORD = "data/sha256.json"
"""File of a run: name -> hash of something that must not change when the run is resumed."""


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


def check_record(run: Run, name: str, now: str, what: str) -> None:
    """Compare a hash with the one in the run's record. If there is none, record it.

    Args:
        name: key in the record, such as "examples" or "base".
        now: the hash.
        what: the first words of the error if the hashes differ.

    Raises:
        UserError: the hashes differ.
        OssiaError: the run has checkpoints, but no hash of this name in its record.
    """
    path = run.path / RECORD
    record = json.loads(path.read_text()) if path.is_file() else {}
    if record.get(name, now) != now:
        raise UserError(
            what,
            where=str(path),
            why="the loss would not continue where it stopped",
            do="restore the original, or start a new run",
        )
    if name not in record and is_main():
        if run.steps():
            raise OssiaError(f"the run has checkpoints but no record of its {name}", where=str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**record, name: now})
