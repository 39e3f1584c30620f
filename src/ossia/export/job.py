"""An export from beginning to end: reading, writing, verification, report and an event in the run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ossia.adapters.read import read_adapter
from ossia.checkpoint.locate import locate
from ossia.checkpoint.reader import CheckpointReader
from ossia.events import Exported
from ossia.export import ExpertsFormat, ProgressFactory, UnitsDone, folder
from ossia.export.source import ExportSource
from ossia.export.targets import DEFAULT, ExportJob, find_target
from ossia.files import write_json
from ossia.runs import Run, ossia_version


@dataclass(frozen=True)
class Export:
    """A finished export."""

    path: Path
    """The folder of the export."""
    report: dict[str, Any]
    """The content of report.json, without the warnings."""
    warnings: list[str] = field(default_factory=list)
    """Sentences for users."""
    run: Run | None = None
    """The exported run. None: the source was an adapter folder."""


def write_export(
    source: ExportSource,
    to: str = DEFAULT,
    out: Path | None = None,
    *,
    experts: ExpertsFormat = "auto",
    overwrite: bool = False,
    progress: ProgressFactory | None = None,
) -> Export:
    """Write and verify an export, log it in the run, and return it.

    Args:
        source: the result of `ossia.export.source.find_source`.
        to: the name of a target in `ossia.export.targets`.
        out: a new or empty folder. By default it is a folder in the run's `exports`.
        experts: the format of the experts in a merged model. auto: four bits if they keep the fine-tune, else bfloat16.
        overwrite: replace an earlier export.
        progress: takes a title and a total, and returns a context manager. The value of the context manager is called
            with the units done since the last call.

    Raises:
        UserError: there is no such target, a package for it is missing, the adapter does not fit the model, or the
            folder is not empty.
        DoesNotFitError: the disk is too small.
        OssiaError: writing failed, or the bytes read back differ from the bytes written.
    """
    target = find_target(to)
    target.require_packages()
    base = locate(source.base)
    out = out or source.default_out(target.name)
    folder.check_destination(out, overwrite=overwrite, sources=(base, source.adapter))
    reader = CheckpointReader(base)
    reader.check(mxfp4=reader.is_mxfp4)
    adapter = read_adapter(source.adapter, reader.shape())
    adapter.check_copies(reader.get)
    with folder.export_folder(out) as partial:
        job = ExportJob(source, reader, adapter, partial, out, experts, progress or _silent)
        result = target.write(job)
        report = {"made_by": f"ossia {ossia_version()}", "target": target.name, "base": source.base, **result.report}
        write_json(partial / folder.REPORT, report | {"warnings": result.warnings})
    if source.run is not None:
        source.run.log().write(Exported(path=str(out), target=target.name))
    return Export(out, report, result.warnings, source.run)


def _silent(_title: str, _total: int) -> AbstractContextManager[UnitsDone]:
    def advance(_units: int) -> None:
        pass

    return nullcontext(advance)
