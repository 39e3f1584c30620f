"""Tests of all stages through the command line, in new processes, on the tiny model that comes with Ossia."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import GptOssForCausalLM

from ossia import events, runs
from ossia.cli import demo_

OSSIA = [sys.executable, "-m", "ossia"]
SMALL = ["train.evaluate_every=3", "train.checkpoint_every=2", "train.sample_tokens=8", "eval.limit=6"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, which also holds the runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OSSIA_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    return tmp_path


def ossia(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*OSSIA, *arguments], capture_output=True, text=True, timeout=280)
    assert done.returncode == code, f"{arguments} gave {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert "Traceback" not in done.stderr
    return done


def sets(*overrides: str) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


def losses(run: runs.Run) -> dict[int, float]:
    return {event.step: event.loss for event in events.read(run.path) if isinstance(event, events.Step)}


def test_the_demo_runs_the_whole_line(place: Path) -> None:
    done = ossia("demo", *sets("train.steps=4", "eval.max_new_tokens=24", *SMALL))
    story = done.stdout
    for number in range(1, 8):
        assert f"{number}/7" in story
    assert "«<|channel|>analysis<|message|>" in story  # without colour, the mask is text
    assert "thought language" in story and "answer language" in story
    run = runs.find_run("last")
    (measured,) = run.path.glob("evals/*.json")
    report = json.loads(measured.read_text())
    assert report["complete"] is True
    assert len(report["questions"]) == 6
    assert all({"base", "tuned"} <= question.keys() for question in report["questions"])
    (exported,) = [path for path in (run.path / "exports").iterdir() if path.is_dir()]
    _, loading = GptOssForCausalLM.from_pretrained(exported, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    kinds = [event.kind for event in events.read(run.path)]
    assert kinds[0] == "started" and {"step", "validation", "sample", "checkpoint", "evaluated", "exported"} <= {*kinds}
    listed = json.loads(ossia("runs", "ls", "--json").stdout)
    assert [(row["id"], row["status"], row["step"]) for row in listed] == [(run.id, "done", 4)]


def test_a_run_killed_in_the_middle_continues_exactly(place: Path) -> None:
    settings = sets("train.steps=10", "train.samples=0", "train.checkpoint_every=3", "train.evaluate_every=5")
    ossia("train", "tiny-demo", *settings, "--set", "name=whole")
    whole = runs.find_run("whole")

    process = subprocess.Popen(
        [*OSSIA, "train", "tiny-demo", *settings, "--set", "name=killed"], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        killed = next((path for path in runs.root().glob("*killed*") if path.is_dir()), None)
        if killed is not None and max(losses(runs.Run(killed)), default=0) >= 5:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.05)
    assert process.wait() == -signal.SIGKILL
    killed_run = runs.find_run("killed")
    reported = max(losses(killed_run))
    assert 5 <= reported < 10
    assert killed_run.summary().status == "interrupted"

    ossia("train", "--resume", "killed")
    assert losses(killed_run) == losses(whole)
    assert killed_run.summary().status == "done"
    assert killed_run.summary().best_validation == whole.summary().best_validation
    resumed = [event for event in events.read(killed_run.path) if isinstance(event, events.Resumed)]
    assert [event.step for event in resumed] == [3]


def test_ctrl_c_ends_with_a_checkpoint_and_resume_goes_on(place: Path) -> None:
    settings = sets("train.steps=30", "train.samples=0", "train.checkpoint_every=1000", "train.evaluate_every=1000")
    process = subprocess.Popen(
        [*OSSIA, "train", "tiny-demo", *settings], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        started = [path.parent for path in runs.root().glob("*/events.jsonl")]
        if started and max(losses(runs.Run(started[0])), default=0) >= 2:
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.05)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "stopped at step" in out
    assert "--resume" in err
    run = runs.find_run("last")
    stopped = run.steps()[-1]
    assert 2 <= stopped < 30
    assert run.summary().status == "stopped"


def test_a_start_that_fails_leaves_no_run(place: Path) -> None:
    done = ossia("train", "tiny-demo", *sets("lora.start_from=nowhere"), code=2)
    assert "not an adapter" in done.stderr
    assert not list(runs.root().glob("*/recipe.yaml"))


def test_an_interrupted_demo_says_so_and_goes_on(place: Path) -> None:
    process = subprocess.Popen([*OSSIA, "demo"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        started = [path.parent for path in runs.root().glob("*/events.jsonl")]
        if started and max(losses(runs.Run(started[0])), default=0) >= 1:
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.05)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "the demo stops here" in err
    stopped = runs.find_run("last")
    assert stopped.summary().status == "stopped"
    # A run that a person made of the same recipe is not the demo's, however new it is.
    own = runs.create(stopped.recipe(), "ossia train tiny-demo")
    assert demo_._unfinished() == stopped
    stopped.log().write(events.Finished(status="done", reason="all steps done", step=100))
    assert demo_._unfinished() == stopped, "it was not evaluated and exported yet"
    stopped.log().write(events.Exported(path="there", target="hf"))
    assert demo_._unfinished() is None
    assert demo_._is_ours(stopped) and not demo_._is_ours(own)


def test_a_launched_job_is_one_run_that_its_processes_share(place: Path) -> None:
    """accelerate's launcher for several processes is torchrun for GPUs. On CPUs the test uses torchrun itself."""
    settings = sets("train.steps=2", "train.samples=0", "train.evaluate_every=2", "train.checkpoint_every=2")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    done = subprocess.run(
        [*launch, "ossia", "train", "tiny-demo", *settings], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (run,) = (runs.Run(path.parent) for path in runs.root().glob("*/recipe.yaml"))
    kinds = [event.kind for event in events.read(run.path)]
    assert kinds == ["started", "note", "note", "step", "step", "routing", "validation", "checkpoint", "finished"]
    assert done.stdout.count("done at step 2") == 1
    assert len(list(run.checkpoint(2).glob("rng_state_*.pth"))) == 2


def test_accelerate_launch_runs_the_command(place: Path) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--mixed_precision", "no", "-m", "ossia"]
    done = subprocess.run(
        [*launch, "train", "tiny-demo", *sets("train.steps=1", "train.samples=0")],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert runs.find_run("last").summary().status == "done"
