"""Plan a recipe on this machine, and examine the machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ossia import recipes
from ossia.checkpoint.locate import vocabulary as vocabulary_of
from ossia.config import Recipe
from ossia.data.compile import usable_cores
from ossia.data.prepare import prepare
from ossia.errors import UserError
from ossia.events import Note, OnEvent, counting, ignore
from ossia.plan import Examples, FoundModel, Machine, Plan, doctor, estimate, find_model, speed
from ossia.plan.doctor import Check
from ossia.plan.work import recipe_obstacles
from ossia.sequences.sharing import epoch_saving

__all__ = ["Check", "Plan", "examine_machine", "plan"]


def plan(
    recipe: str | Path | Recipe,
    *,
    overrides: Iterable[str] = (),
    measure: bool = True,
    on_event: OnEvent = ignore,
) -> Plan:
    """Return what a recipe needs in memory, time and disk on this machine.

    A plan that does not fit is a result, not an error: its verdict says so, and `Plan.require_fit` raises.

    Args:
        recipe: a file, the name of a recipe that comes with Ossia, or a recipe itself.
        overrides: `section.key=value`, on top of the recipe.
        measure: measure this machine for a few seconds. Without it the plan has no time.
        on_event: called with progress, and with notes on the data.

    Raises:
        UserError: the recipe, its data or its model cannot be read, or training would refuse the recipe.
    """
    settings = recipes.load_recipe(recipe, overrides)
    found = find_model(settings.model.path)
    machine = Machine.here(settings.model)
    examples = _examples(settings, found, on_event)
    measured = None
    if measure:
        with counting(on_event, "measuring this machine"):
            measured = speed.measure(found.shape, machine.device, machine.dtype)
    return estimate(settings, found, examples, machine, speed=measured)


def _examples(recipe: Recipe, found: FoundModel, on_event: OnEvent) -> Examples:
    """Count the recipe's data, or assume some when there are none to count."""
    if not recipe.data.train:
        return Examples.assumed(recipe)
    try:
        vocabulary = vocabulary_of(found.folder)
    except UserError as error:
        return Examples.assumed(recipe, f"there is no tokenizer to count with ({error.what})")
    with counting(on_event, "counting tokens", unit="MB") as advance:
        prepared = prepare(
            recipe.data, vocabulary, recipe.train.seed,
            workers=usable_cores(), progress=lambda count: advance(count / 1e6),
        )  # fmt: skip
    for line in prepared.remarks():
        on_event(Note(level="info", message=line))
    with counting(on_event, "looking for shared prefixes"):
        saving = epoch_saving(recipe.train, recipe_obstacles(recipe), prepared.train)
    return Examples.counted(prepared.train, prepared.validation, saving)


def examine_machine() -> Iterator[Check]:
    """Yield what is right and wrong with this machine, one check after the other, each with a reason and a remedy."""
    return doctor.examine()
