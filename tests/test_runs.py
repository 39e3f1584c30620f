"""Tests of run folders: finding by any part of their name, summaries from events, and listing with an index."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

from ossia import events, runs
from ossia.config import Recipe
from ossia.errors import UserError
from ossia.runs import Run


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OSSIA_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def make(name: str = "demo", *written: events.Event) -> Run:
    run = runs.create(Recipe(name=name), "ossia train demo")
    for event in written:
        run.log().write(event)
    return run


def started(pid: int) -> events.Started:
    return events.Started(command="", pid=pid, total_steps=5, examples=1, validation_examples=0, trained_tokens=1)


def step(number: int, loss: float) -> events.Step:
    return events.Step(step=number, loss=loss, learning_rate=0.1, grad_norm=1.0, tokens=5, seconds=0.1)


def finished(status: str, number: int) -> events.Finished:
    return events.Finished(status=status, reason="", step=number)


def test_create_writes_recipe_and_environment() -> None:
    recipe = Recipe.model_validate({"name": "a.b", "train": {"learning_rate": 1e-5}})
    run = runs.create(recipe, "ossia train x")
    assert run.recipe() == recipe
    assert "_a.b_" in run.id
    environment = json.loads((run.path / "environment.json").read_text())
    assert environment["command"] == "ossia train x"
    assert {"torch", "transformers", "peft"} <= set(environment["versions"])


def test_find_by_folder_id_part_and_last(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = make("apple"), make("pear")
    os.utime(first.path / "recipe.yaml", (1, 1))
    for reference in (str(first.path), first.id, "apple", first.id[:-4], first.id[-4:]):
        assert runs.find_run(reference).path.samefile(first.path)
    assert runs.find_run("last").id == second.id


def test_find_says_what_it_found(root: Path) -> None:
    with pytest.raises(UserError, match="no single run matches 'last'"):
        runs.find_run("last")
    first, second = make("apple"), make("apple")
    with pytest.raises(UserError) as error:
        runs.find_run("apple")
    assert first.id in str(error.value)
    assert second.id in str(error.value)
    with pytest.raises(UserError) as error:
        runs.find_run("plum")
    assert "none" in str(error.value)
    assert error.value.where == str(root)


def test_an_exact_id_wins_over_longer_ones() -> None:
    run = make("apple")
    longer = run.path.with_name(run.id + "x")
    longer.mkdir()
    (longer / "recipe.yaml").write_text("name: apple")
    assert runs.find_run(run.id).id == run.id


def test_summary_of_a_run() -> None:
    run = make("demo", started(os.getpid()), step(1, 3.0), step(2, 2.0))
    run.log().write(events.Validation(step=1, loss=2.5, channels={}, best=True))
    run.log().write(events.Validation(step=2, loss=2.75, channels={}, best=False))
    assert run.summary().status == "running"
    run.log().write(finished("done", 2))
    summary = run.summary()
    assert (summary.status, summary.step, summary.total_steps) == ("done", 2, 5)
    assert (summary.loss, summary.best_validation) == (2.0, 2.5)
    assert make("empty").summary().status == "no events"


def test_a_killed_process_shows_as_interrupted() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    run = make("demo", started(child.pid), step(1, 3.0))
    assert [row.status for row in runs.list_runs()] == ["running"]
    child.send_signal(signal.SIGKILL)
    while Path(f"/proc/{child.pid}/stat").is_file() and ") Z " not in Path(f"/proc/{child.pid}/stat").read_text():
        time.sleep(0.01)
    # The process is first a zombie and then gone. The events did not change, but the status did.
    assert run.summary().status == "interrupted"
    child.wait()
    assert [row.status for row in runs.list_runs()] == ["interrupted"]


def test_a_later_process_with_the_same_number_is_not_the_run() -> None:
    long_ago = events.Started(
        time=1.0, command="", pid=os.getpid(), total_steps=5, examples=1, validation_examples=0, trained_tokens=1
    )
    assert make("demo", long_ago).summary().status == "interrupted"


def test_resumed_run_is_running_again() -> None:
    run = make("demo", started(os.getpid()), step(1, 3.0), finished("stopped", 1))
    assert run.summary().status == "stopped"
    run.log().write(started(os.getpid()))
    run.log().write(events.Resumed(step=1))
    assert run.summary().status == "running"


def test_a_validation_loss_that_is_not_a_number_spoils_neither_summary_nor_listing() -> None:
    def validation(number: int, loss: float) -> events.Validation:
        return events.Validation(step=number, loss=loss, channels={"final": loss}, best=False)

    run = make("demo", started(os.getpid()), validation(1, 2.0), validation(2, float("nan")))
    assert run.summary().best_validation == 2.0
    assert [row.status for row in runs.list_runs()] == ["running"]
    done = subprocess.run([sys.executable, "-m", "ossia", "runs", "show", run.id], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "validation loss 2.0000" in done.stdout


def test_a_run_that_cannot_be_made_is_the_users_error(root: Path) -> None:
    root.parent.mkdir(parents=True, exist_ok=True)
    root.write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot be made"):
        runs.create(Recipe(), "test")


def test_listing_is_newest_first_and_empty_without_runs() -> None:
    assert runs.list_runs() == []
    first, second = make("apple"), make("pear")
    os.utime(first.path / "recipe.yaml", (1, 1))
    assert [row.id for row in runs.list_runs()] == [second.id, first.id]


def test_listing_reads_only_what_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = make("apple", started(1), finished("done", 1)), make("pear", finished("done", 1))
    before = runs.list_runs()
    read: list[Path] = []
    original = events.read
    monkeypatch.setattr(events, "read", lambda folder: read.append(folder) or original(folder))
    assert runs.list_runs() == before
    assert read == []
    second.log().write(step(7, 1.0))
    assert {row.id: row.step for row in runs.list_runs()} == {first.id: 0, second.id: 7}
    assert read == [second.path]


def index(root: Path) -> Path:
    return root / "index.sqlite"


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b"no database at all" * 100),
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        lambda path: path.write_bytes(b""),
    ],
    ids=["deleted", "overwritten", "cut", "emptied"],
)
def test_index_is_rebuilt(root: Path, damage: object) -> None:
    make("apple", step(1, 2.0), finished("done", 1))
    before = runs.list_runs()
    damage(index(root))  # type: ignore[operator]
    assert runs.list_runs() == before
    assert runs.list_runs() == before


def test_rows_of_another_version_are_read_anew(root: Path) -> None:
    make("apple", finished("done", 1))
    before = runs.list_runs()
    with sqlite3.connect(index(root)) as database:
        database.execute('update runs set summary = \'{"id": "x", "colour": 1}\'')
    database.close()
    assert runs.list_runs() == before


def test_deleted_runs_leave_the_listing(root: Path) -> None:
    run, other = make("apple"), make("pear")
    assert len(runs.list_runs()) == 2
    run.path.rename(root.parent / "elsewhere")
    assert [row.id for row in runs.list_runs()] == [other.id]


def test_a_damaged_run_does_not_hide_the_others() -> None:
    good, torn, odd = make("good", finished("done", 1)), make("torn"), make("odd")
    (torn.path / events.FILE).write_text('{"kind": "unheard-of"}\n')
    (odd.path / "recipe.yaml").write_text("no: recipe")
    assert {row.id: row.status for row in runs.list_runs()} == {good.id: "done", torn.id: "damaged", odd.id: "damaged"}


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_listing_works_where_nothing_can_be_written(root: Path) -> None:
    run = make("apple", finished("done", 1))
    root.chmod(0o555)
    try:
        assert [row.id for row in runs.list_runs()] == [run.id]
    finally:
        root.chmod(0o755)


def test_listing_without_an_index(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("unable to open database file")

    run = make("apple", finished("done", 1))
    monkeypatch.setattr(sqlite3, "connect", refuse)
    assert [row.id for row in runs.list_runs()] == [run.id]


def test_checkpoints() -> None:
    run = make()
    with pytest.raises(UserError, match="no checkpoint"):
        run.best_checkpoint()
    for name in ("step-000010", "step-000020", "step-000030.partial", "other"):
        (run.checkpoints / name).mkdir(parents=True)
        (run.checkpoints / name / "adapter_config.json").touch()
    for name in ("step-000040", "step-²", "step-"):
        (run.checkpoints / name).mkdir()
    assert run.steps() == [10, 20]
    assert run.best_checkpoint() == run.checkpoint(20)
    (run.checkpoints / runs.BEST).write_text('{"step": 10}')
    assert run.best_checkpoint() == run.checkpoint(10)
    for text in ('{"step": 99}', "{", "{}"):
        (run.checkpoints / runs.BEST).write_text(text)
        assert run.best_checkpoint() == run.checkpoint(20)


def test_a_source_tree_that_is_not_installed_has_a_version_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    assert runs.ossia_version()[0].isdigit()
    monkeypatch.setattr(metadata, "version", missing)
    assert runs.ossia_version() == "from source"
    assert runs.environment("test")["versions"] == {}


def test_last_is_the_run_that_was_last_begun_or_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = make("old", started(1)), make("new", started(1))
    assert runs.find_run("last") == new
    os.utime(old.path / "recipe.yaml")  # touching a file is not a use
    assert runs.find_run("last") == new
    old.log().write(started(1))
    assert runs.find_run("last") == old
