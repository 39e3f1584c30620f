"""Tests of a training session with an objective that Ossia does not have: a preference loss on compiled pairs.

The objective is only the class `PreferenceLoss`. The session is unchanged.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.nn.functional import softplus

from ossia import events, runs
from ossia.adapters.config import WEIGHTS_FILE
from ossia.checkpoint.tiny import MICRO, write_tiny
from ossia.config import DataSection
from ossia.data import Example, compile_sources
from ossia.errors import UserError
from ossia.harmony.tokenizer.vocabulary import Vocabulary
from ossia.model.batch import from_rows
from ossia.train.objective import MicroBatch, Objective, Share, StepBatch
from ossia.train.session import run_session
from ossia.train.steps import fingerprint
from support.train_samples import SHARDS, losses, recipe

Pair = tuple[Example, Example]


class PreferenceLoss(Objective):
    """The mean over pairs of softplus(log p(rejected) - log p(preferred)), which is DPO without a reference model.

    A micro-batch is one pair.
    """

    units: Sequence[Pair] = ()
    validation: Sequence[Pair] = ()
    metric_names = ("loss", "accuracy")

    def __init__(self, units: Sequence[Pair], validation: Sequence[Pair]) -> None:
        self.units, self.validation = units, validation

    def fingerprint(self) -> str:
        return fingerprint(
            *([example for pair in pairs for example in pair] for pairs in (self.units, self.validation))
        )

    def trained_tokens(self) -> int:
        return sum(example.trained_tokens for pair in self.units for example in pair)

    def collate(self, units: Sequence[Pair], share: Share) -> StepBatch:
        made, tokens = [], sum(len(example) for pair in units for example in pair)
        for pair in units[share.process :: share.processes]:
            signed = zip(pair, (1, -1), strict=True)
            # The rejected answer has the weight -1. Ids are reduced modulo the small vocabulary.
            rows = [([id % 512 for id in one.ids], [sign * w for w in one.weights]) for one, sign in signed]
            made.append(from_rows(rows).inputs())
        counts: Any = {"example_tokens": tokens, "repeated_tokens": 0, "examples": len(units), "seconds": 0.0}
        return {"micro_batches": made, "names": [None] * len(made), **counts}

    def weight(self, batch: MicroBatch) -> Tensor:
        return batch["weights"].new_ones(())

    def loss(self, model: Any, batch: MicroBatch, denominator: float) -> Tensor:
        return softplus(model(**batch, denominator=1.0).loss) / denominator

    def metrics(self, model: Any, batch: MicroBatch, names: Any) -> Iterator[tuple[str, float, float]]:
        margin = float(model(**batch, denominator=1.0).loss)
        yield from (("loss", math.log1p(math.exp(margin)), 1.0), ("accuracy", float(margin < 0), 1.0))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> list[Pair]:
    file = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [{"prompt": f"Is it {n}?", "chosen": f"Yes, {n}.", "rejected": f"No, {n}."} for n in range(20)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    compiled = compile_sources(str(file), Vocabulary.load(tokenizer_folder), DataSection())
    return [conversation.pair for conversation in compiled.conversations if conversation.pair is not None]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "micro", MICRO, seed=0)


@pytest.fixture(autouse=True)
def runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSSIA_RUNS", str(tmp_path / "runs"))


def test_another_loss_trains_resumes_and_reports_through_the_session(model: Path, pairs: list[Pair]) -> None:
    wanted, objective = recipe(model, steps=10), PreferenceLoss(pairs[:16], pairs[16:])
    whole, broken = runs.create(wanted, "test"), runs.create(wanted, "test")
    last = run_session(wanted, whole, objective)
    assert (last.status, last.step) == ("done", 10) and losses(whole)[10] < losses(whole)[1] - 0.2
    started, *_ = seen = events.read(whole.path)
    assert isinstance(started, events.Started) and (started.examples, started.validation_examples) == (16, 4)
    checked = [event for event in seen if isinstance(event, events.Validation)]
    assert [event.step for event in checked] == [4, 8, 10] and checked[-1].loss < checked[0].loss
    assert checked[-1].metrics == {"accuracy": 1.0} and checked[-1].channels == {}

    def interrupt(event: events.Event) -> None:
        if isinstance(event, events.Step) and event.step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_session(wanted, broken, objective, watch=interrupt)
    assert broken.steps()[-1] < 8
    run_session(wanted, broken, objective)
    assert losses(broken) == losses(whole)
    assert any(event.kind == "resumed" for event in events.read(broken.path))
    assert len({(run.checkpoint(10) / WEIGHTS_FILE).read_bytes() for run in (broken, whole)}) == 1


JOB = """
import os, pickle, sys
from pathlib import Path
sys.path[:0] = [os.environ["TESTS"], os.environ["TESTS"] + "/train"]
from ossia import runs
from ossia.train.distributed import leave
from ossia.train.session import run_session
from test_session import PreferenceLoss
run = runs.Run(Path(sys.argv[1]))
pairs = pickle.loads((run.path / "pairs").read_bytes())
run_session(run.recipe(), run, PreferenceLoss(pairs[:5], pairs[5:8]))
leave()
"""


@SHARDS
def test_two_processes_that_share_a_model_out_see_the_same_losses(model: Path, pairs: list[Pair]) -> None:
    """A step has five pairs and the validation three, so one process has no pair in a pass. It must not count."""
    alone, shared = (
        runs.create(recipe(model, steps=3, examples_per_step=5, evaluate_every=3, sharding=sharding), "test")
        for sharding in ("none", "fsdp")
    )
    run_session(alone.recipe(), alone, PreferenceLoss(pairs[:5], pairs[5:8]))
    (shared.path / "pairs").write_bytes(pickle.dumps(pairs[:8]))
    (shared.path / "job.py").write_text(JOB)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    environment = {**os.environ, "TESTS": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [*launch, str(shared.path / "job.py"), str(shared.path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-4000:]
    assert losses(shared) == pytest.approx(losses(alone), rel=1e-5)
    measured = [
        [(event.loss, event.metrics) for event in events.read(run.path) if isinstance(event, events.Validation)]
        for run in (alone, shared)
    ]
    ((expected, accuracy),), ((found, found_accuracy),) = measured
    assert found == pytest.approx(expected, rel=1e-5) and found_accuracy == accuracy


def test_a_session_refuses_other_data_than_it_began_with(model: Path, pairs: list[Pair]) -> None:
    wanted = recipe(model, steps=1)
    run = runs.create(wanted, "test")
    run_session(wanted, run, PreferenceLoss(pairs[:4], []))
    with pytest.raises(UserError, match="not those that this run began with"):
        run_session(wanted, run, PreferenceLoss(pairs[:3], []))
    with pytest.raises(UserError, match="nothing to train on"):
        run_session(wanted, run, PreferenceLoss([], []))
