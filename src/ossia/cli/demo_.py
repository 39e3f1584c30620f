"""The command `ossia demo`, which runs the commands of all stages one after the other."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path

import typer

from ossia import events, runs
from ossia.cli import output
from ossia.cli.app import build, verb

RECIPE = "tiny-demo"
DATA = "example:multilingual/train.jsonl"
DEVELOPER = "reasoning language: German\n\nSolve the problem step by step."

app = verb("Run all stages on a tiny gpt-oss: data, train, eval, chat, export.")


@app.command()
def demo(set_: output.Set = None) -> None:
    """Check data, fine-tune a tiny gpt-oss, compare it with its base, ask it a question and export it.

    It takes a few minutes on two cores. Every step is a command that works the same way on gpt-oss-20b. An interrupted
    demo continues where it stopped.
    """
    began, console = time.monotonic(), output.out()
    overrides = [part for override in set_ or [] for part in ("--set", override)]
    console.print(_INTRODUCTION)
    _say(1, "The conversations, checked row by row.")
    _run("data", "check", DATA)
    _say(2, "One of them, token by token. Only the tokens that the model has to write are trained.")
    _run("data", "show", DATA, "--row", "3")
    _say(3, "The memory, time and disk that the fine-tune needs on this machine.")
    _run("plan", RECIPE, *overrides)
    _say(4, "The fine-tune: LoRA on attention and experts, through the four-bit weights.")
    run = _train(overrides)
    _curve(run)
    _say(5, "Held-out questions for the base and for the tuned model.")
    if _happened(run, events.Evaluated):
        console.print(f"done before; [bold]ossia runs show {run.id}[/bold] has the figures")
    else:
        _run("eval", run.id, "--vs", "base")
    _say(6, "One question for both. The base always thinks in English.")
    _run("chat", run.id, "--vs", "base", "--developer", DEVELOPER, "--question", _question())
    _say(7, "A checkpoint with the fine-tune merged in, for every program that reads gpt-oss.")
    _run("export", run.id, "--to", "hf")
    console.print(f"\nDone in {output.duration(time.monotonic() - began)}. Everything is in {run.path}:", markup=False)
    for name, what in _FILES.items():
        console.print(f"  {name:<18} {what}", markup=False)
    console.print(_OUTLOOK)


def _say(number: int, text: str) -> None:
    output.out().print(f"\n[bold]{number}/7  {text}[/bold]")


def _run(*arguments: str) -> None:
    """Print a command and run it in this process. An exit code that is not 0 ends the demo."""
    output.out().print(f"[cyan]$ ossia {shlex.join(arguments)}[/cyan]", highlight=False)
    with output.without_next_steps():
        code = build()(list(arguments), standalone_mode=False)
    if isinstance(code, int) and code:
        output.err().print("the demo stops here. [bold]ossia demo[/bold] continues it")
        raise typer.Exit(code)


def _train(overrides: list[str]) -> runs.Run:
    """Train, or go on with the newest demo that did not come to its end; return the run."""
    begun = None if overrides else _unfinished()
    if begun is None:
        _run("train", RECIPE, *overrides)
        begun = runs.find_run("last")
    elif begun.summary().status != "done":
        _run("train", "--resume", str(begun.path))
    return begun


def _unfinished() -> runs.Run | None:
    """Return the newest run that `ossia demo` began and did not export; None if there is none."""
    for summary in runs.list_runs():
        run = runs.Run(Path(summary.path))
        if _is_ours(run):
            return None if _happened(run, events.Exported) else run
    return None


def _is_ours(run: runs.Run) -> bool:
    """Whether a demo without settings of its own began the run; a training of the same recipe is somebody's own."""
    try:
        command = json.loads((run.path / runs.ENVIRONMENT).read_text(encoding="utf-8"))["command"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(command == "ossia demo")


def _happened(run: runs.Run, kind: type[events.Event]) -> bool:
    return any(isinstance(event, kind) for event in events.read(run.path))


def _curve(run: runs.Run) -> None:
    from ossia.cli.runs_ import sparkline

    losses = [event.loss for event in events.read(run.path) if isinstance(event, events.Step)]
    if losses:
        output.out().print(f"loss {sparkline(losses)}  {losses[0]:.3f} -> {losses[-1]:.3f}")


def _question() -> str:
    """A held-out question in another language than the thought that is asked for."""
    from ossia.recipes.examples import resolve

    rows = map(json.loads, Path(resolve("example:multilingual/heldout.jsonl")).read_text(encoding="utf-8").splitlines())
    chosen = next(row for row in rows if row["reasoning_language"] == "German" and row["language"] == "French")
    return str(chosen["user"])


_INTRODUCTION = """[bold]Ossia in a few minutes, on a tiny gpt-oss[/bold]

The model is a gpt-oss of four layers with all features of the large ones: MXFP4 experts, attention sinks, alternating
windows, the full vocabulary. It solves small problems in five languages and always thinks in English. It will learn to
think in the language that the developer message asks for."""

_FILES = {
    "recipe.yaml": "every setting of the run",
    "events.jsonl": "the events of the run, step by step",
    "checkpoints/": "the adapter in PEFT's format, and the state for resuming",
    "evals/": "every question, answer and verdict",
    "exports/": "the merged checkpoint",
}

_OUTLOOK = """
The same on gpt-oss-20b, with your own conversations:

  [bold]ossia fetch gpt-oss-20b[/bold]
  [bold]ossia train gpt-oss-20b-lora --set data.train=conversations.jsonl[/bold]
  [bold]ossia eval last --vs base --data held_out.jsonl[/bold]"""
