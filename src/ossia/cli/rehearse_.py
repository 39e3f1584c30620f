"""The command `ossia rehearse MODEL`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ossia.cli import output
from ossia.cli.app import verb

if TYPE_CHECKING:
    from ossia.events import Event, OnEvent
    from ossia.workflows.rehearse import Rehearsal, RehearsedModel

app = verb("Measure a few real training steps on a full-size model with random weights.")


@app.command()
def rehearse(
    model: Annotated[str, typer.Argument(help="gpt-oss-20b, gpt-oss-120b, or tiny to try it in seconds.")],
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the model, which stays. Published weights may be used. Default: in Ossia's cache."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps. The first one is for warming up.")] = 2,
    tokens: Annotated[int, typer.Option(min=64, help="Tokens of a step, in micro-batches of 2,048.")] = 4096,
    sequence: Annotated[int, typer.Option(min=2, max=131_072, help="Tokens of an example.")] = 512,
    supervised: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the tokens that are supervised.")] = 0.4,
    targets: Annotated[str, typer.Option(help="Targets of the adapter, with commas between.")] = "attention,experts",
    rank: Annotated[int, typer.Option(min=1, max=512, help="LoRA rank of the attention projections.")] = 16,
    expert_rank: Annotated[int, typer.Option(min=1, max=128, help="LoRA rank of the experts.")] = 8,
    set_: output.Set = None,
    json: output.Json = False,
) -> None:
    """Measure a few real training steps on a full-size model with random weights, and compare them with the plan.

    The model is written once (13.8 GB for gpt-oss-20b). Then a LoRA adapter is trained on random tokens, and the time
    and memory are printed. An interrupted rehearsal keeps the part of the model that is written.
    """
    from ossia.workflows.rehearse import rehearse as measure

    with _watching() as watch:
        result = measure(
            model, folder=folder, steps=steps, tokens=tokens, sequence=sequence, supervised=supervised,
            targets=[name.strip() for name in targets.split(",") if name.strip()], rank=rank, expert_rank=expert_rank,
            overrides=set_ or (), on_event=watch,
        )  # fmt: skip
    name = result.recipe.name
    if json:
        output.print_json(result.as_dict())
    else:
        _show(name, sequence, result)
    if result.stopped:
        raise typer.Exit(130)
    output.next_step("ossia rehearse gpt-oss-20b" if name == "tiny" else f"ossia plan {name}-lora")


@contextmanager
def _watching() -> Iterator[OnEvent]:
    """Yield a callback that draws notes and progress, and then the training from its first event."""
    from ossia.cli.train_ import Screen
    from ossia.events import Started
    from ossia.workflows.rehearse import RehearsedModel

    with ExitStack() as stack:
        watch = stack.enter_context(output.watching())

        def draw(event: Event) -> None:
            nonlocal watch
            if isinstance(event, Started):
                stack.close()
                watch = stack.enter_context(Screen(output.err())).watch
            if isinstance(event, RehearsedModel):
                _announce(event)
            else:
                watch(event)

        yield draw


def _announce(model: RehearsedModel) -> None:
    need = f"{output.size(model.needed)} of disk ({output.size(model.free.value)} {model.free.reason})"
    what = f"{model.name} with random weights, to be written to {model.folder}"
    if model.is_here:
        what = f"the model in {model.folder}"
    output.err().print(f"rehearsing {what}; this takes {need}", markup=False)


def _show(name: str, sequence: int, result: Rehearsal) -> None:
    """Print the measurements beside the plan."""
    console, plan, machine = output.out(), result.plan, result.plan.machine
    tokens = result.steps[0].tokens
    lora = result.recipe.lora
    ranks = [f"attention rank {lora.rank}"] if "attention" in lora.targets else []
    ranks += [f"experts rank {lora.expert_rank}"] if "experts" in lora.targets else []

    def line(text: str) -> None:
        console.print(text, markup=False)

    line(f"{name} on {machine.device} ({machine.device_reason}) in {machine.dtype} ({machine.dtype_reason})")
    line(
        f"{len(result.steps)} steps of {tokens:,} tokens in sequences of {sequence:,}, "
        f"{plan.examples.trained / plan.examples.tokens:.0%} supervised; LoRA on {', '.join(ranks)}, "
        f"{plan.trained_parameters:,} parameters\n"
    )
    output.table(("", "measured", "planned"), _rows(result, tokens), right=("measured", "planned"))
    share = result.share_of_matmul
    reached = "training was faster, so the product was disturbed or the model is too small for a comparison"
    if share is not None:
        reached = f"training reached {share:.0%} of that"
    line(
        f"\n{result.matmul / 1e9:,.0f} GFLOP/s in a large {machine.dtype} matrix product; {reached} "
        f"({plan.flops_per_token / 1e9:.3g} GFLOP per token)\nspeeds for the plan: {result.speed.note}"
    )
    if len(result.steps) == 1:
        line("this is one step with cold caches; --steps 2 or more gives the speed of later steps")
    line("\nthe plan's memory:")
    rows = [(entry.name, output.size(entry.bytes), entry.how) for entry in plan.memory]
    output.table(("memory", "size", "what"), rows, right=("size",))


def _rows(result: Rehearsal, tokens: int) -> Iterator[tuple[Any, ...]]:
    plan, memory = result.plan, result.memory
    planned = result.planned_seconds_per_step
    yield "loading", output.duration(result.load_seconds), None
    yield "a step", output.duration(result.seconds_per_step), output.duration(planned)
    yield "tokens per second", f"{result.tokens_per_second:,.1f}", f"{tokens / planned:,.1f}"
    if memory.cuda_allocated is not None and memory.cuda_reserved is not None:
        yield "GPU memory, tensors", output.size(memory.cuda_allocated), output.size(plan.memory_needed)
        yield "GPU memory, reserved by torch", output.size(memory.cuda_reserved), None
        yield "main memory", output.size(memory.resident), None
    elif memory.anonymous is not None and memory.file_backed is not None:
        mapped = plan.memory_needed - plan.memory_unmapped
        yield "own memory", output.size(memory.anonymous), output.size(plan.memory_unmapped)
        yield "pages of files", output.size(memory.file_backed), output.size(mapped)
    else:
        yield "memory, with pages of files", output.size(memory.resident), output.size(plan.memory_needed)
