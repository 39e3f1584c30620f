"""Printing of all commands: results on stdout, progress on stderr, JSON on request."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ossia.errors import harmless
from ossia.events import Note, Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from ossia.events import Event, OnEvent

Json = Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one setting of the recipe. May be repeated."),
]

AcceptChangedBase = Annotated[
    bool,
    typer.Option(
        "--accept-changed-base",
        help="Go on although the base model is not the one of the adapter's training. Runs and reports record it.",
    ),
]
Model = Annotated[
    str | None, typer.Option("--model", help="Checkpoint with the tokenizer. Default: the published vocabulary.")
]


class Against(StrEnum):
    """The model that answers beside a run: its base, or none."""

    base = "base"
    none = "none"


def out() -> Console:
    """Return the console for results (stdout)."""
    return _console(stderr=False)


def err() -> Console:
    """Return the console for progress and remarks (stderr)."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    """Return a console that shows control characters and does not obey them, because texts may be malicious."""
    from rich.console import Console

    class Harmless(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            super().print(*(harmless(o) if isinstance(o, str) else o for o in objects), **options)

    return Harmless(stderr=stderr, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print a value as JSON. Dataclasses must be converted before. Other objects are printed as text."""
    print(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Sequence[str] = (), whole: Sequence[str] = ()
) -> None:
    """Print a plain table.

    Args:
        right: the columns with numbers.
        whole: the columns whose cells are copied, such as ids, and never broken into lines.
    """
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        justify: Any = "right" if column in right else "left"
        grid.add_column(column, justify=justify, overflow="fold", no_wrap=column in whole)
    for row in rows:
        # Cells may contain the texts of other people, so markup in them is printed as text.
        grid.add_row(*(Text("" if cell is None else harmless(str(cell))) for cell in row))
    console = out()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 1000  # in a file or a pipe, each row is one line
    console.print(grid)


_naming_next_steps = ContextVar("naming_next_steps", default=True)


def next_step(command: str) -> None:
    """Print the command that usually comes next. It goes to stderr, so that it does not disturb a pipe."""
    if _naming_next_steps.get():
        err().print(f"next: [bold]{command}[/bold]")


@contextmanager
def without_next_steps() -> Iterator[None]:
    """Silence `next_step` in a block, for a command that runs other commands."""
    token = _naming_next_steps.set(False)
    try:
        yield
    finally:
        _naming_next_steps.reset(token)


def _bars(console: Console) -> Any:
    """Return rich's progress display with the columns of all bars. It disappears at the end."""
    from rich import progress as rich

    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        rich.TimeRemainingColumn(),
    )
    return rich.Progress(*columns, console=console, transient=True)


@contextmanager
def watching() -> Iterator[OnEvent]:
    """Yield a callback for the events of a workflow. It prints notes as lines and progress as bars, on stderr."""
    watcher = _Watcher()
    try:
        yield watcher.watch
    finally:
        watcher.close()


class _Watcher:
    """Draws one progress bar for each piece of work. If stderr is not a terminal, it prints a few lines instead."""

    def __init__(self) -> None:
        self._console = err()
        self._lines: dict[str, _Lines] = {}
        self._tasks: dict[str, Any] = {}
        self._bars: Any = None

    def watch(self, event: Event) -> None:
        if isinstance(event, Note):
            (self._bars.console if self._bars is not None else self._console).print(event.message, markup=False)
        elif isinstance(event, Progress):
            title = f"{event.title} ({event.unit})" if event.unit else event.title
            (self._draw if self._console.is_terminal else self._write)(title, event)

    def close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _draw(self, title: str, event: Progress) -> None:
        if self._bars is None:
            self._bars = _bars(self._console)
            self._bars.start()
        if title not in self._tasks:
            self._tasks[title] = self._bars.add_task(title, total=event.total)
        self._bars.update(self._tasks[title], completed=event.done, visible=not event.finished)
        if event.finished:
            del self._tasks[title]  # the next piece of work with this title has its own total

    def _write(self, title: str, event: Progress) -> None:
        if event.finished:
            self._lines.pop(title, None)
            return
        lines = self._lines.setdefault(title, _Lines(title, None if event.total is None else round(event.total)))
        lines.advance(int(event.done) - lines.done)


class _Lines:
    """Progress in log files: a line every ten seconds. Short work prints nothing."""

    def __init__(self, title: str, total: int | None) -> None:
        self.title, self.total, self.done, self.said = title, total, 0, time.monotonic()

    def advance(self, units: int) -> None:
        self.done += units
        if time.monotonic() - self.said > 10:
            self.said = time.monotonic()
            err().print(f"{self.title}: {self.done}{f'/{self.total}' if self.total else ''}")


def size(count: float) -> str:
    """Return a number of bytes as text, with decimal units and three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def duration(seconds: float) -> str:
    """Return a number of seconds as text."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60:02} min"
