"""The commands `ossia runs ls` and `show`."""

from __future__ import annotations

import dataclasses
import time
from typing import Annotated

import typer

from ossia.cli import output
from ossia.cli.app import verb

app = verb("List and show runs.", no_args_is_help=True)


@app.command()
def ls(json: output.Json = False) -> None:
    """List the runs in $OSSIA_RUNS or ./runs, newest first."""
    from ossia import runs

    rows = runs.list_runs()
    if json:
        output.print_json([dataclasses.asdict(row) for row in rows])
        return
    if not rows:
        output.err().print(f"no runs in {runs.root()}", markup=False)
        output.next_step("ossia train tiny-demo")
        return
    output.table(
        ("run", "made", "status", "steps", "loss", "best validation", "model"),
        [
            (
                row.id,
                time.strftime("%Y-%m-%d %H:%M", time.localtime(row.created)),
                row.status,
                f"{row.step}/{row.total_steps}",
                _number(row.loss),
                _number(row.best_validation),
                row.model,
            )
            for row in rows
        ],
        right=("steps", "loss", "best validation"),
        whole=("run",),
    )


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="A run's folder, its id, a part of the id, or `last`.")],
    json: output.Json = False,
) -> None:
    """Show the losses, notes, evaluations and exports of a run."""
    from ossia import events, runs

    found = runs.find_run(run)
    summary, history = found.summary(), events.read(found.path)
    if json:
        listed = [{"kind": event.kind, **dataclasses.asdict(event)} for event in history]
        output.print_json({**dataclasses.asdict(summary), "events": listed})
        return
    console = output.out()
    console.print(f"[bold]{summary.id}[/bold]  {summary.status}, step {summary.step} of {summary.total_steps}")
    console.print(f"folder   {found.path}\nmodel    {summary.model}", markup=False)
    losses = [event.loss for event in history if isinstance(event, events.Step) and event.loss is not None]
    if losses:
        console.print(f"loss     {sparkline(losses)}  {losses[0]:.3f} -> {losses[-1]:.3f}")
    for event in history:
        if isinstance(event, events.Validation):
            parts = ", ".join(f"{channel} {_number(loss)}" for channel, loss in event.channels.items())
            console.print(
                f"step {event.step:>5}  validation loss {_number(event.loss)} ({parts}){'  best' * event.best}"
            )
        elif isinstance(event, events.Note):
            console.print(f"{event.level}: {event.message}", markup=False)
        elif isinstance(event, events.Evaluated | events.Exported):
            console.print(f"{event.kind}: {event.path}", markup=False)
        elif isinstance(event, events.Finished):
            console.print(f"finished: {event.status} ({event.reason})", markup=False)


def sparkline(values: list[float], width: int = 48) -> str:
    """Return a curve as block characters. Values are averaged to at most `width` columns."""
    count = min(width, len(values))
    bins = [values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)]
    means = [sum(bin_) / len(bin_) for bin_ in bins]
    low, high = min(means), max(means)
    return "".join("▁▂▃▄▅▆▇█"[round((mean - low) / ((high - low) or 1) * 7)] for mean in means)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
