"""Helpers for jobs of several processes: rank, count, a value from the main process, and the end of a process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def is_main() -> bool:
    """Return whether this is the main process of the job, which prints and writes.

    Launchers (accelerate, torchrun) set its number in $RANK.
    """
    return int(os.environ.get("RANK", "0")) == 0


def world_size() -> int:
    """Return the number of processes of the job."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def agreed(make: Callable[[], _T], *, cpu: bool) -> _T:
    """Return, in all processes of the job, the result of `make` in the main process. It must not be None.

    In a job of several processes this also selects the device of each process.

    Args:
        cpu: whether the job computes on CPUs, so that the processes communicate over gloo.
    """
    if world_size() == 1:
        return make()
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=cpu)
    values: list[_T | None] = [make() if is_main() else None]
    broadcast_object_list(values)
    made = values[0]
    assert made is not None
    return made


def leave(code: int = 0) -> None:
    """Wait for all processes of the job and end this one. With a single process, do nothing.

    The process ends without destroying its objects. Otherwise gloo's threads can abort a finished process when the
    interpreter destroys the objects that hold them.
    """
    if world_size() > 1:
        from torch import distributed

        if distributed.is_initialized():
            distributed.barrier()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
