"""Tests of exports as folders: kills, overwriting, disk space, runs, cards, and the command."""

from __future__ import annotations

import hashlib
import importlib
import json
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from ossia import events, runs
from ossia.adapters.config import CONFIG_FILE, WEIGHTS_FILE
from ossia.checkpoint.reader import CheckpointReader
from ossia.cli import app
from ossia.config import LoraSection, ModelSection, Recipe
from ossia.errors import DoesNotFitError, OssiaError, UserError
from ossia.export import folder, job, targets, verify
from ossia.export.card import model_card
from ossia.export.source import find_source
from support.export_samples import ATTENTION, EXPERTS, logits, make_base, stock_adapter, stock_model

KILLED_HALF_WAY = """
import os, signal, sys
from contextlib import contextmanager
from ossia.export import job
from ossia.export.source import find_source

@contextmanager
def show(title, total):
    done = 0
    def advance(units):
        nonlocal done
        done += units
        if title.startswith("merging") and done > total // 2:
            os.kill(os.getpid(), signal.SIGKILL)
    yield advance

job.write_export(find_source(sys.argv[1], sys.argv[2]), "hf", __import__("pathlib").Path(sys.argv[3]), progress=show)
"""

TOY_TARGET = """
from ossia.export.targets import ExportTarget, TargetResult

def _write(job):
    (job.folder / "names.txt").write_text("\\n".join(job.adapter.deltas))
    report = {"experts wanted": job.experts, "sha256": {"names.txt": "5e8a"}}
    return TargetResult(report, [f"{job.out.name} holds names and no weights"])

TOY = ExportTarget("toy", "the names of what was tuned", _write, is_model=False)
NEEDY = ExportTarget("needy", "nothing", _write, is_model=True, packages=("json", "no_such_package"))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "base-model")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapter") / "tuned"
    stock_adapter(base, path, ATTENTION)
    return path


@pytest.fixture
def run(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> runs.Run:
    """A run with checkpoints of steps 10 (the best) and 20, and an evaluation."""
    monkeypatch.setenv("OSSIA_RUNS", str(tmp_path / "runs"))
    recipe = Recipe(
        name="support-bot",
        description="Answers about parcels.",
        model=ModelSection(path=str(base)),
        lora=LoraSection(targets=["attention"]),
    )
    made = runs.create(recipe, "ossia train")
    for step, adapted in ((10, ATTENTION), (20, EXPERTS)):
        stock_adapter(base, made.checkpoint(step), adapted)
    (made.checkpoints / runs.BEST).write_text(json.dumps({"step": 10}))
    made.log().write(events.Evaluated(path="evals/1", summary={"right": 0.75, "base": {"right": 0.5, "note": [1]}}))
    return made


@pytest.fixture
def toy_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two more targets, which a new file adds without any other change."""
    importlib.import_module("ossia.cli.export_")  # its help is built at import, here without the new targets
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "toy.py").write_text(TOY_TARGET)
    monkeypatch.setattr(targets, "__path__", [*targets.__path__, str(tmp_path / "more")])
    targets.all_targets.cache_clear()
    yield
    targets.all_targets.cache_clear()
    del sys.modules["ossia.export.targets.toy"]


def main(*arguments: object) -> None:
    app.build()([str(argument) for argument in arguments], standalone_mode=False)


def test_a_killed_export_leaves_nothing_that_passes_for_one(base: Path, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "exports" / "merged"
    command = [sys.executable, "-c", KILLED_HALF_WAY, str(adapter), str(base), str(out)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    leftovers = list(out.parent.iterdir())
    assert len(leftovers) == 1
    assert leftovers[0].name.startswith(".merged.")
    with pytest.raises(UserError):
        CheckpointReader(leftovers[0])
    job.write_export(find_source(str(adapter), str(base)), "hf", out)
    assert [path.name for path in out.parent.iterdir()] == ["merged"]


def test_an_error_at_the_end_leaves_nothing(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(verify, "compare_logits", full)
    with pytest.raises(OssiaError, match="No space left"):
        job.write_export(find_source(str(adapter), str(base)), "hf", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_another_living_exports_folder_is_left_alone(tmp_path: Path) -> None:
    living = tmp_path / ".out.1.partial"
    dead = tmp_path / ".out.4194999.partial"  # beyond Linux's highest process number
    for path in (living, dead):
        path.mkdir()
    with folder.export_folder(tmp_path / "out"):
        assert living.exists()
        assert not dead.exists()


def test_only_an_earlier_export_is_overwritten(base: Path, adapter: Path, tmp_path: Path) -> None:
    source = find_source(str(adapter), str(base))
    out = job.write_export(source, "adapter", tmp_path / "out").path
    with pytest.raises(UserError, match="not empty"):
        job.write_export(source, "hf", out)
    assert not (out / "config.json").exists()
    job.write_export(source, "hf", out, overwrite=True)
    assert (out / "config.json").exists()
    assert not (out / CONFIG_FILE).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not an export"):
        job.write_export(source, "hf", precious, overwrite=True)
    report = (out / folder.REPORT).read_text()
    for text in ("{}", "[]", "junk", '{"made_by": 7}', report.replace("ossia ", "pandas "), report):
        (precious / folder.REPORT).write_text(text)
        with pytest.raises(UserError, match="not an export"):
            job.write_export(source, "hf", precious, overwrite=True)
        assert (precious / "thesis.txt").read_text() == "years of work"
    card = (out / "README.md").read_text()
    for name, text in (("notes.md", "mine"), ("README.md", "edited"), ("deep/notes.md", "mine")):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(text)
        with pytest.raises(UserError, match=f"not an export of Ossia: {name}"):
            job.write_export(source, "hf", out, overwrite=True)
        (out / name).unlink()
        (out / "README.md").write_text(card)
    (out / "deep").rmdir()
    with pytest.raises(UserError, match="made from"):
        job.write_export(source, "hf", adapter.parent, overwrite=True)
    again = find_source(str(adapter), str(out))
    with pytest.raises(UserError, match="made from"):
        job.write_export(again, "hf", out, overwrite=True)


def test_a_full_disk_is_noticed_before_anything_is_written(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(DoesNotFitError):
        job.write_export(find_source(str(adapter), str(base)), "hf", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_run_exports_its_best_checkpoint_and_remembers(run: runs.Run, base: Path) -> None:
    done = job.write_export(find_source(run.id))
    assert done.path == run.path / "exports" / "step-000010-hf"
    assert done.report["base"] == str(base)
    card = (done.path / "README.md").read_text()
    assert "Answers about parcels." in card
    assert "| right | 0.75 |" in card
    assert "| base.right | 0.5 |" in card
    assert "| adapted | attention |" in card
    assert "| rank and alpha of attention | 16 and 32 |" in card
    assert "of experts" not in card
    assert str(base) not in card
    assert base.name in card
    last = events.read(run.path)[-1]
    assert isinstance(last, events.Exported)
    assert (last.path, last.target) == (str(done.path), "hf")
    other = job.write_export(find_source(run.id, step=20), experts="bf16")
    assert other.path.name == "step-000020-hf"
    assert other.report["experts"]["layout"] == "bf16"


def test_what_cannot_be_exported_is_said(run: runs.Run, base: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint of step 15") as error:
        find_source(run.id, step=15)
    assert "10, 20" in str(error.value)
    with pytest.raises(UserError, match="adapter folder"):
        find_source(str(adapter), str(base), 10)
    with pytest.raises(UserError, match="default place for exports"):
        job.write_export(find_source(str(adapter), str(base)))
    (run.checkpoint(20) / CONFIG_FILE).unlink()
    with pytest.raises(UserError, match="no adapter"):
        find_source(run.id, step=20)
    config = json.loads((adapter / CONFIG_FILE).read_text())
    nameless = tmp_path / "nameless"
    nameless.mkdir()
    (nameless / CONFIG_FILE).write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(UserError, match="which model") as error:
        find_source(str(nameless))
    assert "--model" in str(error.value)
    (nameless / CONFIG_FILE).write_text(json.dumps(config | {"base_model_name_or_path": "openai/gpt-oss-20b"}))
    assert find_source(str(nameless)).base == "openai/gpt-oss-20b"


def test_an_exported_adapter_is_the_adapter_and_loads_in_stock_peft(base: Path, adapter: Path, tmp_path: Path) -> None:
    done = job.write_export(find_source(str(adapter), str(base)), "adapter", tmp_path / "out")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        assert (done.path / name).read_bytes() == (adapter / name).read_bytes()
        assert done.report["sha256"][name] == hashlib.sha256((adapter / name).read_bytes()).hexdigest()
    card = (done.path / "README.md").read_text()
    assert "library_name: peft" in card
    assert "PeftModel.from_pretrained" in card
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns about transformers' newest names
        loaded = PeftModel.from_pretrained(stock_model(base), str(done.path)).eval()
    assert torch.equal(logits(loaded), logits(stock_adapter(base, tmp_path / "again", ATTENTION)))


@pytest.mark.usefixtures("toy_target")
def test_a_new_target_is_a_new_file(
    base: Path, adapter: Path, run: runs.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = job.write_export(find_source(str(adapter), str(base)), "toy", tmp_path / "out", experts="bf16")
    assert "model.layers.1.self_attn.q_proj.weight" in (tmp_path / "out" / "names.txt").read_text().splitlines()
    assert done.warnings == ["out holds names and no weights"]
    assert done.report["experts wanted"] == "bf16"
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written == done.report | {"warnings": done.warnings}
    assert (written["target"], written["base"]) == ("toy", str(base))
    assert list(targets.all_targets()) == ["hf", "adapter", "needy", "toy"]
    main("export", run.id, "--to", "toy", "--json")
    assert Path(json.loads(capsys.readouterr().out)["path"]) == run.path / "exports" / "step-000010-toy"
    last = events.read(run.path)[-1]
    assert isinstance(last, events.Exported)
    assert last.target == "toy"
    main("export", run.id, "--to", "toy", "--overwrite")
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1].split() == ["files", "names.txt"]
    assert "warning: step-000010-toy holds names and no weights" in printed.err
    assert f"ossia chat {run.id}" in printed.err


@pytest.mark.usefixtures("toy_target")
def test_a_target_says_what_it_lacks_before_anything_is_done(base: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needy needs the package no_such_package") as error:
        job.write_export(find_source(str(adapter), str(base)), "needy", tmp_path / "out")
    assert error.value.do == "pip install no_such_package"
    assert not (tmp_path / "out").exists()


def test_a_card_names_a_hub_model_as_its_base(adapter: Path) -> None:
    text = model_card(find_source(str(adapter), "openai/gpt-oss-20b"), "mine", merged=True, experts="mxfp4, kept")
    assert "base_model: openai/gpt-oss-20b\nbase_model_relation: finetune\n" in text
    assert text.startswith("---\nlibrary_name: transformers\n")


def test_the_command_prints_facts_or_json(run: runs.Run, capsys: pytest.CaptureFixture[str]) -> None:
    main("export", run.id, "--checkpoint", 20, "--experts", "mxfp4")
    printed = capsys.readouterr()
    assert str(run.path / "exports" / "step-000020-hf") in printed.out
    assert "KL to base + adapter" in printed.out
    assert "warning: rounding to mxfp4" in printed.err
    assert f"ossia chat {run.path}" in printed.err.replace("\n", "")
    main("export", run.id, "--checkpoint", 20, "--overwrite", "--json")
    result = json.loads(capsys.readouterr().out)
    assert result["experts"]["layout"] == "bf16"
    assert result["verified"]["bytes"]["tensors"] == len(result["sha256"])
    main("export", run.id, "--to", "adapter", "--json")
    result = json.loads(capsys.readouterr().out)
    assert Path(result["path"]).name == "step-000010-adapter"


def test_the_command_refuses_unknown_targets(run: runs.Run) -> None:
    with pytest.raises(UserError, match="'onnx'") as error:
        main("export", run.id, "--to", "onnx")
    assert error.value.do == "use hf, adapter"
    with pytest.raises(UserError) as error:
        main("export", run.id, "--to", "adaptor")
    assert error.value.do == "use adapter"


def test_the_commands_help_lists_the_targets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        app.build()(["export", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "--to <hf|adapter> hf: a checkpoint with the adapter merged in. adapter: the adapter and a card." in printed
