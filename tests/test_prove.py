"""Tests of the runner of large proofs: sums, continuing a stopped proof, and starting anew after a change."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from prove import __main__ as runner


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """A proof of three chunks that records the chunks that run."""
    module: Any = ModuleType("prove.toy")
    module.CHUNKS, module.runs, module.broken = 3, [], None

    def run_chunk(number: int) -> dict[str, Any]:
        if number == module.broken:
            raise KeyboardInterrupt
        module.runs.append(number)
        return {"streams": 10, "faults": number, "first": [f"fault {number}"], "note": number * "x"}

    module.run_chunk = run_chunk
    module.verdict = lambda totals: {"passed": totals["faults"] < 4, **totals}
    monkeypatch.setitem(sys.modules, "prove.toy", module)
    monkeypatch.setattr(runner, "NAMES", ["toy"])
    monkeypatch.setattr(runner, "RESULTS", tmp_path)
    monkeypatch.setattr(runner.State.__init__, "__kwdefaults__", {"again": False, "folder": tmp_path / "local"})
    return module


def prove(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["prove", "toy", "--processes", "1", *arguments])
    with pytest.raises(SystemExit) as ended:
        runner.main()
    return int(str(ended.value.code))


def test_a_stopped_proof_goes_on_with_the_missing_chunks(
    toy: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    toy.broken = 1
    monkeypatch.setattr(sys, "argv", ["prove", "toy", "--processes", "1"])
    with pytest.raises(KeyboardInterrupt):
        runner.main()
    assert toy.runs == [0]
    toy.broken = None
    assert prove(monkeypatch) == 0
    assert toy.runs == [0, 1, 2]
    found = json.loads((tmp_path / "prove-toy.json").read_text())
    assert (found["streams"], found["faults"], found["passed"]) == (30, 3, True)
    assert found["first"] == ["fault 0", "fault 1", "fault 2"]
    assert prove(monkeypatch, "--again") == 0
    assert toy.runs == [0, 1, 2] * 2


def test_a_failed_proof_says_so_by_its_exit_code(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prove(monkeypatch, "--chunks", "4") == 1


def test_changed_source_is_proved_anew(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prove(monkeypatch)
    monkeypatch.setattr(runner, "source_digest", lambda: "another")
    prove(monkeypatch)
    assert toy.runs == [0, 1, 2] * 2


@pytest.mark.parametrize("name", ["parser", "harmony", "examples", "faults", "kills", "rehearsal"])
def test_every_proof_has_what_the_runner_asks_for(name: str) -> None:
    from importlib import import_module

    proof = import_module(f"prove.{name}")
    assert name in runner.NAMES
    assert proof.CHUNKS > 0
    assert callable(proof.run_chunk) and callable(proof.verdict)


def test_proofs_that_are_right_pass_and_others_do_not() -> None:
    from prove import examples, faults, harmony, kills, parser, rehearsal

    assert parser.verdict({"streams": 5})["passed"] and not parser.verdict({"streams": 5, "leak": 1})["passed"]
    both = {"openai-harmony conversations": 5, "oss-harmony conversations": 5}
    assert harmony.verdict({**both, "openai-harmony differences": 0, "oss-harmony differences": 0})["passed"]
    assert not harmony.verdict({**both, "oss-harmony differences": 1})["passed"]
    assert not harmony.verdict({"openai-harmony conversations": 5})["passed"], "one library was not installed"
    assert faults.verdict({"faults": 0})["passed"] and not faults.verdict({"faults": 1})["passed"]
    assert kills.verdict({"faults": 0})["passed"] and not kills.verdict({"faults": 1})["passed"]
    assert examples.verdict({"faults": 0})["passed"] and not examples.verdict({"faults": 1})["passed"]
    assert rehearsal.verdict({"rehearsal": {"memory": {"anonymous": 3.7e9}}})["passed"]
    assert not rehearsal.verdict({"rehearsal": {"memory": {"anonymous": 42e9}}})["passed"]


def test_a_sample_of_the_mutated_files_ends_in_sentences_or_changes_nothing() -> None:
    from prove import faults

    for seed in range(len(faults.KINDS)):
        kind = faults.KINDS[seed]
        outcome, detail = faults.mutate_and_use(kind, random.Random(seed))
        assert outcome in ("refused", "same"), f"{kind.name}: {outcome}: {detail}"
