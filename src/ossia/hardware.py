"""The hardware of this machine, and the device and dtype to use on it.

Every result includes its reason, which is printed where the result is used. Importing this module does not import
torch. Only functions that look for CUDA devices do, and only if there is a driver.
"""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from ossia import files
from ossia.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Answer(Generic[T]):
    """A value with the reason for it in words."""

    value: T
    reason: str


@dataclass(frozen=True)
class Gpu:
    """A CUDA device."""

    name: str
    memory: int
    """Total memory in bytes."""
    capability: tuple[int, int]
    """Compute capability: major and minor version."""


def cpu() -> Answer[str]:
    """Return the name of the processor. The reason has the number of cores that this process may use."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return Answer(name, f"{cores().value} cores ({cores().reason})")


def cores() -> Answer[int]:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return Answer(len(os.sched_getaffinity(0)), "processor affinity of this process")
    return Answer(os.cpu_count() or 1, "os.cpu_count")


def memory() -> Answer[int]:
    """Return the bytes of main memory that are available now, within the container's limit."""
    import psutil

    available = int(psutil.virtual_memory().available)
    left = _cgroup_left()
    if left is not None and left < available:
        return Answer(left, "left under the container's memory limit")
    return Answer(available, "available main memory")


def total_memory() -> int:
    """Return the bytes of main memory installed, without regard to a container's limit."""
    import psutil

    return int(psutil.virtual_memory().total)


def disk(folder: Path) -> Answer[int]:
    """Return the free bytes on the disk where `folder` is or will be."""
    return Answer(files.free_bytes(folder), f"free at {files.nearest_existing(folder)}")


def gpus() -> Answer[list[Gpu]]:
    """Return the CUDA devices that torch can use."""
    if not (Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") or platform.system() == "Windows"):
        return Answer([], "no NVIDIA driver on this machine")
    import torch

    if not torch.cuda.is_available():
        return Answer([], "there is an NVIDIA driver, but this torch cannot use it")
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(Gpu(properties.name, properties.total_memory, (properties.major, properties.minor)))
    return Answer(found, "torch.cuda")


def device(wanted: str = "auto") -> Answer[str]:
    """Return the device to use, cpu or cuda.

    Args:
        wanted: the recipe's model.device: auto, cpu or cuda.

    Raises:
        UserError: the recipe requires a GPU and torch can use none.
    """
    if wanted == "cpu":
        return Answer("cpu", "set in the recipe")
    found = gpus()
    if wanted == "cuda" and not found.value:
        raise UserError("there is no GPU to use", where="model.device", why=found.reason, do="--set model.device=cpu")
    if wanted == "cuda":
        return Answer("cuda", f"set in the recipe; {found.value[0].name}")
    return Answer("cuda", found.value[0].name) if found.value else Answer("cpu", found.reason)


def dtype(wanted: str = "auto", on: str = "cpu") -> Answer[str]:
    """Return the dtype of the computation and of weights that are not four-bit, bfloat16 or float32.

    Args:
        wanted: the recipe's model.dtype: auto, bfloat16 or float32.
        on: the device, cpu or cuda.
    """
    if wanted != "auto":
        return Answer(wanted, "set in the recipe")
    if on == "cuda":
        found = gpus().value
        if found and found[0].capability >= (8, 0):
            return Answer("bfloat16", f"compute capability {found[0].capability[0]}.{found[0].capability[1]}")
        return Answer("float32", "the GPU has no bfloat16 arithmetic")
    flags = cpu_flags()
    fast = sorted(flags & {"avx512_bf16", "amx_bf16"})
    if fast:
        return Answer("bfloat16", f"the processor has {fast[0]}")
    if platform.machine().lower() in {"arm64", "aarch64"} and (platform.system() == "Darwin" or "bf16" in flags):
        return Answer("bfloat16", "Arm processor with bf16")
    return Answer("float32", "the processor has no bfloat16 arithmetic")


def cpu_flags() -> set[str]:
    """Return the processor's instruction set extensions by their names in Linux; an empty set on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    line = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return set(line.partition(":")[2].split())


_CGROUPS = (
    # Version 2, then version 1: folder, file of the limit, file of the usage, name of the file cache in memory.stat.
    ("/sys/fs/cgroup", "memory.max", "memory.current", "file"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "cache"),
)


def _cgroup_left() -> int | None:
    """Return the bytes that the control group may still use, or None without a limit.

    File cache counts as free, because the system releases it on demand.
    """
    for folder, limit_file, usage_file, cache_name in _CGROUPS:
        try:
            limit = Path(folder, limit_file).read_text().strip()
            if not limit.isdigit() or int(limit) >= 1 << 60:
                continue
            usage = int(Path(folder, usage_file).read_text())
            statistics = dict(line.split() for line in Path(folder, "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        return max(0, int(limit) - usage + int(statistics.get(cache_name, 0)))
    return None
