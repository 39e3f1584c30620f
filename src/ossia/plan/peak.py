"""Measurement of the memory that this process takes while a block of code runs, for comparison with an estimate.

Linux reports two kinds of resident pages (proc(5), /proc/PID/status). Anonymous pages belong to the program and have to
stay. Pages of mapped files may be dropped and read again. A thread reads the figures every `EVERY_SECONDS`. On a GPU,
torch's allocator keeps the peak.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

EVERY_SECONDS = 0.02
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Memory:
    """Peaks in bytes, each at its own time. None: the system does not report the figure, or no GPU is watched."""

    resident: int
    """Main memory of the process, pages of mapped files included."""
    anonymous: int | None = None
    """Pages without a file, shared memory included."""
    file_backed: int | None = None
    """Pages of mapped files."""
    cuda_allocated: int | None = None
    """Bytes of tensors on the GPU."""
    cuda_reserved: int | None = None
    """Bytes that torch's allocator reserved for them."""


class Peak:
    """A context manager that measures the peak memory of this process while its block runs.

        with Peak("cpu") as peak:
            ...
        peak.memory.anonymous

    The GPU's figures are set when the block ends.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.memory = now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ossia memory", daemon=True)

    def __enter__(self) -> Peak:
        if self.device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
        self.memory = now()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
        if self.device == "cuda":
            import torch

            allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
            self.memory = Memory(self.memory.resident, self.memory.anonymous, self.memory.file_backed,
                                 allocated, reserved)  # fmt: skip

    def _watch(self) -> None:
        while not self._stop.wait(EVERY_SECONDS):
            self._look()

    def _look(self) -> None:
        seen, so_far = now(), self.memory
        self.memory = Memory(
            max(seen.resident, so_far.resident),
            _larger(seen.anonymous, so_far.anonymous),
            _larger(seen.file_backed, so_far.file_backed),
        )


def now() -> Memory:
    """Return the memory that this process takes now, without the GPU. Systems without /proc report `resident` only."""
    try:
        lines = STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        import psutil

        return Memory(int(psutil.Process().memory_info().rss))
    kilobytes = {key: int(rest.split()[0]) for key, _, rest in (line.partition(":") for line in lines) if "Rss" in key}
    # Memory shared with other processes (RssShmem) has no file behind it either.
    anonymous = (kilobytes["RssAnon"] + kilobytes["RssShmem"]) * 1024
    file_backed = kilobytes["RssFile"] * 1024
    return Memory(anonymous + file_backed, anonymous, file_backed)


def _larger(left: int | None, right: int | None) -> int | None:
    return None if left is None or right is None else max(left, right)
