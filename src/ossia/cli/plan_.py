"""The command `ossia plan RECIPE`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ossia.cli import output
from ossia.cli.app import verb

if TYPE_CHECKING:
    from ossia.workflows.plan import Plan

app = verb("Estimate the memory, time and disk that a recipe needs.")


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a recipe that comes with Ossia.")],
    set_: output.Set = None,
    time: Annotated[bool, typer.Option("--time/--no-time", help="Measure this machine for a few seconds.")] = True,
    json: output.Json = False,
) -> None:
    """Estimate the memory, time and disk that a recipe needs on this machine. Exits with 3 if it does not fit."""
    from ossia.workflows.plan import plan as plan_recipe

    with output.watching() as watch:
        result = plan_recipe(recipe, overrides=set_ or (), measure=time, on_event=watch)
    if json:
        output.print_json(result.as_dict())
    else:
        print_plan(result)
    result.require_fit()
    changed = "".join(f" --set {change}" for change in set_ or [])
    is_here = result.model.folder is not None
    output.next_step(f"ossia train {recipe}{changed}" if is_here else f"ossia fetch {result.recipe.model.path}")


def print_plan(plan: Plan) -> None:
    """Print the tables of a plan."""
    console = output.out()
    model, machine, examples, work = plan.model, plan.machine, plan.examples, plan.work

    def line(text: str) -> None:
        console.print(text, markup=False)

    line(f"model     {model.name}{'' if model.folder else ' (not on this machine yet; dimensions as published)'}")
    line(f"computes  on {machine.device} ({machine.device_reason}) in {machine.dtype} ({machine.dtype_reason})")
    line(f"data      {examples.source}; {examples.tokens:,} tokens, longest {examples.longest:,}")
    line(f"prefixes  {'shared' if plan.sharing.on else 'not shared'}: {plan.sharing.reason}")
    amount = f"{work.steps:,} steps in {work.micro_batches:,} micro-batches, {work.tokens:,} tokens"
    line(f"training  {amount}, {plan.trained_parameters:,} trained parameters\n")
    rows = [(entry.name, output.size(entry.bytes), entry.how) for entry in plan.memory]
    rows.append(("total at the peak", output.size(plan.memory_needed), f"have {output.size(machine.memory)}"))
    output.table(("memory", "size", "what"), rows, right=("size",))
    line("")
    rows = [(entry.name, output.size(entry.bytes), entry.how) for entry in [*plan.disk, *plan.downloads]]
    rows.append(("free", output.size(machine.runs.free), f"at {machine.runs.folder}"))
    output.table(("disk", "size", "what"), rows, right=("size",))
    line("")
    line(f"arithmetic  {plan.flops_per_token / 1e9:.3g} GFLOP per token, without attention scores")
    if plan.time_range is not None and plan.seconds is not None and plan.speed is not None:
        low, high = (output.duration(seconds) for seconds in plan.time_range)
        parts = ", ".join(f"{name} {output.duration(seconds)}" for name, seconds in plan.seconds.items())
        line(f"time        about {low} to {high}: an estimate ({parts}); {plan.speed.note}")
    line(f"\n{plan.verdict}: {'; '.join(plan.reasons)}")
