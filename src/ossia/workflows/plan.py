"""The workflows that plan a recipe on this machine, and examine the machine."""

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
    """Return the plan of a recipe: the memory, time and disk that it needs on this machine.

    A plan that does not fit is not an error. It has the verdict "does not fit", and `Plan.require_fit` raises.

    Args:
        recipe: a file, the name of a recipe that comes with Ossia, or a `Recipe`.
        overrides: `section.key=value`, applied to the recipe.
        measure: whether to measure this machine for a few seconds. Without a measurement the plan has no time.
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
    """Return the summary of the recipe's data. It is assumed if there are no data or no tokenizer."""
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
    """Yield the checks of this machine as they are done, each with its finding and a remedy."""
    return doctor.examine()
