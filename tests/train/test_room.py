"""A full disk: training waits for room and loses nothing, or saves its newest state elsewhere."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from ossia import events, files, runs
from ossia.adapters import apply as lora
from ossia.adapters.config import WEIGHTS_FILE
from ossia.checkpoint.tiny import MICRO, write_tiny
from ossia.errors import OssiaError
from ossia.train.room import Room, is_full
from ossia.train.supervised import train
from support.train_samples import examples, losses, recipe

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "micro", MICRO, seed=0)


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSSIA_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(Room, "poll_seconds", 0.01)


class Disk:
    """A disk that is full from some step's checkpoint, or some event, on, until it was asked for room three times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
        self.asked = 0
        save, save_state, write = lora.save_adapter, torch.save, events.EventLog.write

        def adapter(model: Any, folder: Path) -> None:
            save(model, folder)
            if where == "adapter" and "000004" in folder.name and self.asked < 3 and "elsewhere" not in str(folder):
                raise FULL

        def state(what: Any, path: Any, *rest: Any) -> None:
            save_state(what, path, *rest)
            if where == "state" and "000004" in str(path) and self.asked < 3:
                raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 640 vs 534")

        def event(log: events.EventLog, event: events.Event) -> None:
            if where == "events" and getattr(event, "step", 0) == 4 and self.asked < 3:
                with log.path.open("ab") as file:
                    file.write(b'{"kind": "st')
                raise FULL
            write(log, event)

        def free(folder: Path) -> int:
            self.asked += 1
            return 0 if self.asked < 3 else 1 << 40

        monkeypatch.setattr(lora, "save_adapter", adapter)
        monkeypatch.setattr(torch, "save", state)
        monkeypatch.setattr(events.EventLog, "write", event)
        monkeypatch.setattr(files, "free_bytes", free)


def trained(model: Path, **settings: Any) -> tuple[runs.Run, list[str]]:
    wanted = recipe(model, steps=6, checkpoint_every=2, keep_checkpoints=9)
    run, said = runs.create(wanted, "test"), []

    def hear(event: events.Event) -> None:
        if isinstance(event, events.Note):
            said.append(event.message)

    train(wanted, run, examples(8), [], watch=hear, **settings)
    return run, said


@pytest.mark.parametrize("where", ["adapter", "state", "events"])
def test_training_waits_until_there_is_room_and_nothing_is_lost(
    model: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    undisturbed, _ = trained(model)
    disk = Disk(monkeypatch, where)
    run, said = trained(model)
    assert disk.asked >= 3
    (message,) = (line for line in said if "the disk is full" in line)
    assert str(run.path) in message
    assert "MB" in message
    assert losses(run) == losses(undisturbed)
    assert run.steps() == [2, 4, 6]
    last, other = (one.checkpoint(6) / WEIGHTS_FILE for one in (run, undisturbed))
    assert last.read_bytes() == other.read_bytes()


def test_ctrl_c_ends_the_waiting(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Disk(monkeypatch, "adapter")
    asked = []

    def free(folder: Path) -> int:
        asked.append(folder)
        if len(asked) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return 0

    monkeypatch.setattr(files, "free_bytes", free)
    with pytest.raises(OssiaError, match="waited for room"):
        trained(model)
    (run,) = runs.root().glob("*_t_*")
    assert runs.Run(run).steps() == [2]


def test_the_newest_state_goes_to_the_spare_folder_and_comes_back(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    undisturbed, _ = trained(model)
    wanted = recipe(model, steps=6, checkpoint_every=2, keep_checkpoints=9, spare_folder=str(tmp_path / "elsewhere"))
    run = runs.create(wanted, "test")
    with monkeypatch.context() as patch:
        Disk(patch, "adapter")
        with pytest.raises(OssiaError, match="step 4 was saved elsewhere") as ended:
            train(wanted, run, examples(8), [])
    saved = tmp_path / "elsewhere" / run.id / "checkpoints" / "step-000004"
    assert f"mv {saved} {run.checkpoints}/" in (ended.value.do or "")
    assert run.steps() == [2]
    shutil.move(saved, run.checkpoints)
    assert train(wanted, run, examples(8), []).status == "done"
    assert losses(run) == losses(undisturbed)
    last, other = (one.checkpoint(6) / WEIGHTS_FILE for one in (run, undisturbed))
    assert last.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (FULL, True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos"), True),
        (RuntimeError("shape mismatch"), False),
        (json.JSONDecodeError("x", "y", 0), False),
    ],
)
def test_a_full_disk_is_known_by_number_or_words(error: Exception, full: bool) -> None:
    assert is_full(error) is full
