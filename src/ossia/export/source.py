"""The source of an export: a run's checkpoint, or an adapter folder with its base model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ossia import events, runs
from ossia.adapters.config import CONFIG_FILE
from ossia.config import Recipe
from ossia.errors import UserError
from ossia.generate.subject import Subject, open_subject


@dataclass(frozen=True)
class ExportSource:
    """An adapter with its base model and, if there is one, its run."""

    subject: Subject
    adapter: Path
    """A folder in PEFT's layout."""
    base: str
    """Folder or hub id of the model that the adapter was trained on."""
    run: runs.Run | None = None
    """None for an adapter folder that does not belong to a run."""

    @property
    def name(self) -> str:
        """A name for display: the run's id with the checkpoint, or the name of the adapter's folder."""
        return f"{self.run.id}-{self.adapter.name}" if self.run else self.adapter.resolve().name

    def recipe(self) -> Recipe | None:
        """Return the recipe of the run, or None without a run."""
        return self.run.recipe() if self.run else None

    def evaluation(self) -> dict[str, Any] | None:
        """Return the summary of the run's last evaluation, or None if there is none."""
        history = events.read(self.run.path) if self.run else []
        return next((event.summary for event in reversed(history) if isinstance(event, events.Evaluated)), None)

    def default_out(self, target: str) -> Path:
        """Return the default folder of an export, such as runs/RUN/exports/step-000200-hf.

        Raises:
            UserError: the adapter does not belong to a run.
        """
        if self.run is None:
            raise UserError("an adapter folder has no default place for exports", do="add --out FOLDER")
        return self.run.path / "exports" / f"{self.adapter.name}-{target}"


def find_source(reference: str, model: str | None = None, step: int | None = None) -> ExportSource:
    """Return the adapter that a reference stands for, with its base model.

    Args:
        reference: a run, a checkpoint or an adapter folder, as in `ossia.generate.subject.open_subject`.
        model: the base model, in place of the one in the run's recipe or the adapter's configuration.
        step: the step of a run's checkpoint. By default it is the run's best checkpoint.

    Raises:
        UserError: there is no such run, checkpoint or adapter. Also if the reference is a model without an adapter, or
            if the adapter does not name its base model.
    """
    subject = open_subject(
        reference,
        checkpoint=step,
        overrides=[] if model is None else [f"model.path={json.dumps(model, ensure_ascii=False)}"],
    )
    if subject.adapter is None:
        raise UserError("this is a model without an adapter", where=reference, do="name a run or an adapter folder")
    if not (subject.adapter / CONFIG_FILE).is_file():
        where = str(subject.adapter)
        raise UserError("the checkpoint has no adapter", where=where, do="export another --checkpoint STEP")
    return ExportSource(subject, subject.adapter, subject.recipe.model.path, subject.run)
