"""An export from beginning to end: reading, writing, verification, report and an event in the run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ossia.adapters.read import read_adapter
from ossia.checkpoint.locate import locate
from ossia.checkpoint.reader import CheckpointReader
from ossia.events import Exported, OnEvent, ignore
from ossia.export import ExpertsFormat, ProgressFactory, UnitsDone, folder
from ossia.export.source import ExportSource
from ossia.export.targets import DEFAULT, ExportJob, find_target
from ossia.files import write_json
from ossia.generate.subject import rendering_of
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
    accept_changed_base: bool = False,
    on_event: OnEvent = ignore,
    progress: ProgressFactory | None = None,
) -> Export:
    """Write and verify an export, log it in the run, and return it.

    Args:
        source: the result of `ossia.export.source.find_source`.
        to: the name of a target in `ossia.export.targets`.
        out: a new or empty folder. By default it is a folder in the run's `exports`.
        experts: the format of the experts in a merged model. auto: four bits if they keep the fine-tune, else bfloat16.
        overwrite: replace an earlier export.
        accept_changed_base, on_event: as in `ossia.generate.subject.Subject.check`.
        progress: called with a title and a total, gives a context whose value is told the units done.

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
    accepted = source.subject.check(accept_changed_base=accept_changed_base, on_event=on_event)
    reader = CheckpointReader(base)
    reader.check(mxfp4=reader.is_mxfp4)
    adapter = read_adapter(source.adapter, reader.shape())
    adapter.check_copies(reader.get)
    with folder.export_folder(out) as partial:
        job = ExportJob(source, reader, adapter, partial, out, experts, progress or _silent)
        result = target.write(job)
        warnings = [*accepted, *result.warnings]
        report: dict[str, Any] = {"made_by": f"ossia {ossia_version()}", "target": target.name, "base": source.base}
        report |= {"rendering": rendering_of(source.subject.recipe.data), **result.report}
        report |= {"files": folder.manifest(partial)}
        write_json(partial / folder.REPORT, report | {"warnings": warnings})
    if source.run is not None:
        try:
            source.run.log().write(Exported(path=str(out), target=target.name))
        except OSError as error:  # the export is complete wherever it is; only the run does not know of it
            warnings.append(f"the run could not note the export ({error.strerror}): {source.run.path}")
    return Export(out, report, warnings, source.run)


def _silent(_title: str, _total: int) -> AbstractContextManager[UnitsDone]:
    def advance(_units: int) -> None:
        pass

    return nullcontext(advance)
