"""What a run began with is what every command goes on with: damage, swaps and edits are refused by name."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ossia import events, hardware, runs
from ossia.adapters import identity, trust
from ossia.adapters.config import CONFIG_FILE, WEIGHTS_FILE
from ossia.checkpoint.tiny import MICRO, write_tiny
from ossia.config import Recipe
from ossia.errors import OssiaError, UserError
from ossia.export.job import write_export
from ossia.export.source import find_source
from ossia.generate.subject import open_subject
from ossia.train import building
from ossia.train.supervised import train
from support.train_samples import Example, examples, losses, recipe


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base and a run of six steps with checkpoints at 3 and 6."""
    folder = tmp_path_factory.mktemp("original")
    base = write_tiny(folder / "base", MICRO, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OSSIA_RUNS", str(folder / "runs"))
        wanted = recipe(base, steps=6, keep_checkpoints=5)
        run = runs.create(wanted, "test")
        train(wanted, run, examples(8), [])
    return base, run.path


@pytest.fixture
def base(original: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(original[0], tmp_path / "base"))


@pytest.fixture
def run(original: tuple[Path, Path], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> runs.Run:
    """A copy of the run that stopped at step 3, on a copy of the base."""
    monkeypatch.setenv("OSSIA_RUNS", str(tmp_path / "runs"))
    run = runs.Run(Path(shutil.copytree(original[1], tmp_path / "runs" / original[1].name)))
    shutil.rmtree(run.checkpoint(6))
    edit(run, "model.path", str(base))
    return run


def edit(run: runs.Run, key: str, value: Any) -> Recipe:
    """Change the recipe in the run's folder, as a person would."""
    values = run.recipe().model_dump(mode="json")
    here = values
    for part in key.split(".")[:-1]:
        here = here[part]
    here[key.split(".")[-1]] = value
    (run.path / "recipe.yaml").write_text(json.dumps(values))
    return run.recipe()


def resume(run: runs.Run, **settings: Any) -> events.Finished:
    return train(run.recipe(), run, examples(8), [], **settings)


def asked(run: runs.Run, **settings: Any) -> list[str]:
    """What evaluating and chatting do before they load a model."""
    return open_subject(run.id).check(**settings)


def exported(run: runs.Run, **settings: Any) -> list[str]:
    return write_export(find_source(run.id), "adapter", run.path / "out", **settings).warnings


USES: list[Callable[..., Any]] = [resume, asked, exported]


def test_a_copy_of_a_run_goes_on_as_if_nothing_had_happened(original: tuple[Path, Path], run: runs.Run) -> None:
    assert asked(run) == []
    assert resume(run).status == "done"
    assert losses(run) == losses(runs.Run(original[1]))
    last, other = (r.checkpoint(6) / WEIGHTS_FILE for r in (run, runs.Run(original[1])))
    assert last.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("part", ["optimizer.pt", "rng_state.pth", "trainer_state.json", CONFIG_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_file_of_a_checkpoint_is_named(
    run: runs.Run, use: Callable[..., Any], part: str, damage: str
) -> None:
    file = run.checkpoint(3) / part
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data) if damage == "flipped" else file.unlink()
    with pytest.raises(UserError) as refused:
        use(run)
    assert part in str(refused.value) or (part == CONFIG_FILE and "adapter" in str(refused.value))
    assert refused.value.do


@pytest.mark.parametrize("use", USES)
def test_another_base_of_the_same_shape_is_refused_or_recorded(
    run: runs.Run, base: Path, use: Callable[..., Any]
) -> None:
    shutil.rmtree(base)
    write_tiny(base, MICRO, seed=1)
    with pytest.raises(UserError, match="the base model is not the one") as refused:
        use(run)
    assert "tensors differ, such as" in str(refused.value)
    assert trust.FLAG in str(refused.value.do)
    result = use(run, accept_changed_base=True)
    if use is resume:
        record = trust.read_record(run)
        assert record is not None
        assert "tensors differ" in record.accepted[0]["what"]
        notes = [event.message for event in events.read(run.path) if isinstance(event, events.Note)]
        assert any("tensors differ" in note for note in notes)
    else:
        assert "accepted" in result[0]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    ("key", "value"), [("lora.alpha", 64.0), ("train.learning_rate", 0.5), ("data.identity", "somebody else")]
)
def test_an_edited_recipe_is_refused_by_key(run: runs.Run, use: Callable[..., Any], key: str, value: Any) -> None:
    edit(run, key, value)
    with pytest.raises(UserError, match=f"recipe was edited: {key}") as refused:
        use(run)
    assert "train.epochs" in (refused.value.why or "")


def test_what_may_change_may_change(original: tuple[Path, Path], run: runs.Run) -> None:
    edit(run, "train.checkpoint_every", 1)
    edit(run, "train.keep_checkpoints", 1)
    edit(run, "eval.batch_size", 3)
    edit(run, "train.steps", 8)
    assert resume(run).step == 8
    assert run.steps() == [8]


def test_a_folder_by_another_number_is_not_that_checkpoint(run: runs.Run) -> None:
    run.checkpoint(3).rename(run.checkpoint(5))
    with pytest.raises(UserError, match="holds the checkpoint of step 3"):
        resume(run)


def test_folders_that_hold_nothing_are_not_checkpoints(run: runs.Run) -> None:
    for name in ("step-99999999", "step-²", "step-000009", "step-"):
        (run.checkpoints / name).mkdir()
    assert run.steps() == [3]
    assert resume(run).step == 6


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1}', "null"])
@pytest.mark.parametrize("where", ["run", "checkpoint"])
@pytest.mark.parametrize("use", USES)
def test_a_damaged_record_is_refused(run: runs.Run, use: Callable[..., Any], text: str, where: str) -> None:
    ((run.path if where == "run" else run.checkpoint(3)) / identity.IDENTITY_FILE).write_text(text)
    with pytest.raises(UserError, match="record") as refused:
        use(run)
    assert identity.IDENTITY_FILE in str(refused.value)


def test_a_checkpoint_without_its_record_is_refused(run: runs.Run) -> None:
    (run.checkpoint(3) / identity.IDENTITY_FILE).unlink()
    for use in USES:
        with pytest.raises(UserError, match=r"identity\.json is missing"):
            use(run)


def test_a_run_without_its_record_is_not_resumed(run: runs.Run) -> None:
    (run.path / identity.IDENTITY_FILE).unlink()
    with pytest.raises(UserError, match=r"no identity\.json") as refused:
        resume(run)
    assert f"lora.start_from={run.checkpoint(3)}" in (refused.value.do or "")


def test_a_record_whose_tensors_were_edited_is_refused(run: runs.Run) -> None:
    record = json.loads((run.path / identity.IDENTITY_FILE).read_text())
    name = next(iter(record["base"]["tensors"]))
    record["base"]["tensors"][name] = "BF16 [1] 00"
    (run.path / identity.IDENTITY_FILE).write_text(json.dumps(record))
    with pytest.raises(UserError, match="record of what the run began with is damaged"):
        asked(run)


def test_the_compute_type_is_chosen_once(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSSIA_RUNS", str(tmp_path / "auto"))
    wanted = recipe(base, steps=2, checkpoint_every=1, keep_checkpoints=5)
    wanted = wanted.model_copy(update={"model": wanted.model.model_copy(update={"dtype": "auto"})})
    run = runs.create(wanted, "test")

    def stop(event: events.Event) -> None:
        if isinstance(event, events.Checkpoint):
            raise KeyboardInterrupt

    monkeypatch.setattr(hardware, "cpu_flags", set)
    with pytest.raises(KeyboardInterrupt):
        train(wanted, run, examples(8), [], watch=stop)
    record = trust.read_record(run)
    assert record is not None
    assert record.dtype == "float32"
    used: list[str] = []
    load = building.load_model

    def loaded(folder: Path, *, dtype: str, device: str) -> Any:
        used.append(dtype)
        return load(folder, dtype=dtype, device=device)

    monkeypatch.setattr(building, "load_model", loaded)
    monkeypatch.setattr(hardware, "cpu_flags", lambda: {"avx512_bf16"})
    train(wanted, run, examples(8), [])
    assert used == ["float32"], "another machine would choose bfloat16"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_with_a_checkpoint_and_resume_goes_on_as_if_nothing_had_happened(
    original: tuple[Path, Path], run: runs.Run, number: signal.Signals
) -> None:
    def stop(event: events.Event) -> None:
        if isinstance(event, events.Step) and event.step == 4:  # reported in step 5
            os.kill(os.getpid(), number)
            if number != signal.SIGINT:
                os.kill(os.getpid(), number)  # schedulers repeat themselves

    before = signal.getsignal(number)
    last = resume(run, watch=stop)
    assert (last.status, last.step, run.steps()) == ("stopped", 5, [3, 5])
    assert signal.getsignal(number) == before
    assert resume(run).status == "done"
    assert losses(run) == losses(runs.Run(original[1]))
    last, other = (r.checkpoint(6) / WEIGHTS_FILE for r in (run, runs.Run(original[1])))
    assert last.read_bytes() == other.read_bytes()


def test_a_signal_that_nohup_ignores_stays_ignored(run: runs.Run) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        last = resume(run, watch=lambda _: os.kill(os.getpid(), signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (last.status, last.step) == ("done", 6)


@pytest.mark.parametrize("part", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"])
@pytest.mark.parametrize("content", [b"", b"junk", b"{}", b"[]", "pickle", "zip", "tensor"])
def test_a_state_that_training_did_not_write_is_refused_even_where_its_hash_fits(
    run: runs.Run, part: str, content: bytes | str, tmp_path: Path
) -> None:
    file = run.checkpoint(3) / part
    if content == "pickle":
        file.write_bytes(pickle.dumps(Path("x")))
    elif content == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(signal.SIGINT))
    elif content == "tensor":
        torch.save({"param_groups": 3, "state": [], "cpu": torch.zeros(3), "python": (3, (1,), None)}, file)
    else:
        file.write_bytes(content)
    record = json.loads((run.checkpoint(3) / identity.IDENTITY_FILE).read_text())
    record["files"][part] = hashlib.sha256(file.read_bytes()).hexdigest()
    (run.checkpoint(3) / identity.IDENTITY_FILE).write_text(json.dumps(record))
    with pytest.raises(UserError) as refused:
        resume(run)
    assert "checkpoint" in str(refused.value)
    assert "weights_only" not in str(refused.value)


# Adapters outside a run


def test_an_exported_adapter_knows_its_base(run: runs.Run, base: Path, tmp_path: Path) -> None:
    exported(run)
    alone = Path(shutil.copytree(run.path / "out", tmp_path / "alone"))
    moved = Path(shutil.copytree(base, tmp_path / "moved"))
    assert open_subject(str(alone), overrides=[f"model.path={moved}"]).check() == []
    other = write_tiny(tmp_path / "other", MICRO, seed=1)
    subject = open_subject(str(alone), overrides=[f"model.path={other}"])
    with pytest.raises(UserError, match="the base model is not the one"):
        subject.check()
    assert len(subject.check(accept_changed_base=True)) == 1
    wanted = recipe(other, steps=1)
    wanted = wanted.model_copy(update={"lora": wanted.lora.model_copy(update={"start_from": str(alone)})})
    with pytest.raises(UserError, match="the base model is not the one"):
        train(wanted, runs.create(wanted, "test"), examples(8), [])
    done = train(wanted, runs.create(wanted, "test"), examples(8), [], accept_changed_base=True)
    assert done.status == "done"
    (alone / WEIGHTS_FILE).write_bytes((alone / WEIGHTS_FILE).read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=f"{WEIGHTS_FILE} is not the file that was written"):
        open_subject(str(alone), overrides=[f"model.path={moved}"]).check()


@pytest.mark.parametrize(
    ("named", "is_refused"),
    [
        ("BASE", False),
        ("COPY", False),
        ("OTHER", True),
        ("somebody/base", False),
        ("somebody/else", True),
        (None, False),
    ],
)
def test_an_adapter_of_another_program_is_held_to_the_base_that_it_names(
    run: runs.Run, base: Path, tmp_path: Path, named: str | None, is_refused: bool
) -> None:
    copy = Path(shutil.copytree(base, tmp_path / "copy"))
    other = write_tiny(tmp_path / "other", MICRO, seed=1)
    folder = tmp_path / "foreign"
    folder.mkdir()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copy(run.checkpoint(3) / name, folder)
    config = json.loads((folder / CONFIG_FILE).read_text())
    places = {"BASE": str(base), "COPY": str(copy), "OTHER": str(other)}
    config["base_model_name_or_path"] = places.get(named, named) if named else None
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    subject = open_subject(str(folder), overrides=[f"model.path={base}"])
    if is_refused:
        with pytest.raises(OssiaError, match=r"adapter_config\.json names"):
            subject.check()
    else:
        assert subject.check() == []


def test_examples_of_other_data_are_refused(run: runs.Run) -> None:
    with pytest.raises(UserError, match="training data are not those"):
        train(run.recipe(), run, [*examples(7), Example([1, 2, 3, 4, 5, 6], [0.0] * 4 + [1.0] * 2)], [])
