"""Tests of synthetic checkpoints: the published layout, values that depend on the seed, and interruptions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ossia.checkpoint import layout, synthetic
from ossia.checkpoint.reader import CheckpointReader
from ossia.checkpoint.synthetic import synthetic_tensors, write_synthetic
from ossia.checkpoint.tiny import MICRO
from ossia.errors import UserError

SHAPE = MICRO.replace(hidden=128, intermediate=128)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the size of parts to 20 kB, so that tensors are written in several parts, like full-size tensors."""
    monkeypatch.setattr(synthetic, "_PART_BYTES", 20_000)


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_disk_and_memory_give_the_same_valid_checkpoint(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    folder = write_synthetic(tmp_path / "a", SHAPE, seed=1, progress=lambda *args: seen.append(args))
    reader = CheckpointReader(folder)
    reader.check(SHAPE)
    assert reader.shape() == SHAPE
    for name, tensor in synthetic_tensors(SHAPE, seed=1):
        assert torch.equal(reader.get(name), tensor), name
    assert seen[-1] == (layout.bytes_of(SHAPE), layout.bytes_of(SHAPE), "lm_head.weight")
    assert len(seen) == len(reader.names())


def test_values_have_the_stated_distributions() -> None:
    tensors = dict(synthetic_tensors(SHAPE, seed=2))
    counts = {spec.name: spec for spec in layout.tensors(SHAPE)}
    for name, tensor in tensors.items():
        kind = counts[name].kind
        if kind == "blocks":
            codes = torch.stack([tensor & 15, tensor >> 4]).flatten().bincount(minlength=16)
            assert (codes > 0.9 * codes.float().mean()).all()
        elif kind == "scales":
            assert tensor.unique().tolist() == [118, 119, 120, 121, 122, 123, 124]
        elif kind == "norm":
            assert 0.99 < tensor.float().mean() < 1.01
        elif tensor.numel() > 1000:
            assert 0.018 < tensor.float().std() < 0.022
    assert torch.cat([tensors[f"model.layers.{layer}.self_attn.sinks"] for layer in (0, 1)]).float().std() > 0.3
    parts = tensors["model.embed_tokens.weight"].float().unique(dim=0)
    assert len(parts) == SHAPE.vocabulary, "parts of a tensor must not repeat"


def test_interrupted_runs_give_the_same_files(tmp_path: Path) -> None:
    whole = write_synthetic(tmp_path / "whole", SHAPE, max_shard_bytes=300_000)
    made: list[str] = []

    def interrupt(done: int, total: int, name: str) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_synthetic(tmp_path / "part", SHAPE, progress=interrupt, max_shard_bytes=300_000)
    kept = {file.name for file in (tmp_path / "part" / ".partial").glob("*.safetensors")}
    assert kept
    assert not list((tmp_path / "part").glob("model*"))
    original = synthetic._parts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "_parts", lambda spec, seed: made.append(spec.name) or original(spec, seed))
        write_synthetic(tmp_path / "part", SHAPE, max_shard_bytes=300_000)
    assert 0 < len(made) < 0.7 * len(list(layout.tensors(SHAPE)))
    assert files(tmp_path / "part") == files(whole)
    write_synthetic(tmp_path / "part", SHAPE, max_shard_bytes=300_000)  # complete: nothing to do
    assert files(tmp_path / "part") == files(whole)
    with pytest.raises(UserError, match="already holds a checkpoint"):
        write_synthetic(tmp_path / "part", SHAPE, seed=1, max_shard_bytes=300_000)
