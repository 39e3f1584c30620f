"""What several processes of one training job have to agree on before the Trainer brings them together."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def is_main() -> bool:
    """Whether this is the process that prints and writes. Launchers (accelerate, torchrun) number them in $RANK."""
    return int(os.environ.get("RANK", "0")) == 0


def world_size() -> int:
    """How many processes the job has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def agreed(make: Callable[[], _T], *, cpu: bool) -> _T:
    """Return what `make` gives in the main process, in all processes of the job. Each takes its own device here.

    Args:
        cpu: the job computes on CPUs, so the processes talk over gloo.
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
    """End this process of a job when all have come this far; with a single process, do nothing.

    The process ends without taking its objects apart: gloo's threads can abort one that has done its work when the
    objects that hold them go away at the interpreter's exit.
    """
    if world_size() > 1:
        from torch import distributed

        if distributed.is_initialized():
            distributed.barrier()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
