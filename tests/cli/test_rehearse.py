"""Tests of `ossia rehearse` on the tiny model, through the command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ossia.__main__ import main
from ossia.checkpoint import synthetic
from ossia.checkpoint.layout import Shape
from ossia.checkpoint.reader import CheckpointReader
from ossia.checkpoint.tiny import MICRO, TINY, write_tiny
from ossia.errors import DoesNotFitError, UserError
from ossia.plan.peak import Memory, Peak, now
from ossia.plan.work import flops_per_token
from ossia.workflows import rehearsal_disk, rehearse

SMALL = ("--tokens", "256", "--sequence", "64", "--set", "model.device=cpu", "--set", "model.dtype=float32")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the random tiny model."""
    folder = tmp_path_factory.mktemp("rehearsal") / "tiny"
    rehearsal_disk.write_random_model("tiny", folder, TINY)
    return folder


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Direct the runs and models of rehearsals to an empty folder. The tokenizer stays in the session's cache."""
    monkeypatch.setattr(rehearsal_disk, "scratch_folder", lambda: tmp_path / "scratch")
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "scratch"


@pytest.fixture
def ossia(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str, code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["ossia", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        assert (end.value.code or 0) == code, err
        assert "Traceback" not in err
        return out, err

    return run


def test_a_rehearsal_measures_and_leaves_the_model_and_nothing_else(ossia: Any, scratch: Path) -> None:
    out, err = ossia("rehearse", "tiny", *SMALL, "--steps", "3", "--json")
    found = json.loads(out)
    folder = scratch / "tiny"
    assert "to be written to" in err and "of disk" in err
    CheckpointReader(folder).check(TINY)
    assert [path.name for path in scratch.iterdir()] == ["tiny"]
    assert found["folder"] == str(folder)
    assert [step["step"] for step in found["steps"]] == [1, 2, 3]
    assert [step["tokens"] for step in found["steps"]] == [256] * 3
    assert all(step["grad_norm"] > 0 for step in found["steps"])
    # The loss of a random model is the loss of a uniform guess.
    assert found["steps"][0]["loss"] == pytest.approx(torch.log(torch.tensor(201_088.0)).item(), rel=0.03)
    # The median over the steps after the first.
    speeds = sorted(step["tokens"] / step["seconds"] for step in found["steps"][1:])
    assert found["tokens_per_second"] == pytest.approx(sum(speeds) / 2)
    share = 26 / 64
    operations = flops_per_token(TINY, recompute=True, supervised=share)["training"]
    assert found["operations_per_token"] == pytest.approx(operations)
    matmul = found["matmul"]
    assert matmul["operations_per_second"] == max(matmul["before"], matmul["after"])
    reached = found["tokens_per_second"] * operations / matmul["operations_per_second"]
    assert found["share_of_matmul"] == (None if reached > 1 else pytest.approx(reached))
    assert found["recipe"]["lora"]["targets"] == ["attention", "experts"]
    assert (found["device"], found["dtype"], found["stopped"]) == ("cpu", "float32", False)
    assert found["load_seconds"] > 0
    assert found["plan"]["memory_needed"] == sum(line["bytes"] for line in found["plan"]["memory"])
    assert found["plan"]["tokens_per_second"] == pytest.approx(256 / found["plan"]["seconds_per_step"])
    if sys.platform == "linux":
        memory = found["memory"]
        assert memory["anonymous"] > 100e6 and memory["file_backed"] > 1e6
        assert max(memory["anonymous"], memory["file_backed"]) <= memory["resident"]


def test_what_is_printed(ossia: Any, tiny: Path) -> None:
    options = ("--targets", "attention", "--rank", "4", "--supervised", "1")
    out, err = ossia("rehearse", "openai/Tiny", "--folder", str(tiny), *SMALL, *options)
    assert f"the model in {tiny}" in err  # the existing model is used again
    assert "step 2/2" in err
    assert "2 steps of 256 tokens in sequences of 64, 98% supervised; LoRA on attention rank 4, " in out
    for row in ("loading", "a step", "tokens per second", "GFLOP/s in a large float32 matrix product", "AdamW"):
        assert row in out
    assert "measured just now on this machine" in out
    assert "experts rank" not in out
    assert "next: ossia rehearse gpt-oss-20b" in err


def test_settings_reach_the_training(ossia: Any, tiny: Path) -> None:
    sets = ("--set", "train.steps=1", "--set", "train.examples_per_step=2", "--set", "train.learning_rate=1e-3")
    out, _ = ossia("rehearse", "tiny", "--folder", str(tiny), *SMALL, *sets, "--expert-rank", "2", "--json")
    found = json.loads(out)
    assert [step["tokens"] for step in found["steps"]] == [128]
    assert found["steps"][0]["learning_rate"] == pytest.approx(1e-3)
    assert found["seconds_per_step"] == found["steps"][0]["seconds"]
    lora = found["recipe"]["lora"]
    assert (lora["expert_rank"], lora["expert_alpha"]) == (2, 4.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gpt-oss-20",), "did|try: ossia rehearse gpt-oss-20b"),
        (("llama",), "known: gpt-oss-20b, gpt-oss-120b, tiny"),
        (("tiny", "--targets", "atention"), "try: --targets attention"),
        (("tiny", "--targets", ","), "no target is named"),
        (("tiny", "--sequence", "8192"), "a sequence of 8192 tokens does not fit into a step of 4096"),
        (("tiny", "--set", "data.max_tokens=64"), "a rehearsal has no such setting"),
        (("tiny", "--set", "model.path=x"), "a rehearsal has no such setting"),
        (("tiny", "--set", "train.stepps=3"), "did you mean steps"),
        (("tiny", "--steps", "0"), "--steps"),
    ],
)
def test_wrong_input_ends_with_2(ossia: Any, scratch: Path, arguments: tuple[str, ...], message: str) -> None:
    import re

    _, err = ossia("rehearse", *arguments, code=2)
    assert re.search(message, err)
    assert not scratch.exists()


def test_folders_with_something_else_are_left_alone(ossia: Any, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    _, err = ossia("rehearse", "tiny", "--folder", str(tmp_path / "home"), code=2)
    assert "holds other files (letter.txt)" in err
    write_tiny(tmp_path / "micro", MICRO)
    _, err = ossia("rehearse", "tiny", "--folder", str(tmp_path / "micro"), code=2)
    assert "holds another model" in err
    _, err = ossia("rehearse", "tiny", "--folder", str(tmp_path / "home" / "letter.txt"), code=2)
    assert "not a folder" in err


def test_too_little_disk_is_said_before_anything_is_written(
    ossia: Any, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(scratch.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**7))
    _, err = ossia("rehearse", "tiny", *SMALL, code=3)
    assert "needs 0.1 GB of disk and 0.0 GB are free" in err
    assert not scratch.exists()


def test_too_little_memory_is_said_before_anything_is_written(
    ossia: Any, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ossia import hardware

    monkeypatch.setattr(hardware, "memory", lambda: hardware.Answer(2 * 10**9, "a small machine"))
    _, err = ossia("rehearse", "gpt-oss-20b", *SMALL, code=3)
    assert "does not fit" in err and "a small machine" in err and "fewer --tokens" in err
    assert not scratch.exists()


def test_the_plan_of_the_full_size_is_that_of_ossia_plan() -> None:
    """The memory of a 20b rehearsal from published figures: the weights, and four times 96 million parameters."""
    lora = {"targets": ["attention", "experts"], "rank": 16, "alpha": 32.0, "expert_rank": 8, "expert_alpha": 16.0}
    recipe = rehearse.recipe_of(
        "gpt-oss-20b", Path("x"), lora, steps=2, tokens=4096, sequence=512, overrides=["model.device=cpu"]
    )
    assert (recipe.train.examples_per_step, recipe.train.tokens_per_micro_batch) == (8, 2048)
    shape = Shape.GPT_OSS_20B
    examples = rehearse.random_examples(recipe, shape, 512, 0.4)
    assert len(examples) == 16
    assert sum(example.weights[0] for example in examples) == 0
    assert sum(sum(example.weights) for example in examples) == 16 * 205
    from ossia.plan import FoundModel

    plan = rehearse.plan_of(recipe, FoundModel("x", shape, Path(), shape.vocabulary), examples)
    sizes = {line.name: line.bytes for line in plan.memory}
    assert sizes["experts"] == pytest.approx(10.152e9, rel=1e-3)
    assert sizes["adapter"] == pytest.approx(4 * 96.4e6, rel=2e-3)
    assert rehearsal_disk.adapter_bytes(plan) == 3 * sizes["adapter"]


def test_an_interrupted_writing_goes_on(
    ossia: Any, scratch: Path, monkeypatch: pytest.MonkeyPatch, tokenizer_folder: Path
) -> None:
    """Ctrl-C stops the writing of the model. Complete shards are kept, and the next call writes the rest."""
    write = synthetic.write_synthetic

    def in_shards(folder: Path, shape: Shape, **options: Any) -> Path:
        return write(folder, shape, max_shard_bytes=60_000_000, **options)

    def interrupted(folder: Path, shape: Shape, **options: Any) -> Path:
        def stop(done: int, total: int, name: str) -> None:
            if name == "model.norm.weight":
                raise KeyboardInterrupt

        return in_shards(folder, shape, **options | {"progress": stop})

    monkeypatch.setattr(synthetic, "write_synthetic", interrupted)
    _, err = ossia("rehearse", "tiny", *SMALL, code=130)
    assert "the same command continues it" in err
    kept = [file.name for file in (scratch / "tiny" / ".partial").glob("*.safetensors")]
    assert kept == ["model-00001-of-00002.safetensors"]
    assert 50e6 < rehearsal_disk.missing_bytes(scratch / "tiny", TINY) < 56e6
    monkeypatch.setattr(synthetic, "write_synthetic", in_shards)
    ossia("rehearse", "tiny", *SMALL, "--steps", "1")
    CheckpointReader(scratch / "tiny").check(TINY)


def test_without_the_offline_vocabulary_the_model_has_no_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ossia.harmony.tokenizer import vocabulary

    def missing() -> Path:
        raise UserError("There is no tokenizer: the package bpe-openai is not installed")

    monkeypatch.setattr(vocabulary, "offline_tokenizer_folder", missing)
    rehearsal_disk.write_random_model("m", tmp_path / "m", TINY)
    assert not (tmp_path / "m" / "tokenizer.json").exists()
    assert rehearsal_disk.is_here(tmp_path / "m", TINY)


def test_runs_of_killed_rehearsals_are_removed(scratch: Path) -> None:
    (scratch / "run-999999999").mkdir(parents=True)
    (scratch / f"run-{os.getppid()}").mkdir()
    recipe = rehearse.recipe_of("tiny", scratch, {}, steps=1, tokens=64, sequence=64, overrides=[])
    with rehearsal_disk.scratch_run(recipe) as run:
        assert run.recipe() == recipe
        assert {path.name for path in scratch.iterdir()} == {f"run-{os.getppid()}", f"run-{os.getpid()}"}
    assert not run.path.exists()


def test_ctrl_c_ends_after_the_step_and_says_what_was_measured(tiny: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "ossia", "rehearse", "tiny", "--folder", str(tiny), *SMALL, "--steps", "200"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    seen = []
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (line := process.stderr.readline()):
        seen.append(line)
        if line.startswith("step 1/"):
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, "".join(seen) + err
    assert "tokens per second" in out
    assert "Traceback" not in err
    assert rehearsal_disk.is_here(tiny, TINY)


# Measurements


def test_a_share_that_cannot_be_is_not_given(tiny: Path) -> None:
    """On a busy machine, other programs slowed the product down, so training looked faster than the product."""
    from ossia import events
    from ossia.plan import find_model
    from ossia.plan.speed import Speed

    recipe = rehearse.recipe_of("tiny", tiny, {}, steps=2, tokens=64, sequence=64, overrides=["model.device=cpu"])
    examples = rehearse.random_examples(recipe, TINY, 64, 0.5)

    def result(before: float, after: float) -> rehearse.Rehearsal:
        speed = Speed(before, *[1e-3] * 6, note="")
        plan = rehearse.plan_of(recipe, find_model(str(tiny)), examples, speed)
        steps = [
            events.Step(step=n, loss=1.0, learning_rate=1e-4, grad_norm=1.0, tokens=64, seconds=64 / speed_)
            for n, speed_ in ((1, 10.0), (2, 100.0))
        ]
        return rehearse.Rehearsal(tiny, recipe, plan, speed, 0.1, steps, Memory(1), after, False)

    needed = 100.0 * result(1.0, 1.0).plan.flops_per_token
    assert result(needed / 2, needed / 3).share_of_matmul is None
    assert result(needed / 2, needed * 4).share_of_matmul == pytest.approx(0.25)
    assert result(needed * 2, needed / 4).share_of_matmul == pytest.approx(0.5)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells kinds of pages apart")
def test_the_peak_tells_own_memory_from_pages_of_files(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(50_000_000))
    before = now()
    with Peak() as peak:
        mapped = torch.from_file(str(tmp_path / "data"), shared=False, size=50_000_000, dtype=torch.uint8)
        assert mapped.max() == 0
        own = torch.ones(100_000_000, dtype=torch.uint8)  # beyond 32 MB glibc never reuses freed memory of its heap
        time.sleep(0.1)
        del mapped, own
    assert peak.memory.anonymous is not None and before.anonymous is not None
    assert peak.memory.file_backed is not None and before.file_backed is not None
    assert 99e6 < peak.memory.anonymous - before.anonymous < 115e6
    assert 49e6 < peak.memory.file_backed - before.file_backed < 60e6
    assert now().resident < before.resident + 20e6


def test_elsewhere_only_the_total_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ossia.plan import peak

    monkeypatch.setattr(peak, "STATUS", tmp_path / "missing")
    with Peak() as watched:
        pass
    assert watched.memory.resident > 50e6
    assert watched.memory == Memory(watched.memory.resident)


def test_errors_are_those_of_the_house(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        rehearse.shape_of("gpt-4")
    with pytest.raises(DoesNotFitError):
        rehearsal_disk.require_disk(tmp_path, 10**18, 0)
