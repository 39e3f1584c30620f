"""Killed trainings: SIGKILL and SIGTERM at random moments, and a full disk, lose nothing that a checkpoint held.

A chunk is one training of a micro model in one or two processes of its own, in float32 or bfloat16. It is disturbed
at a random moment and then resumed. The moment is in start-up, steps, validation, a checkpoint or at the end. All
losses and the bytes of the last adapter must be those of an undisturbed training.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from ossia import recipes, runs
from ossia.adapters.config import WEIGHTS_FILE
from ossia.checkpoint.tiny import MICRO, write_tiny
from support.train_samples import losses, recipe

KILLS, TERMINATIONS, FULL_DISKS = 100, 20, 10
CHUNKS = KILLS + TERMINATIONS + FULL_DISKS
PROCESSES = 1
"""At a time: each chunk starts processes of its own, and its moments are chosen by the clock."""
STEPS = 24
LONGEST_SECONDS = 240

JOB = """
import os, sys
from pathlib import Path
from ossia import files, runs
from ossia.train import supervised
from ossia.train.distributed import leave
from support.train_samples import examples

full = int(os.environ.get("FULL_UNTIL_CALL", "0"))
if full:  # the disk has no room for the checkpoint of step 8 until somebody has looked a few times
    import errno
    from ossia.adapters import apply as lora
    from ossia.train.room import Room
    Room.poll_seconds = 0.05
    calls, save = [], lora.save_adapter
    def save_adapter(model, folder):
        save(model, folder)
        if "000008" in folder.name and len(calls) < full:
            raise OSError(errno.ENOSPC, "No space left on device")
    def free_bytes(folder):
        calls.append(folder)
        return 0 if len(calls) < full else 1 << 40
    lora.save_adapter, files.free_bytes = save_adapter, free_bytes
run = runs.Run(Path(sys.argv[1]))
supervised.train(run.recipe(), run, examples(40), examples(6, seed=1))
leave()
"""


def run_chunk(number: int) -> dict[str, Any]:
    """Disturb one training and return what came of it."""
    processes, dtype = 1 + number % 2, ("float32", "bfloat16")[number // 2 % 2]
    way = "kill" if number < KILLS else "terminate" if number < KILLS + TERMINATIONS else "disk"
    whole, seconds = _undisturbed(processes, dtype)
    rng = random.Random(number)
    with tempfile.TemporaryDirectory() as folder:
        run = _created(Path(folder), processes, dtype)
        checkpoints = 0
        if way == "disk":
            done = _start(run, processes, FULL_UNTIL_CALL=str(rng.randint(2, 9))).wait(LONGEST_SECONDS)
            moment = "disk"
            if processes > 1:  # where others would run into a timeout, training ends instead of waiting
                assert done != 0
                done = _start(run, processes).wait(LONGEST_SECONDS)
        else:
            moment, checkpoints = _disturbed(run, processes, rng.uniform(0, 1.05) * seconds, way)
            done = _start(run, processes).wait(LONGEST_SECONDS)
        same_losses = losses(run) == whole["losses"]
        weights = run.checkpoint(STEPS) / WEIGHTS_FILE
        same_adapter = weights.is_file() and weights.read_bytes() == whole["adapter"]
        right = done == 0 and same_losses and same_adapter and (way != "terminate" or checkpoints >= 0)
        what = f"exit {done}, losses {same_losses}, adapter {same_adapter}"
        fault = f"{number}: {way}, {processes} processes, {dtype}, {moment}: {what}"
        return {
            f"{way}": 1,
            f"{way} identical": int(right),
            f"moment {moment}": 1,
            "faults": int(not right),
            "first": [] if right else [fault],
        }


def verdict(totals: dict[str, Any]) -> dict[str, Any]:
    """Passed where every resumed training is the undisturbed one."""
    return {"passed": totals["faults"] == 0, **{key: totals[key] for key in sorted(totals)}}


def _disturbed(run: runs.Run, processes: int, after: float, way: str) -> tuple[str, int]:
    """Send a signal to a training after so many seconds; return the moment in words, and the newest checkpoint."""
    process = _start(run, processes)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        before = max(losses(run), default=0)
        moment = "start-up" if not before else "steps"
        if list(run.checkpoints.glob("*.partial")):
            moment = "checkpoint"
        if way == "kill":  # a launcher starts its workers in sessions of their own
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            psutil.wait_procs(family)
        else:
            process.terminate()
        process.wait(LONGEST_SECONDS)
        steps = run.steps()
        if way == "terminate" and before and (not steps or steps[-1] < before):
            return f"{moment} without a checkpoint", -1
        return moment, steps[-1] if steps else 0
    return "end", STEPS


@functools.cache
def _undisturbed(processes: int, dtype: str) -> tuple[dict[str, Any], float]:
    """Return losses and adapter of an undisturbed training, and how long it takes in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        run = _created(Path(folder), processes, dtype)
        began = time.monotonic()
        assert _start(run, processes).wait(LONGEST_SECONDS) == 0
        seconds = time.monotonic() - began
        return {"losses": losses(run), "adapter": (run.checkpoint(STEPS) / WEIGHTS_FILE).read_bytes()}, seconds


def _created(folder: Path, processes: int, dtype: str) -> runs.Run:
    base = write_tiny(folder / "base", MICRO, seed=0)
    wanted = recipe(base, steps=STEPS, checkpoint_every=4, evaluate_every=5, keep_checkpoints=9)
    wanted = wanted.model_copy(update={"model": wanted.model.model_copy(update={"dtype": dtype})})
    path = folder / "run"
    path.mkdir()
    (path / "recipe.yaml").write_text(recipes.dump(wanted))
    return runs.Run(path)


def _start(run: runs.Run, processes: int, **environment: str) -> subprocess.Popen[bytes]:
    """Start a training as a process group of its own."""
    script = run.path / "job.py"
    script.write_text(JOB)
    command = [sys.executable, str(script), str(run.path)]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launch = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={port}"]
        command = [sys.executable, *launch, *command[1:]]
    tests = str(Path(__file__).parents[1])
    variables = {"PYTHONPATH": os.pathsep.join([*sys.path, tests]), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        command, env={**os.environ, **variables}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
