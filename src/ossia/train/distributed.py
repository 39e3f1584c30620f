"""What several processes of one training job have to agree on before the Trainer brings them together."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def is_main() -> bool:
    """Whether this is the process that prints and writes. Launchers (accelerate, torchrun) number them in $RANK."""
    return int(os.environ.get("RANK", "0")) == 0


def agreed(make: Callable[[], T], *, cpu: bool) -> T:
    """Return what `make` gives in the main process, in all processes of the job. Each takes its own device here.

    Args:
        cpu: the job computes on CPUs, so the processes talk over gloo.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return make()
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=cpu)
    values: list[T | None] = [make() if is_main() else None]
    broadcast_object_list(values)
    made = values[0]
    assert made is not None
    return made


def leave() -> None:
    """End the job's connections. Without it, gloo's threads can abort a process that has done its work."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from torch import distributed

        if distributed.is_initialized():
            distributed.barrier()
            distributed.destroy_process_group()
