"""Tests of several processes on CPUs over gloo: the losses of one process, sharding, and resuming after a kill."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.torch_version import TorchVersion

from ossia import events, runs
from ossia.adapters.config import WEIGHTS_FILE
from ossia.checkpoint.tiny import MICRO, write_tiny
from ossia.errors import UserError
from ossia.train import fsdp
from ossia.train.supervised import train
from support.train_samples import EVERY_TARGET, SHARDS, examples, losses, recipe

STEPS, CLIP = 6, 0.1

JOB = """
import json, os, signal, sys
from pathlib import Path

sys.path.insert(0, os.environ["TESTS"])
import torch
from ossia import events, runs
from ossia.generate.engine import Request
from ossia.generate.native import SerialEngine
from ossia.train import session, supervised
from ossia.train.distributed import leave
from ossia.train.trainer import OssiaTrainer
from support.train_samples import examples

settings = json.loads(sys.argv[2])
seen = {"micro_batches": []}


class Observed(OssiaTrainer):
    def training_step(self, model, inputs, *rest):
        seen["micro_batches"].append(len(inputs["micro_batches"]))
        if self.state.global_step == 1:
            packed = [p for p in model.parameters() if p.dtype == torch.uint8]
            seen["bytes"] = sum((p.to_local() if hasattr(p, "to_local") else p).nbytes for p in packed)
            seen["all_bytes"] = sum(p.numel() for p in packed)
            asked = [Request(prompt=prompt, max_new_tokens=8) for prompt in ((5, 7, 9), (40, 42))]
            seen["said"] = [done.ids for done in SerialEngine(self.model).complete(asked)]
        if self.state.global_step == settings.get("poison_at") and self.args.process_index == 0:
            inputs["micro_batches"][-1]["weights"] *= float("nan")
        return super().training_step(model, inputs, *rest)


def kill(event):
    if isinstance(event, events.Step) and event.step == settings.get("kill_at"):
        os.kill(os.getpid(), signal.SIGKILL)


session.OssiaTrainer = Observed
run = runs.Run(Path(sys.argv[1]))
try:
    supervised.train(run.recipe(), run, examples(25), examples(5, seed=1), watch=kill)
finally:
    (run.path / f"seen-{os.environ.get('RANK', 0)}.json").write_text(json.dumps(seen))
leave()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "micro", MICRO, seed=0)


@pytest.fixture(scope="module", autouse=True)
def runs_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OSSIA_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield


def created(model: Path, sharding: str = "none", recompute: bool = True, every: bool = False) -> runs.Run:
    """Return a new run. With `every`, adapters are on every target.

    Then the run has no balance loss, because that depends on the composition of micro-batches.
    """
    settings = {"balance_loss": 0.0} if every else {}
    wanted = recipe(
        model, EVERY_TARGET if every else None, steps=STEPS, examples_per_step=8, checkpoint_every=2,
        max_grad_norm=CLIP, sharding=sharding, recompute=recompute, **settings,
    )  # fmt: skip
    return runs.create(wanted, "test")


def job(run: runs.Run, processes: int, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Train a run in `processes` processes."""
    script = run.path / "job.py"
    script.write_text(JOB)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={port}"]
    environment = {**os.environ, "TESTS": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *(launch if processes > 1 else []), str(script), str(run.path), json.dumps(settings)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)


@functools.cache
def trained(
    model: Path, processes: int, sharding: str = "none", recompute: bool = True, every: bool = False
) -> runs.Run:
    """Return a run that was trained to its end without an interruption."""
    run = created(model, sharding, recompute, every)
    done = job(run, processes)
    assert done.returncode == 0, done.stderr[-4000:]
    return run


def seen(run: runs.Run, rank: int) -> dict[str, Any]:
    return dict(json.loads((run.path / f"seen-{rank}.json").read_text()))


def adapter(run: runs.Run, step: int = STEPS) -> dict[str, torch.Tensor]:
    return dict(load_file(run.checkpoint(step) / WEIGHTS_FILE))


def validations(run: runs.Run) -> list[float]:
    return [event.loss for event in events.read(run.path) if isinstance(event, events.Validation)]


@pytest.mark.parametrize(
    ("sharding", "recompute", "every"),
    [
        ("none", True, True),
        *(pytest.param("fsdp", *rest, marks=SHARDS) for rest in [(True, False), (True, True), (False, False)]),
    ],
)
def test_two_processes_have_the_losses_of_one(model: Path, sharding: str, recompute: bool, every: bool) -> None:
    one = trained(model, 1, every=every)
    two = trained(model, 2, sharding, recompute, every)
    assert list(losses(two)) == list(losses(one)) == list(range(1, STEPS + 1))
    assert max(abs(losses(two)[step] - loss) for step, loss in losses(one).items()) < 1e-5
    assert validations(two) == pytest.approx(validations(one), abs=1e-5)
    norms = [[step.grad_norm for step in events.read(run.path) if isinstance(step, events.Step)] for run in (one, two)]
    assert min(norms[0]) > CLIP  # so all gradients were clipped, by their common norm
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    mine, other = adapter(two), adapter(one)
    assert mine.keys() == other.keys()
    assert all(torch.allclose(mine[name], other[name], atol=2e-4) for name in mine)
    # The processes had different numbers of micro-batches (step 4 has one example), and they generate the same tokens.
    assert seen(two, 0)["micro_batches"] != seen(two, 1)["micro_batches"]
    assert seen(two, 0)["said"] == seen(two, 1)["said"] == seen(one, 0)["said"]


@SHARDS
def test_experts_are_shared_out_and_the_load_is_that_of_all(model: Path) -> None:
    one, two = trained(model, 1), trained(model, 2, "fsdp")
    for rank in (0, 1):
        assert seen(two, rank)["bytes"] * 2 == seen(two, rank)["all_bytes"] == seen(one, 0)["bytes"]
    routing = [[event for event in events.read(run.path) if isinstance(event, events.Routing)] for run in (one, two)]
    assert [event.step for event in routing[0]] == [4, 6]
    for mine, other in zip(*routing, strict=True):
        assert mine.tokens == other.tokens > 0
        assert torch.tensor(mine.load) == pytest.approx(torch.tensor(other.load), abs=2e-3)
        assert mine.drift == pytest.approx(other.drift, abs=2e-3)


@pytest.mark.parametrize(("processes", "sharding"), [(1, "none"), pytest.param(2, "fsdp", marks=SHARDS)])
def test_a_killed_run_continues_bit_for_bit(model: Path, processes: int, sharding: str) -> None:
    whole, broken = trained(model, processes, sharding, every=True), created(model, sharding, every=True)
    done = job(broken, processes, kill_at=4)
    assert done.returncode in (-signal.SIGKILL, 1), done.stderr[-4000:]
    assert broken.steps() == [2]
    done = job(broken, processes)
    assert done.returncode == 0, done.stderr[-4000:]
    assert any(isinstance(event, events.Resumed) for event in events.read(broken.path))
    assert losses(broken) == losses(whole)
    assert validations(broken) == validations(whole)
    mine, other = adapter(broken), adapter(whole)
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in mine)


@SHARDS
def test_a_loss_that_is_not_finite_in_one_process_stops_all(model: Path) -> None:
    run = created(model, "fsdp")
    done = job(run, 2, poison_at=3)
    assert done.returncode == 1
    last = events.read(run.path)[-1]
    assert isinstance(last, events.Finished)
    assert (last.status, "the loss of step 4 is nan" in last.reason) == ("failed", True)
    assert run.steps() == [2]


def test_sharding_in_one_process_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", TorchVersion(fsdp.OLDEST_TORCH))
    wanted = recipe(model, sharding="fsdp")
    with pytest.raises(UserError, match="a job of one process"):
        train(wanted, runs.create(wanted, "test"), examples(8), [])
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="Ossia shards the model itself"):
        train(wanted, runs.create(wanted, "test"), examples(8), [])


@pytest.mark.parametrize("version", ["2.11.0+cu130", "2.12.0a0", "2.9.1"])
def test_a_torch_that_cannot_shard_bytes_is_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    wanted = recipe(tmp_path / "there is no such model", sharding="fsdp")
    with pytest.raises(UserError, match=re.escape(version)) as refused:
        train(wanted, runs.create(wanted, "test"), examples(8), [])
    assert "require gradients" in (refused.value.why or "") and "torch>=2.12" in (refused.value.do or "")


@pytest.mark.parametrize("version", ["2.12.0+cu130", "2.13.0+cpu", "2.100"])
def test_a_torch_that_can_is_not_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    refused = []
    try:
        fsdp.require_torch()
    except UserError as error:
        refused.append(error)
    assert not refused
