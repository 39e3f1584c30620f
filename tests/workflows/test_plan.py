"""Tests of calling `ossia.workflows.plan` from Python. A plan is returned also if it does not fit."""

from __future__ import annotations

import json

import pytest

from ossia import hardware, recipes
from ossia.errors import DoesNotFitError, UserError
from ossia.events import Event, Note, Progress
from ossia.workflows.plan import examine_machine, plan


def test_a_plan_counts_the_data_and_says_so() -> None:
    seen: list[Event] = []
    result = plan("tiny-demo", measure=False, on_event=seen.append)
    assert result.examples.source.startswith("counted: ") and result.examples.tokens > 10_000
    assert result.model.folder is not None and result.recipe.name == "tiny-demo"
    assert (result.speed, result.seconds, result.time_range) == (None, None, None)
    notes = [event.message for event in seen if isinstance(event, Note)]
    assert notes and notes[0].startswith("read ")
    ends = [(event.title, event.unit) for event in seen if isinstance(event, Progress) and event.finished]
    assert ends == [("counting tokens", "MB"), ("looking for shared prefixes", "")]
    counted = next(event.done for event in seen if isinstance(event, Progress) and event.finished)
    assert 0.01 < counted < 10


def test_a_recipe_object_with_overrides_and_a_measured_machine() -> None:
    recipe = recipes.load_recipe("tiny-demo")
    seen: list[Event] = []
    changed = plan(recipe, overrides=["data.train=[]", "train.steps=7"], on_event=seen.append)
    assert changed.work.steps == 7 and recipe.train.steps == 100
    assert changed.examples.source.startswith("assumed")
    assert changed.speed is not None and changed.speed.flops > 0
    assert changed.seconds is not None and sum(changed.seconds.values()) > 0
    assert [event.title for event in seen if isinstance(event, Progress) and event.finished] == [
        "measuring this machine"
    ]
    read = json.loads(json.dumps(changed.as_dict()))
    assert read["speed"]["note"] == changed.speed.note and "model" not in read


def test_a_plan_that_does_not_fit_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "memory", lambda: hardware.Answer(2 * 10**9, "a small machine"))
    overrides = ["model.device=cpu", "model.dtype=bfloat16"]
    result = plan("gpt-oss-20b-lora", overrides=[*overrides, "data.train=[]"], measure=False)
    assert result.verdict == "does not fit" and "a small machine" in result.reasons[0]
    with pytest.raises(DoesNotFitError, match="does not fit"):
        result.require_fit()


def test_a_recipe_that_is_not_there_is_wrong_input() -> None:
    with pytest.raises(UserError, match="no recipe file"):
        plan("no-such-recipe")


def test_a_recipe_object_takes_overrides_like_a_file() -> None:
    recipe = recipes.load_recipe("tiny-demo", ["lora.rank=4"])
    assert recipes.load_recipe(recipe) is recipe
    again = recipes.load_recipe(recipe, ["train.learning_rate=1e-3"])
    assert (again.lora.rank, again.train.learning_rate) == (4, 1e-3)
    assert again.model_copy(update={"train": recipe.train}) == recipe
    with pytest.raises(UserError, match="did you mean steps"):
        recipes.load_recipe(recipe, ["train.stepps=1"])


def test_the_machine_is_examined() -> None:
    names = [check.name for check in examine_machine()]
    assert {"python", "torch"} <= set(names)
