"""Write a tuned model for other programs."""

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
    """Return a finished export: its folder, the report of what writing did to the fine-tune, and warnings.

    Args:
        reference: a run, checkpoint or adapter, see `ossia.generate.subject.open_subject`.
        to: name of a target in `ossia.export.targets`.
        out: new or empty folder; by default one in the run's `exports`.
        experts: format of the experts in a merged model. auto: four bits where that loses nothing that matters, else
            bfloat16.
        checkpoint: step of a run's checkpoint; by default its best one.
        model: base model, where the adapter does not say it or says another place: folder or hub id.
        overwrite: replace an earlier export.
        accept_changed_base: go on although the base is not the one that the adapter was trained on; it is recorded.
        on_event: called with progress.

    Raises:
        UserError: nothing of that name, no such target, the adapter does not fit the model, or the folder is taken.
        DoesNotFitError: the disk is too small.
        OssiaError: writing failed, or the written bytes are not the intended ones.
    """
    find_target(to)  # a misspelt one is refused before torch is loaded
    from ossia.export.job import write_export
    from ossia.export.source import find_source

    source = find_source(str(reference), None if model is None else str(model), checkpoint)
    return write_export(
        source, to, None if out is None else Path(out), experts=experts, overwrite=overwrite,
        accept_changed_base=accept_changed_base, on_event=on_event,
        progress=lambda title, total: counting(on_event, title, total),
    )  # fmt: skip
