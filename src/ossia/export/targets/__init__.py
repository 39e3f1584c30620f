"""The targets of an export, one module each. The only public name of a module is its `ExportTarget`.

    hf         a checkpoint in the published layout, with the adapter merged in
    adapter    the adapter in PEFT's layout

To add a target, add a module. `ossia export --help` imports all of them. So they import large libraries only in the
functions that use them.
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
"""Name of the target that is written if none is given."""


@dataclass(frozen=True)
class ExportJob:
    """The input of a target."""

    source: ExportSource
    base: CheckpointReader
    """The checkpoint that the adapter belongs to, already checked."""
    adapter: Adapter
    folder: Path
    """An empty folder to write to. It is renamed to `out` when the export is complete."""
    out: Path
    """The folder of the finished export."""
    experts: ExpertsFormat
    """The format that the user asked for."""
    progress: ProgressFactory


@dataclass(frozen=True)
class TargetResult:
    """The result of a target."""

    report: dict[str, Any]
    """The target's keys of report.json. `sha256` is one of them: the hash of each file or tensor, by its name."""
    warnings: list[str] = field(default_factory=list)
    """Sentences for users."""


@dataclass(frozen=True)
class ExportTarget:
    """A format that an export can be written in."""

    name: str
    help: str
    """One line for `ossia export --help`."""
    write: Callable[[ExportJob], TargetResult]
    """Writes to the job's folder and verifies the result."""
    is_model: bool
    """Whether the result is a complete model, which `ossia chat` opens."""
    packages: tuple[str, ...] = ()
    """Python packages that the target needs beyond the dependencies of Ossia."""

    def require_packages(self) -> None:
        """Check that the packages of the target are installed.

        Raises:
            UserError: a package is missing.
        """
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(f"--to {self.name} needs the package {missing[0]}", do=f"pip install {' '.join(missing)}")


@cache
def all_targets() -> dict[str, ExportTarget]:
    """Return every target by its name, the default target first."""
    modules = (importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    found = [value for module in modules for value in vars(module).values() if isinstance(value, ExportTarget)]
    return {target.name: target for target in sorted(found, key=lambda one: (one.name != DEFAULT, one.name))}


def find_target(name: str) -> ExportTarget:
    """Return the target of this name.

    Raises:
        UserError: there is no such target.
    """
    targets = all_targets()
    if name not in targets:
        close = did_you_mean(name, targets)
        raise UserError(f"there is no target {name!r}", do=f"use {close or ', '.join(targets)}")
    return targets[name]
