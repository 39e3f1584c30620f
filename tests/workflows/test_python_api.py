"""Tests of Ossia's Python functions: after any imports, and all stages in one script."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ossia
from ossia import events, runs
from ossia.checkpoint.layout import bytes_of
from ossia.checkpoint.tiny import MICRO, write_tiny
from ossia.errors import UserError
from ossia.workflows import models
from ossia.workflows.train import TrainingPrepared

PIPELINE = Path(__file__).parents[2] / "examples" / "pipeline.py"
OWNERS = {
    "chat": "chat", "check": "data", "evaluate": "evaluate", "export": "export", "fetch": "models", "plan": "plan",
    "rehearse": "rehearse", "train": "train",
}  # fmt: skip
"""For each function of the package, its module in workflows."""
PACKAGES = ["evaluate", "export", "plan", "train"]
SMALL = ["train.steps=2", "train.samples=0", "train.evaluate_every=2", "eval.limit=4", "eval.max_new_tokens=8"]


def is_there(name: str) -> bool:
    """Return whether this tree has the workflow of a function."""
    return importlib.util.find_spec(f"ossia.workflows.{OWNERS[name]}") is not None


def fresh(*lines: str) -> str:
    """Return the output of a new interpreter that runs the lines."""
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", sorted(OWNERS))
def test_a_function_is_that_of_its_workflow(name: str) -> None:
    if not is_there(name):
        pytest.skip("this tree does not have the workflow")
    function = getattr(importlib.import_module(f"ossia.workflows.{OWNERS[name]}"), name)
    public = getattr(ossia, name)
    assert name in ossia.__all__ and name in dir(ossia) and callable(public)
    assert inspect.signature(public) == inspect.signature(function)
    if name not in PACKAGES:
        assert public is function


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("before", ["", "import ossia.{name}", "import ossia.workflows.{name}"])
def test_a_stage_is_called_whatever_was_imported(name: str, before: str) -> None:
    if not is_there(name):
        pytest.skip("this tree does not have the workflow")
    told = fresh(
        "import ossia",
        before.format(name=name),
        f"import ossia.workflows.{name} as w",
        f"w.{name} = lambda *given, **named: (given, named)",
        f"first = ossia.{name}; print(first(1, a=2))",
        f"from ossia import {name}; import ossia.{name}",
        f"print(first is ossia.{name} is {name}, ossia.{name}(3))",
    )
    assert told == "((1,), {'a': 2})\nTrue ((3,), {})\n"


@pytest.mark.parametrize("first", ["import ossia; ossia.train", "import ossia.train.supervised"])
def test_a_stage_is_called_before_and_after_its_modules_are_imported(first: str) -> None:
    told = fresh(
        first,
        "import ossia, ossia.errors",
        "for _ in range(2):",
        "    try: ossia.train()",
        "    except ossia.errors.UserError as error: print(error.what)",
        "    import ossia.train.supervised",
        "print(ossia.train.supervised.train.__module__)",
    )
    assert told == "name a recipe, or a run with --resume\n" * 2 + "ossia.train.supervised\n"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = ossia.nonsense  # type: ignore[attr-defined]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OSSIA_RUNS", str(tmp_path / "runs"))
    return tmp_path


def test_a_run_is_trained_resumed_and_exported(place: Path) -> None:
    heard: list[events.Event] = []
    done = ossia.train("tiny-demo", overrides=SMALL, command="a test", on_event=heard.append)
    assert (done.last.status, done.summary.step, done.is_main, done.is_interrupted) == ("done", 2, True, False)
    prepared = next(n for n, event in enumerate(heard) if isinstance(event, TrainingPrepared))
    started = next(n for n, event in enumerate(heard) if isinstance(event, events.Started))
    ready, begun = heard[prepared], heard[started]
    assert isinstance(ready, TrainingPrepared) and isinstance(begun, events.Started)
    assert prepared < started and begun.command == "a test" and ready.run == done.run.id
    assert (ready.examples, ready.validation_examples) == (begun.examples, begun.validation_examples)
    assert ready.tokens > ready.trained_tokens == begun.trained_tokens > 0 and ready.recipe == done.run.recipe()
    assert any(isinstance(event, events.Progress) and event.finished for event in heard[:prepared])
    assert [event for event in heard[started:] if event.kind in events.KINDS] == events.read(done.run.path)

    again = ossia.train(resume=done.run.path)
    assert (again.run, again.last.reason) == (done.run, "all steps done")
    progress: list[events.Event] = []
    made = ossia.export(done.run.checkpoint(2), to="adapter", out=str(place / "out"), on_event=progress.append)
    assert made.run is not None and made.run.id == done.run.id and made.path == place / "out"
    noted = events.read(done.run.path)[-1]
    assert isinstance(noted, events.Exported) and noted.target == "adapter"


def test_a_run_that_never_began_is_removed(place: Path) -> None:
    def stop(event: events.Event) -> None:
        if isinstance(event, TrainingPrepared):
            assert runs.find_run(event.run).path.is_dir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ossia.train("tiny-demo", on_event=stop)
    assert not list(runs.root().glob("*/"))


def test_what_cannot_be_trained_or_exported_is_said(place: Path) -> None:
    with pytest.raises(UserError, match="name a recipe"):
        ossia.train("tiny-demo", resume="last")
    with pytest.raises(UserError, match="keeps its settings"):
        ossia.train(resume="last", overrides=["train.steps=3"])
    with pytest.raises(UserError, match="no target"):
        ossia.export("last", to="nonsense")
    with pytest.raises(UserError, match="model without an adapter"):
        ossia.export(write_tiny(place / "tiny", MICRO))
    with pytest.raises(UserError, match="no run and no model 'nonsense'"):
        ossia.export("nonsense")


def test_models_tell_how_far_they_are(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ossia.plan import inputs

    monkeypatch.setitem(inputs.PUBLISHED_SHAPES, "gpt-oss-20b", MICRO)
    heard: list[events.Event] = []
    made = models.make_synthetic("gpt-oss-20b", "made", on_event=heard.append)
    assert (made.folder, made.bytes, made.repo) == (Path("made"), bytes_of(MICRO), None)
    told = [event for event in heard if isinstance(event, events.Progress)]
    assert len(told) == len(heard) >= 2 and {event.title for event in told} == {"writing gpt-oss-20b"}
    assert [event.finished for event in told] == [False] * (len(told) - 1) + [True]
    got = ossia.fetch("gpt-oss-20b", made.folder, offline=True)
    assert (got.folder, got.bytes, got.repo) == (made.folder, made.bytes, "openai/gpt-oss-20b")


def test_one_script_drives_the_whole_line(place: Path) -> None:
    assert len(PIPELINE.read_text().splitlines()) < 40
    if not is_there("plan"):
        pytest.skip("this tree does not have the workflow")
    done = subprocess.run(
        [sys.executable, str(PIPELINE), *SMALL],
        capture_output=True, text=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "fits: " in done.stdout and "step 2: loss" in done.stdout and "holds the tuned model" in done.stdout
    kinds = [event.kind for event in events.read(runs.find_run("last").path)]
    assert kinds[-2:] == ["evaluated", "exported"]
