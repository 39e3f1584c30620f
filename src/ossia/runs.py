"""Run folders. A run is a folder that contains everything that later stages need; no state is kept elsewhere.

    runs/2026-11-20_support-bot_7f3a/
      recipe.yaml  environment.json     what ran, exactly
      identity.json                     the base, the data and the recipe that it began with
      events.jsonl                      what happened (ossia.events)
      checkpoints/step-000200/          adapter, optimiser, random states
      evals/  exports/

The index runs/index.sqlite makes listings fast, because unchanged runs are not read again. It can be deleted and is
then rebuilt.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import secrets
import sqlite3
import sys
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ossia import events, files, recipes
from ossia.config import Recipe
from ossia.errors import OssiaError, UserError

BEST = "best.json"
ENVIRONMENT = "environment.json"


@dataclass(frozen=True)
class Summary:
    """The state of a run: one line of `ossia runs ls`."""

    id: str
    path: str
    created: float
    """Time at which recipe.yaml was written, in seconds since 1970."""
    status: str
    """running, interrupted, no events, damaged, or the status of the last `Finished` event."""
    model: str
    step: int
    """The last reported step; 0 before the first."""
    total_steps: int
    loss: float | None
    """Loss of the last step."""
    best_validation: float | None
    """Lowest validation loss."""
    started: float
    """Time at which training last began or was resumed, in seconds since 1970. If it never was, `created`."""


@dataclass(frozen=True)
class Run:
    """A run folder."""

    path: Path

    @property
    def id(self) -> str:
        """The name of the folder."""
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints, whether it exists or not."""
        return self.path / "checkpoints"

    def recipe(self) -> Recipe:
        """Return the recipe with which the run was made.

        Raises:
            UserError: as `ossia.recipes.load_recipe`.
        """
        return recipes.load_recipe(str(self.path / "recipe.yaml"))

    def log(self) -> events.EventLog:
        """Return the writer of the run's events."""
        return events.EventLog(self.path)

    def steps(self) -> list[int]:
        """Return the steps that have a complete checkpoint, ascending."""
        names = self.checkpoints.glob("step-*") if self.checkpoints.is_dir() else []
        found = [path for path in names if re.fullmatch(r"step-[0-9]{6,9}", path.name) and any(path.iterdir())]
        return sorted(int(path.name.removeprefix("step-")) for path in found)

    def checkpoint(self, step: int) -> Path:
        """Return the folder of a step's checkpoint, whether it exists or not."""
        return self.checkpoints / f"step-{step:06d}"

    def best_checkpoint(self) -> Path:
        """Return the folder of the checkpoint with the lowest validation loss, or of the newest if none was validated.

        Raises:
            UserError: the run has no checkpoint yet.
        """
        steps = self.steps()
        if not steps:
            raise UserError(
                "this run has no checkpoint yet", where=str(self.path), do=f"ossia train --resume {self.id}"
            )
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            best = self.checkpoint(json.loads((self.checkpoints / BEST).read_text())["step"])
            if best.is_dir():
                return best
        return self.checkpoint(steps[-1])

    def summary(self) -> Summary:
        """Return the state of the run, read from its events.

        Raises:
            OssiaError: the events or the recipe cannot be read.
        """
        history = events.read(self.path)
        steps = [event for event in history if isinstance(event, events.Step)]
        started = [event for event in history if isinstance(event, events.Started)]
        # A loss of NaN or infinity is null in the file.
        losses = [event.loss for event in history if isinstance(event, events.Validation)]
        validations = [loss for loss in losses if loss is not None]
        ends = (events.Started, events.Resumed, events.Finished)
        last = next((event for event in reversed(history) if isinstance(event, ends)), None)
        status = last.status if isinstance(last, events.Finished) else "no events"
        if isinstance(last, events.Started | events.Resumed):
            running = bool(started) and files.is_alive(started[-1].pid, since=started[-1].time + 60)
            status = "running" if running else "interrupted"
        created = (self.path / "recipe.yaml").stat().st_mtime
        return Summary(
            id=self.id,
            path=str(self.path),
            created=created,
            status=status,
            model=self.recipe().model.path,
            step=steps[-1].step if steps else 0,
            total_steps=started[-1].total_steps if started else 0,
            loss=steps[-1].loss if steps else None,
            best_validation=min(validations, default=None),
            started=max((event.time for event in started), default=created),
        )


def root() -> Path:
    """Return the folder of runs: $OSSIA_RUNS, or `runs` in the current folder."""
    return Path(os.environ.get("OSSIA_RUNS", "runs"))


def create(recipe: Recipe, command: str) -> Run:
    """Make a new run folder with the recipe and the environment, and return the run.

    Args:
        recipe: the recipe of the run.
        command: the command or call that made the run, for environment.json.

    Raises:
        UserError: the folder cannot be made.
    """
    name = f"{time.strftime('%Y-%m-%d')}_{recipe.name}_{secrets.token_hex(2)}"
    path = root() / name
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"the run folder cannot be made ({error.strerror})", where=str(path), do="set OSSIA_RUNS to another folder"
        ) from None
    files.write_atomically(path / "recipe.yaml", recipes.dump(_with_absolute_paths(recipe)))
    files.write_json(path / ENVIRONMENT, environment(command))
    return Run(path)


def find_run(reference: str) -> Run:
    """Return the run that a reference identifies: its folder, its id, a part of its id, or `last` for the newest.

    Raises:
        UserError: no run matches, or several do.
    """
    folder = Path(reference)
    if (folder / "recipe.yaml").is_file():
        return Run(folder)
    everything = _folders()
    if reference == "last" and everything:
        return Run(Path(max(list_runs(), key=lambda row: (row.started, row.created)).path))
    matches = [path for path in everything if path.name == reference] or [p for p in everything if reference in p.name]
    if len(matches) == 1:
        return Run(matches[0])
    found = ", ".join(path.name for path in matches) if matches else "none"
    raise UserError(
        f"no single run matches {reference!r}", where=str(root()), why=f"found: {found}", do="ossia runs ls"
    )


def list_runs() -> list[Summary]:
    """Return a summary of every run, newest first. Only runs that have changed since the last listing are read."""
    folders = _folders()
    if not folders:
        return []
    try:
        rows = _refresh(folders)
    except sqlite3.Error:
        rows = _rebuilt(folders)
    return sorted(rows, key=lambda row: row.created, reverse=True)


def ossia_version() -> str:
    """Return Ossia's version, or "from source" if Ossia is not installed as a package."""
    try:
        return metadata.version("ossia")
    except metadata.PackageNotFoundError:
        return "from source"


def environment(command: str) -> dict[str, object]:
    """Return the data that explain why two runs differ: the command, the time, the platform and versions."""
    names = ("ossia", "torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors")
    versions = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "command": command,
        "folder": str(Path.cwd()),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "versions": versions,
    }


def _with_absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe with the files and folders that it names written out, so that a run works from any folder."""

    def place(value: Any) -> Any:
        return str(Path(value).absolute()) if isinstance(value, str) and Path(value).exists() else value

    values = recipe.model_dump(mode="json")
    for section, key in (("model", "path"), ("lora", "start_from"), ("train", "spare_folder")):
        values[section][key] = place(values[section][key])
    for section, key in (("data", "train"), ("data", "validation"), ("eval", "data")):
        values[section][key] = [
            {**entry, "path": place(entry["path"])} if isinstance(entry, dict) else place(entry)
            for entry in values[section][key]
        ]
    return Recipe.model_validate(values)


def _folders() -> list[Path]:
    return sorted(path.parent for path in root().glob("*/recipe.yaml"))


def _refresh(folders: list[Path]) -> list[Summary]:
    rows = []
    with contextlib.closing(sqlite3.connect(root() / "index.sqlite", timeout=10)) as database, database:
        database.execute("create table if not exists runs (path text primary key, stamp text, summary text)")
        known = {path: (stamp, summary) for path, stamp, summary in database.execute("select * from runs")}
        for folder in folders:
            stamp = _stamp(folder)
            old_stamp, old = known.pop(str(folder), (None, None))
            summary = _remembered(old) if old_stamp == stamp else None
            # A killed process writes no event, so runs that were running are read again.
            if summary is None or summary.status == "running":
                summary = _summary(folder)
                row = (str(folder), stamp, json.dumps(asdict(summary)))
                database.execute("insert or replace into runs values (?, ?, ?)", row)
            rows.append(summary)
        database.executemany("delete from runs where path = ?", [(path,) for path in known])
    return rows


def _rebuilt(folders: list[Path]) -> list[Summary]:
    """Return the summaries with a new index, or without an index if it cannot be written."""
    try:
        (root() / "index.sqlite").unlink(missing_ok=True)
        return _refresh(folders)
    except (sqlite3.Error, OSError):
        return [_summary(folder) for folder in folders]


def _summary(folder: Path) -> Summary:
    """Return the summary of a run, with status "damaged" if it cannot be read, so that the others are still listed."""
    try:
        return Run(folder).summary()
    except (OssiaError, OSError):
        created = (folder / "recipe.yaml").stat().st_mtime
        return Summary(folder.name, str(folder), created, "damaged", "", 0, 0, None, None, created)


def _remembered(text: str | None) -> Summary | None:
    """Return the summary in a row of the index, or None if another version of Ossia has written the row."""
    try:
        return Summary(**json.loads(text)) if text else None
    except (ValueError, TypeError):
        return None


def _stamp(folder: Path) -> str:
    path = folder / events.FILE
    if not path.is_file():
        return "none"
    stat = path.stat()
    return f"{stat.st_size}:{stat.st_mtime_ns}"
