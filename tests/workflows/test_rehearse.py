"""Tests of calling `ossia.workflows.rehearse` from Python: its result and its events."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import pytest

from ossia.checkpoint.layout import bytes_of
from ossia.checkpoint.reader import CheckpointReader
from ossia.checkpoint.tiny import TINY
from ossia.errors import UserError
from ossia.events import Event, Finished, Note, Progress, Started, Step
from ossia.workflows import rehearsal_disk
from ossia.workflows.rehearse import RehearsedModel, rehearse

CPU = ["model.device=cpu", "model.dtype=float32"]


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rehearsal_disk, "scratch_folder", lambda: tmp_path / "scratch")
    return tmp_path / "scratch"


def test_a_rehearsal_returns_what_it_reports(scratch: Path) -> None:
    seen: list[Event] = []
    result = rehearse("tiny", steps=2, tokens=128, sequence=64, overrides=CPU, on_event=seen.append)
    assert result.folder == scratch / "tiny" and result.recipe.name == "tiny"
    assert result.steps == [event for event in seen if isinstance(event, Step)] and len(result.steps) == 2
    assert not result.stopped and result.load_seconds > 0 and result.plan.speed == result.speed
    assert result.tokens_per_second == pytest.approx(128 / result.steps[1].seconds)
    assert [path.name for path in scratch.iterdir()] == ["tiny"]
    # The order of the events, with each progress once.
    titles = [event.title if isinstance(event, Progress) else type(event).__name__ for event in seen]
    order = [title for title, _ in groupby(title for title in titles if title != "Note")]
    assert order[: order.index("Started") + 1] == [
        "RehearsedModel",
        "writing tiny",
        "measuring this machine, loading the model",
        "loading the model",
        "Started",
    ]
    assert isinstance(seen[-1], Finished) and sum(isinstance(event, Started) for event in seen) == 1
    writing = [event for event in seen if isinstance(event, Progress) and event.title == "writing tiny"]
    assert writing[-1].finished and writing[-1].unit == "MB"
    assert writing[-1].done * 1e6 == pytest.approx(bytes_of(TINY))
    announced = next(event for event in seen if isinstance(event, RehearsedModel))
    assert announced.folder == result.folder and not announced.is_here and announced.needed > bytes_of(TINY)
    # The model stays, and the next rehearsal uses it.
    seen.clear()
    again = rehearse("tiny", folder=str(result.folder), steps=1, tokens=64, sequence=64, targets=["attention"],
                     rank=4, overrides=CPU, on_event=seen.append)  # fmt: skip
    assert isinstance(seen[0], RehearsedModel) and seen[0].is_here and seen[0].needed < bytes_of(TINY) / 10
    assert not any(isinstance(event, Progress) and event.title == "writing tiny" for event in seen)
    assert (again.recipe.lora.targets, again.recipe.lora.rank) == (["attention"], 4)


def test_wrong_arguments_write_nothing(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no target 'router'"):
        rehearse("tiny", targets=["router"])
    with pytest.raises(UserError, match="no such setting"):
        rehearse("tiny", overrides=["data.max_tokens=64"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="one process"):
        rehearse("tiny")
    assert not scratch.exists()


def test_an_interrupted_writing_is_told(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rehearsal_disk, "write_random_model", interrupted)
    seen: list[Event] = []
    with pytest.raises(KeyboardInterrupt):
        rehearse("tiny", tokens=64, sequence=64, overrides=CPU, on_event=seen.append)
    assert isinstance(seen[-1], Note) and "the same command continues it" in seen[-1].message


def test_the_random_model_is_complete(tmp_path: Path) -> None:
    rehearsal_disk.write_random_model("tiny", tmp_path / "m", TINY)
    CheckpointReader(tmp_path / "m").check(TINY)
    assert rehearsal_disk.missing_bytes(tmp_path / "m", TINY) == 0
