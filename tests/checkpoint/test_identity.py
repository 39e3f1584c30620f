"""The identity of a base: every byte of every tensor counts, and files, layouts and caches do not."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ossia.checkpoint import identity
from ossia.checkpoint.identity import base_identity
from ossia.checkpoint.reader import CheckpointReader
from ossia.checkpoint.tiny import MICRO, write_tiny
from ossia.errors import UserError
from support.original_samples import write_original


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "micro", MICRO, seed=0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OSSIA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(identity, "_SETTLED_SECONDS", -1.0)  # files of a test are always new
    return tmp_path / "cache"


def copied(base: Path, to: Path) -> Path:
    return Path(shutil.copytree(base, to))


def flip(file: Path, place: int) -> None:
    """Change one byte, and leave the file's size and time of modification as they were."""
    before = file.stat()
    data = bytearray(file.read_bytes())
    data[place] ^= 0x10
    with file.open("r+b") as stream:
        stream.write(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_digests_are_those_of_the_tensors_as_safetensors_reads_them(base: Path) -> None:
    found = base_identity(base).tensors
    expected = load_file(base / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].split()[-1] == hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).hexdigest()


def test_layout_and_division_into_files_do_not_count(base: Path, tmp_path: Path) -> None:
    divided = copied(base, tmp_path / "divided")
    tensors = load_file(divided / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, divided / file)
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (divided / "model.safetensors.index.json").write_text(json.dumps(index))
    (divided / "model.safetensors").unlink()
    original = write_original(base, tmp_path / "original")
    assert base_identity(base).sha256 == base_identity(divided).sha256 == base_identity(original).sha256


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.999])
def test_one_changed_byte_anywhere_is_named_by_its_tensor(base: Path, tmp_path: Path, share: float) -> None:
    other = copied(base, tmp_path / "other")
    before = base_identity(other)
    file = other / "model.safetensors"
    flip(file, int(file.stat().st_size * share))
    after = base_identity(other)
    assert after.sha256 != before.sha256
    changed = [name for name in before.tensors if before.tensors[name] != after.tensors[name]]
    assert len(changed) == 1
    assert before.difference(after) == f"1 of {len(before.tensors)} tensors differ, such as {changed[0]}"


def test_figures_that_no_tensor_shows_count_too(base: Path, tmp_path: Path) -> None:
    other = copied(base, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"sliding_window": 64}))
    assert base_identity(base).difference(base_identity(other)) == "config.json: sliding_window is 64 and was 16"


def test_a_file_is_hashed_once_until_it_changes(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = copied(base, tmp_path / "other")
    first = base_identity(other)
    hashed: list[Path] = []
    hash_ = identity._hashed
    monkeypatch.setattr(identity, "_hashed", lambda file, ranges: hashed.append(file) or hash_(file, ranges))
    assert base_identity(other) == first
    assert not hashed
    flip(other / "model.safetensors", -1)
    assert base_identity(other) != first
    assert hashed == [other / "model.safetensors"]


@pytest.mark.parametrize("damage", ["", "[]", '{"stamp": 1}', '{"stamp": [1], "ranges": 7}'])
def test_a_damaged_memory_is_made_anew(base: Path, cache: Path, damage: str) -> None:
    first = base_identity(base)
    (memory,) = (cache / "digests").glob("*.json")
    memory.write_text(damage)
    assert base_identity(base) == first
    assert json.loads(memory.read_text())["ranges"]


def test_a_file_that_has_just_changed_is_not_remembered(
    base: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "_SETTLED_SECONDS", 3600.0)
    base_identity(copied(base, tmp_path / "other"))
    assert not list((cache / "digests").glob("*.json"))


def test_a_cache_that_cannot_be_written_costs_only_time(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    expected = base_identity(base)
    monkeypatch.setenv("OSSIA_CACHE", str(tmp_path / "file"))
    assert base_identity(base) == expected


@pytest.mark.parametrize(
    "name", ["../base/model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", 7, None, "a\\b"]
)
def test_shards_outside_the_folder_are_not_read(base: Path, tmp_path: Path, name: object) -> None:
    other = copied(base, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    (other / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(tensors, name)}))
    with pytest.raises(UserError, match="which is not a file of this folder"):
        CheckpointReader(other)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope_theta", "x"), ("num_hidden_layers", "four"), ("num_hidden_layers", 10**9), ("hidden_size", 64.5),
        ("head_dim", True), ("rms_norm_eps", float("nan")), ("swiglu_limit", float("inf")), ("vocab_size", -1),
        ("num_hidden_layers", float("inf")), ("num_hidden_layers", 2.0), ("head_dim", float("nan")),
        ("rope_scaling", [1]), ("rope_scaling", {"beta_fast": 31.0}),
    ],
)  # fmt: skip
def test_figures_that_no_model_has_are_refused_by_key(base: Path, tmp_path: Path, key: str, value: object) -> None:
    other = copied(base, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(UserError) as refused:
        base_identity(other)
    assert (key if value != {"beta_fast": 31.0} else "beta_fast") in refused.value.what
    assert refused.value.where is not None and refused.value.where.endswith("config.json")
