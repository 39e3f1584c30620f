"""The workflow that writes a tuned model for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ossia.events import OnEvent, counting, ignore
from ossia.export import ExpertsFormat
from ossia.export.targets import DEFAULT, all_targets, find_target

if TYPE_CHECKING:
    from ossia.export.job import Export

__all__ = ["DEFAULT", "ExpertsFormat", "all_targets", "export", "find_target"]


def export(
    reference: str | Path,
    *,
    to: str = DEFAULT,
    out: str | Path | None = None,
    experts: ExpertsFormat = "auto",
    checkpoint: int | None = None,
    model: str | Path | None = None,
    overwrite: bool = False,
    accept_changed_base: bool = False,
    on_event: OnEvent = ignore,
) -> Export:
    """Write a tuned model, and return the export: its folder, the report with the effects of rounding, and warnings.

    Args:
        reference: a run, checkpoint or adapter, as in `ossia.generate.subject.open_subject`.
        to: the name of a target in `ossia.export.targets`.
        out: a new or empty folder. By default it is a folder in the run's `exports`.
        experts: the format of the experts in a merged model. auto: four bits if they keep the fine-tune, else bfloat16.
        checkpoint: the step of a run's checkpoint. By default it is the run's best checkpoint.
        model: folder or hub id of the base model. It replaces the one in the recipe or the adapter's configuration.
        overwrite: replace an earlier export.
        accept_changed_base: go on although the base is not the one that the adapter was trained on; it is recorded.
        on_event: called with progress.

    Raises:
        UserError: nothing matches the reference, there is no such target, the adapter does not fit the model, or the
            folder is not empty.
        DoesNotFitError: the disk is too small.
        OssiaError: writing failed, or the bytes read back differ from the bytes written.
    """
    find_target(to)  # refuses a misspelt name before torch is loaded
    from ossia.export.job import write_export
    from ossia.export.source import find_source

    source = find_source(str(reference), None if model is None else str(model), checkpoint)
    return write_export(
        source, to, None if out is None else Path(out), experts=experts, overwrite=overwrite,
        accept_changed_base=accept_changed_base, on_event=on_event,
        progress=lambda title, total: counting(on_event, title, total),
    )  # fmt: skip
