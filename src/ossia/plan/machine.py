"""What this machine offers to a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ossia import files, hardware, runs
from ossia.config import ModelSection


@dataclass(frozen=True)
class Disk:
    """Free bytes at a folder; `volume` tells whether two folders share them."""

    folder: str
    free: int
    volume: int

    @staticmethod
    def of(folder: Path) -> Disk:
        return Disk(str(folder), files.free_bytes(folder), files.nearest_existing(folder).stat().st_dev)


@dataclass(frozen=True)
class Machine:
    """Where to compute, in which type, with how many bytes of memory and disk; every choice with its reason."""

    device: str
    device_reason: str
    dtype: str
    dtype_reason: str
    memory: int
    memory_reason: str
    runs: Disk
    models: Disk

    @staticmethod
    def here(wanted: ModelSection) -> Machine:
        """Ask this machine, as the recipe's model section wishes. Loads torch only where an NVIDIA driver is."""
        device = hardware.device(wanted.device)
        dtype = hardware.dtype(wanted.dtype, device.value)
        if device.value == "cuda":
            found = hardware.gpus().value
            memory = hardware.Answer(found[0].memory, f"memory of the {found[0].name}")
        else:
            memory = hardware.memory()
        return Machine(
            device.value,
            device.reason,
            dtype.value,
            dtype.reason,
            memory.value,
            memory.reason,
            Disk.of(runs.root()),
            Disk.of(files.cache_folder()),
        )
