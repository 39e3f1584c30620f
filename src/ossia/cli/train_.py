"""The commands `ossia train RECIPE` and `ossia train --resume RUN`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ossia import events
from ossia.cli import output
from ossia.cli.app import verb

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from ossia.workflows.train import TrainingPrepared, TrainResult

app = verb("Fine-tune with LoRA.")


@app.command()
def train(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe file, or the name of a recipe that comes with Ossia.")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="RUN", help="Continue a run: its folder, id, a part of it, or `last`."),
    ] = None,
    set_: output.Set = None,
    accept_changed_base: output.AcceptChangedBase = False,
    json: output.Json = False,
) -> None:
    """Fine-tune with LoRA, or continue a run exactly at its newest checkpoint."""
    from ossia.workflows.train import leave
    from ossia.workflows.train import train as run_training

    with _watching() as watch:
        result = run_training(
            recipe, resume=resume, overrides=set_ or (), command=" ".join(["ossia", *sys.argv[1:]]),
            accept_changed_base=accept_changed_base, on_event=watch,
        )  # fmt: skip
    if not result.is_main:  # the others of a job work and keep quiet
        leave()
        return
    _report(result, json)
    run = result.run.id
    output.next_step(f"ossia train --resume {run}" if result.is_interrupted else f"ossia eval {run} --vs base")
    code = 130 if result.is_interrupted else 0
    leave(code)
    if code:
        raise typer.Exit(code)


@contextmanager
def _watching() -> Iterator[events.OnEvent]:
    """Yield a callback that draws notes and progress, and then the training when the data are prepared."""
    from ossia.workflows.train import TrainingPrepared

    with ExitStack() as stack:
        watch = stack.enter_context(output.watching())

        def draw(event: events.Event) -> None:
            nonlocal watch
            if isinstance(event, TrainingPrepared):
                stack.close()
                screen = Screen(output.err())
                screen.header(event)
                watch = stack.enter_context(screen).watch
            else:
                watch(event)

        yield draw


def _report(result: TrainResult, json: bool) -> None:
    """Print the result of the run."""
    run, last, summary = result.run, result.last, result.summary
    if json:
        output.print_json({"run": run.id, "path": str(run.path), "status": last.status, "reason": last.reason,
                           "step": last.step, "loss": summary.loss, "best_validation": summary.best_validation,
                           "best_checkpoint": str(run.best_checkpoint())})  # fmt: skip
    else:
        best = "" if summary.best_validation is None else f", best validation loss {summary.best_validation:.4f}"
        output.out().print(
            f"{last.status} at step {last.step}: loss {summary.loss or float('nan'):.4f}{best}", markup=False
        )
        output.out().print(f"run folder: {run.path}", markup=False)


def _adapted(lora: Any) -> str:
    if lora.start_from:
        return f"continued from {lora.start_from}"
    ranks = {name: rank for name, (rank, _) in lora.ranks_and_alphas().items()}
    return f"on {', '.join(f'{name} rank {rank}' for name, rank in ranks.items())}"


class Screen:
    """Draws a run from its events: a bar with loss, speed and remaining time, and lines for important events."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.total = 0
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self._recent: list[events.Step] = []
        self._last_line = 0.0

    def header(self, ready: TrainingPrepared) -> None:
        """Print the model and the data of the training, and the saving by shared prefixes if there is one."""
        recipe, tokens, trained = ready.recipe, ready.tokens, ready.trained_tokens
        self.console.print(f"{ready.run}  {recipe.description}", markup=False, style="bold")
        self.console.print(f"model {recipe.model.path}; LoRA {_adapted(recipe.lora)}", markup=False)
        self.console.print(
            f"{ready.examples} examples, {tokens:,} tokens, {trained:,} of them trained "
            f"({trained / max(tokens, 1):.0%}); {ready.validation_examples} held back for validation"
        )
        if ready.saving is not None:
            self.console.print(f"in steps of {recipe.train.examples_per_step} examples: {ready.saving}")

    def __enter__(self) -> Screen:
        if self.console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self.bar = Progress(
                TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"),
                TimeRemainingColumn(), console=self.console, transient=True,
            )  # fmt: skip
            self.task = self.bar.add_task("loading the model", total=None)
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def watch(self, event: events.Event) -> None:
        """Show one event."""
        if isinstance(event, events.Started):
            self.total = event.total_steps
        elif isinstance(event, events.Resumed):
            self._line(f"resumed from step {event.step}")
        elif isinstance(event, events.Step):
            self._step(event)
        elif isinstance(event, events.Validation):
            parts = ", ".join(f"{name} {loss:.3f}" for name, loss in event.channels.items())
            self._line(f"step {event.step}: validation loss {event.loss:.4f} ({parts}){'  best so far' * event.best}")
        elif isinstance(event, events.Sample):
            self._line(f"  thinks: {event.analysis or '(nothing)'}\n  answers: {event.final or '(nothing)'}")
        elif isinstance(event, events.Routing):
            layer = max(range(len(event.drift)), key=event.drift.__getitem__)
            mean = sum(event.drift) / len(event.drift)
            self._line(
                f"step {event.step}: routers choose other experts than the base in {mean:.1%} of the cases "
                f"(layer {layer}: {event.drift[layer]:.1%}); load entropy at least {min(event.entropy):.2f}"
            )
        elif isinstance(event, events.Note):
            self._line(f"{event.level}: {event.message}")

    def _step(self, event: events.Step) -> None:
        self._recent = [*self._recent[-19:], event]
        seconds = max(sum(step.seconds for step in self._recent), 1e-9)
        counts = ("tokens", "example_tokens", "repeated_tokens")
        computed, own, again = (sum(getattr(step, name) for step in self._recent) for name in counts)
        speed = f"{max(own, computed) / seconds:,.0f} tokens/s"
        if own > computed:  # shared prefixes are computed once
            repeated = f", {again / computed:.0%} of them again" if again else ""
            speed += f" ({computed / seconds:,.0f} computed{repeated})"
        text = f"loss {event.loss:.4f}  {speed}  learning rate {event.learning_rate:.1e}"
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, description=text, completed=event.step, total=self.total)
        elif time.monotonic() - self._last_line > 10 or event.step in (1, self.total):
            self._last_line = time.monotonic()
            remaining = (self.total - event.step) * seconds / len(self._recent)
            self._line(f"step {event.step}/{self.total}  {text}  {output.duration(remaining)} left")

    def _line(self, text: str) -> None:
        (self.bar.console if self.bar is not None else self.console).print(text, markup=False, highlight=False)
