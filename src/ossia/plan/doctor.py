"""Checks of this machine, each with its finding and a remedy."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from ossia import files, hardware, recipes, runs
from ossia.errors import OssiaError
from ossia.plan.estimate import estimate
from ossia.plan.inputs import PUBLISHED_SHAPES, Examples, Machine, find_model

Status = Literal["ok", "warn", "fail"]

TESTED = {
    "torch": ("2.11", "2.13"),
    "transformers": ("5.17", "5.23"),
    "peft": ("0.21", "0.21"),
    "accelerate": ("1.10", "1.15"),
}
"""Library -> the oldest version that Ossia supports, and the newest version that its tests ran with."""
DISK_WANTED = 20_000_000_000
"""Free bytes below which a disk gets a warning: enough for gpt-oss-20b and a run's checkpoints."""


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    status: Status
    found: str
    """The finding in words."""
    do: str = ""
    """The remedy if the status is not ok."""


def examine() -> Iterator[Check]:
    """Yield the result of every check. A check that raises an exception is reported as failed, and the others run."""
    checks: tuple[Callable[[], Iterator[Check]], ...] = (
        _python, _libraries, _processor, _native, _memory, _gpus, _disks, _hub, _tokenizer, _encoder, _recipes,
    )  # fmt: skip
    for check in checks:
        try:
            yield from check()
        except OssiaError as error:
            yield Check(check.__name__.strip("_"), "fail", error.what, error.do or "")
        except Exception as error:
            yield Check(check.__name__.strip("_"), "fail", f"{type(error).__name__}: {error}")


def _python() -> Iterator[Check]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    status: Status = "ok" if sys.version_info >= (3, 11) else "fail"
    yield Check("python", status, found, "" if status == "ok" else "install Python 3.11 or newer")


def _libraries() -> Iterator[Check]:
    for name, (oldest, newest) in TESTED.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Check(name, "fail", "not installed", f"pip install '{name}>={oldest}'")
            continue
        extra = f"; {_torch_build()}" if name == "torch" else ""
        if _numbers(version) < _numbers(oldest):
            yield Check(name, "fail", f"{version} is too old{extra}", f"pip install '{name}>={oldest}'")
        elif _numbers(version) > _numbers(newest):
            do = f"if something breaks: pip install '{name}=={newest}.*'"
            yield Check(name, "warn", f"{version} is newer than the newest tested ({newest}){extra}", do)
        else:
            yield Check(name, "ok", version + extra)


def _numbers(version: str) -> tuple[int, ...]:
    """Return (major, minor)."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _torch_build() -> str:
    import torch

    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPU"
    return f"{build}, {torch.get_num_threads()} threads"


def _processor() -> Iterator[Check]:
    cpu, dtype = hardware.cpu(), hardware.dtype("auto", "cpu")
    yield Check("processor", "ok", f"{cpu.value}, {cpu.reason}")
    if dtype.value == "float32" and not hardware.gpus().value:
        slow = "without a GPU, training is about four times slower than with AVX512_BF16 or AMX"
        yield Check("number type", "warn", f"float32, because {dtype.reason}", slow)
    else:
        yield Check("number type", "ok", f"{dtype.value} on the CPU, because {dtype.reason}")


def _native() -> Iterator[Check]:
    from ossia.kernels.cpu.library import native

    library, reason, *_ = native()
    if library is not None:
        yield Check("native kernels", "ok", f"four-bit weights are unpacked with {reason}")
    else:
        do = "python -m ossia.kernels.cpu.build  (plain torch unpacks four-bit weights many times slower on a CPU)"
        yield Check("native kernels", "warn", reason, do)


def _memory() -> Iterator[Check]:
    free, total = hardware.memory(), hardware.total_memory()
    yield Check("memory", "ok", f"{free.value / 1e9:.1f} GB ({free.reason}) of {total / 1e9:.1f} GB")


def _gpus() -> Iterator[Check]:
    found = hardware.gpus()
    for gpu in found.value:
        old = gpu.capability < (8, 0)
        named = f"{gpu.name}, {gpu.memory / 1e9:.1f} GB, compute capability {gpu.capability[0]}.{gpu.capability[1]}"
        do = "it computes in float32, because it has no bfloat16" if old else ""
        yield Check("GPU", "warn" if old else "ok", named, do)
    if not found.value and "no NVIDIA driver" in found.reason:
        yield Check("GPU", "ok", f"none ({found.reason}); everything runs on the CPU")
    elif not found.value:
        yield Check("GPU", "warn", found.reason, "install a torch built for CUDA: https://pytorch.org/get-started")


def _disks() -> Iterator[Check]:
    for name, folder, variable in (("runs", runs.root(), "OSSIA_RUNS"), ("cache", files.cache_folder(), "OSSIA_CACHE")):
        free = hardware.disk(folder)
        found = f"{folder}: {free.value / 1e9:.1f} GB free"
        if not os.access(files.nearest_existing(folder), os.W_OK):
            yield Check(f"{name} folder", "fail", f"{folder} cannot be written", f"set {variable} to another folder")
        elif free.value < DISK_WANTED:
            yield Check(f"{name} folder", "warn", found, f"free some space, or set {variable} to another disk")
        else:
            yield Check(f"{name} folder", "ok", found)


def _hub() -> Iterator[Check]:
    from huggingface_hub import constants, get_token

    offline = constants.HF_HUB_OFFLINE
    token = "a token is set" if get_token() else "no token, and gpt-oss needs none"
    found = f"{'offline (HF_HUB_OFFLINE)' if offline else constants.ENDPOINT}; {token}"
    yield Check("hub", "ok", found)
    for name in PUBLISHED_SHAPES:
        folder = find_model(f"openai/{name}").folder
        if folder is not None:
            yield Check(name, "ok", str(folder))
        else:
            do = "unset HF_HUB_OFFLINE, then: " if offline else ""
            yield Check(name, "warn", "not on this machine", f"{do}ossia fetch {name}")


def _tokenizer() -> Iterator[Check]:
    fetched = [name for name in PUBLISHED_SHAPES if _has_tokenizer(find_model(f"openai/{name}").folder)]
    if fetched:
        yield Check("tokenizer", "ok", f"with the fetched {fetched[0]}")
    elif importlib.util.find_spec("bpe_openai"):
        yield Check("tokenizer", "ok", "rebuilt from the package bpe-openai, no network needed")
    else:
        yield Check(
            "tokenizer", "warn", "not on this machine", "pip install -e '.[offline]', or ossia fetch gpt-oss-20b"
        )


def _encoder() -> Iterator[Check]:
    from ossia.harmony.tokenizer.encoder import fast_encoder

    if fast_encoder() is not None:
        yield Check("encoder", "ok", "bpe-openai, for checkpoints with the published vocabulary")
    else:
        do = "pip install -e '.[offline]' in the checkout: data are compiled ten times faster"
        yield Check("encoder", "warn", "Hugging Face's tokenizers", do)


def _has_tokenizer(folder: Path | None) -> bool:
    return folder is not None and (folder / "tokenizer.json").is_file()


def _recipes() -> Iterator[Check]:
    """Yield a check for each recipe that comes with Ossia: whether it fits.

    A recipe that does not fit is a warning and not a failure, because the machine is not faulty.
    """
    for name, path in recipes.available().items():
        try:
            recipe = recipes.load_recipe(str(path))
            found = find_model(recipe.model.path)
        except OssiaError as error:
            yield Check(f"recipe {name}", "warn", f"cannot be judged: {error.what}", error.do or "")
            continue
        machine = Machine.here(recipe.model)
        plan = estimate(recipe, found, Examples.assumed(recipe), machine)
        do = "--set " + " --set ".join(plan.changes) if plan.changes else ""
        status: Status = "ok" if plan.verdict == "fits" else "warn"
        yield Check(f"recipe {name}", status, f"{plan.verdict}: {'; '.join(plan.reasons)}", do)
