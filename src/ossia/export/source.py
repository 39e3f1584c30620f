"""What is exported: a run's checkpoint, or an adapter folder with the model it belongs to."""

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
    """adapter: folder in PEFT's layout. base: folder or hub id of the model it was trained on."""

    subject: Subject
    adapter: Path
    base: str
    run: runs.Run | None = None

    @property
    def name(self) -> str:
        return f"{self.run.id}-{self.adapter.name}" if self.run else self.adapter.resolve().name

    def recipe(self) -> Recipe | None:
        return self.run.recipe() if self.run else None

    def evaluation(self) -> dict[str, Any] | None:
        """Summary of the run's last evaluation, if there was one."""
        history = events.read(self.run.path) if self.run else []
        return next((event.summary for event in reversed(history) if isinstance(event, events.Evaluated)), None)

    def default_out(self, target: str) -> Path:
        """Where an export goes when nothing else is said: runs/RUN/exports/step-000200-hf."""
        if self.run is None:
            raise UserError("an adapter folder has no place for exports of its own", do="add --out FOLDER")
        return self.run.path / "exports" / f"{self.adapter.name}-{target}"


def find_source(reference: str, model: str | None = None, step: int | None = None) -> ExportSource:
    """Return what a reference stands for, see `ossia.generate.subject.open_subject`, if it has an adapter.

    Args:
        model: the base model, in place of the one that the run or the adapter names.
        step: of a run's checkpoint; by default its best one.

    Raises:
        UserError: no such run, checkpoint or adapter, or an adapter whose base model is not known.
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
        raise UserError("the checkpoint holds no adapter", where=where, do="export another --checkpoint STEP")
    return ExportSource(subject, subject.adapter, subject.recipe.model.path, subject.run)
