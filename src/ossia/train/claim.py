"""The claim on a run: one process at a time trains in it, on the data and the base that the run began with."""

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
"""Of a run: name -> hash of what must not change while it goes on."""


@contextmanager
def claimed(run: Run) -> Iterator[None]:
    """Hold the run's lock inside the block. The system lets go of it if the process is killed.

    Raises:
        UserError: another process holds it.
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
    """Compare a hash with the one that the run's first process wrote down, or write it down.

    Args:
        what: the error's first words if the two differ.

    Raises:
        UserError: the hashes differ.
        OssiaError: the run has checkpoints, but nobody wrote the hash down.
    """
    path = run.path / RECORD
    record = json.loads(path.read_text()) if path.is_file() else {}
    if record.get(name, now) != now:
        raise UserError(
            what,
            where=str(path),
            why="the loss would not continue where it stopped",
            do="restore what has changed, or start a new run",
        )
    if name not in record and is_main():
        if run.steps():
            raise OssiaError(f"the run has checkpoints but no record of its {name}", where=str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**record, name: now})
