"""What is exported: a run's checkpoint, or an adapter folder with the model it belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ossia import events, runs
from ossia.adapters.config import CONFIG_FILE, read_config
from ossia.config import Recipe
from ossia.errors import UserError


@dataclass(frozen=True)
class ExportSource:
    """adapter: folder in PEFT's layout. base: folder or hub id of the model it was trained on."""

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
    """Find the adapter and its base: of a run (its best checkpoint, or that of `step`) or of an adapter folder.

    Raises:
        UserError: no such run, checkpoint or adapter, or an adapter whose base model is not known.
    """
    folder = Path(reference)
    if (folder / CONFIG_FILE).is_file():
        if step is not None:
            raise UserError("--checkpoint belongs to a run, and this is an adapter folder", where=reference)
        return ExportSource(folder, model or _base(folder))
    run = runs.find_run(reference)
    if step is None:
        checkpoint = run.best_checkpoint()
    else:
        checkpoint = run.checkpoint(step)
        if step not in run.steps():
            steps = ", ".join(str(number) for number in run.steps()) or "none"
            raise UserError(f"there is no checkpoint of step {step}", where=str(run.path), why=f"there are: {steps}")
    if not (checkpoint / CONFIG_FILE).is_file():
        raise UserError("the checkpoint holds no adapter", where=str(checkpoint), do="export another --checkpoint STEP")
    return ExportSource(checkpoint, model or run.recipe().model.path, run)


def _base(folder: Path) -> str:
    base = read_config(folder).base_model
    if not base:
        raise UserError("the adapter does not say which model it belongs to", where=str(folder), do="add --model BASE")
    return base
