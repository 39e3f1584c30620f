"""ossia plan RECIPE"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ossia.cli import output
from ossia.cli.app import verb

if TYPE_CHECKING:
    from ossia.plan import Examples, FoundModel, Plan

app = verb("Say what a recipe needs in memory, time and disk, before it is spent.")


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a recipe that comes with Ossia.")],
    set_: output.Set = None,
    time: Annotated[bool, typer.Option("--time/--no-time", help="Measure this machine for a few seconds.")] = True,
    json: output.Json = False,
) -> None:
    """Say what a recipe needs in memory, time and disk on this machine. Exits with 3 if it does not fit."""
    from ossia import recipes
    from ossia.plan import Machine, estimate, find_model

    settings = recipes.load_recipe(recipe, set_ or [])
    found = find_model(settings.model.path)
    machine = Machine.here(settings.model)
    examples = _examples(settings, found)
    speed = None
    if time:
        from ossia.plan.speed import measure

        with output.progress("measuring this machine", None):
            speed = measure(found.shape, machine.device, machine.dtype)
    result = estimate(settings, found, examples, machine, speed=speed)
    if json:
        output.print_json(result.as_dict() | {"speed": speed and vars(speed)})
    else:
        print_plan(result, found, speed.note if speed else None)
    result.require_fit()
    changed = "".join(f" --set {change}" for change in set_ or [])
    output.next_step(f"ossia train {recipe}{changed}" if found.folder else f"ossia fetch {settings.model.path}")


def _examples(recipe: Any, found: FoundModel) -> Examples:
    """Count the recipe's data, or assume some when there are none to count."""
    from ossia.checkpoint.locate import vocabulary as vocabulary_of
    from ossia.data.compile import usable_cores
    from ossia.data.prepare import prepare
    from ossia.errors import UserError
    from ossia.plan import Examples
    from ossia.plan.work import recipe_obstacles
    from ossia.sequences.sharing import estimated_saving, may_share

    if not recipe.data.train:
        return Examples.assumed(recipe)
    try:
        vocabulary = vocabulary_of(found.folder)
    except UserError as error:
        return Examples.assumed(recipe, f"there is no tokenizer to count with ({error.what})")
    with output.progress("counting tokens (MB)", None) as advance:
        report = output.in_millions(advance)
        prepared = prepare(recipe.data, vocabulary, recipe.train.seed, workers=usable_cores(), progress=report)
    for line in prepared.remarks():
        output.err().print(line, markup=False)
    saving, settings = None, recipe.train
    if may_share(settings.share_prefixes, recipe_obstacles(recipe)):
        with output.progress("looking for shared prefixes", None):
            saving = estimated_saving(
                prepared.train, settings.examples_per_step, settings.seed, settings.tokens_per_micro_batch
            )
    return Examples.counted(prepared.train, prepared.validation, saving)


def print_plan(plan: Plan, found: FoundModel, measured: str | None) -> None:
    """Print the tables of a plan."""
    console = output.out()
    machine, examples, work = plan.machine, plan.examples, plan.work

    def line(text: str) -> None:
        console.print(text, markup=False)

    line(f"model     {found.name}{'' if found.folder else ' (not here yet; figures as published)'}")
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
    if plan.time_range is not None and plan.seconds is not None:
        low, high = (output.duration(seconds) for seconds in plan.time_range)
        parts = ", ".join(f"{name} {output.duration(seconds)}" for name, seconds in plan.seconds.items())
        line(f"time        about {low} to {high}: an estimate ({parts}); {measured}")
    line(f"\n{plan.verdict}: {'; '.join(plan.reasons)}")
