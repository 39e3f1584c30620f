"""What an export can be: a file here for each target, whose one public name is its `ExportTarget`.

A new target is a new file. `ossia export --help` reads all of them, so they import what is heavy where it is used.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ossia.errors import UserError, did_you_mean
from ossia.export import ExpertsFormat, ProgressFactory

if TYPE_CHECKING:
    from ossia.adapters.read import Adapter
    from ossia.checkpoint.reader import CheckpointReader
    from ossia.export.source import ExportSource

DEFAULT = "hf"


@dataclass(frozen=True)
class ExportJob:
    """What a target is given.

    base: the checked checkpoint that the adapter belongs to.
    folder: empty folder to write into. It becomes `out` when the export is complete.
    experts: the format that the user wants for the experts.
    """

    source: ExportSource
    base: CheckpointReader
    adapter: Adapter
    folder: Path
    out: Path
    experts: ExpertsFormat
    progress: ProgressFactory


@dataclass(frozen=True)
class TargetResult:
    """What a target returns.

    report: its keys of report.json. `sha256` is one of them: the hash of each file or tensor by its name.
    warnings: sentences for a person to read.
    """

    report: dict[str, Any]
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ExportTarget:
    """One thing that an export can be.

    help: one line, for `ossia export --help`.
    write: writes into the job's folder and verifies what it wrote.
    is_model: whether the result is a model by itself, which `ossia chat` opens.
    packages: Python packages that it needs beyond those that Ossia always has.
    """

    name: str
    help: str
    write: Callable[[ExportJob], TargetResult]
    is_model: bool
    packages: tuple[str, ...] = ()

    def require_packages(self) -> None:
        """Raise UserError unless what the target needs is installed."""
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(f"--to {self.name} needs the package {missing[0]}", do=f"pip install {' '.join(missing)}")


@cache
def all_targets() -> dict[str, ExportTarget]:
    """Every target by its name, the default one first."""
    modules = (importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    found = [value for module in modules for value in vars(module).values() if isinstance(value, ExportTarget)]
    return {target.name: target for target in sorted(found, key=lambda one: (one.name != DEFAULT, one.name))}


def find_target(name: str) -> ExportTarget:
    """The target of this name. Raises UserError when there is none."""
    targets = all_targets()
    if name not in targets:
        close = did_you_mean(name, targets)
        raise UserError(f"there is no target {name!r}", do=f"use {close or ', '.join(targets)}")
    return targets[name]
