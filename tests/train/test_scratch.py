"""Tests of pre-training a small model, and of its compact file."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from ossia.checkpoint.compact import compress, expand_compact
from ossia.checkpoint.layout import Shape
from ossia.checkpoint.locate import locate
from ossia.checkpoint.tiny import MICRO, random_weights, write_tiny
from ossia.errors import UserError
from ossia.model.batch import from_branches, from_rows
from ossia.model.load import load_model
from ossia.train.scratch import ScratchSettings, pretrain

SHAPE = MICRO.replace(vocabulary=5000)


@dataclass
class Example:
    ids: list[int]
    weights: list[float]
    channels: list[str]

    def __len__(self) -> int:
        return len(self.ids)


def corpus(count: int, seed: int) -> list[Example]:
    """Return sequences that begin with six common tokens, and a token that names the step of the following count."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        step, start = rng.randint(1, 3), rng.randint(100, 160)
        ids = [1, 2, 3, 4, 5, 6, 4000 + step, start, *(start + step * i for i in range(1, rng.randint(6, 9)))]
        made.append(Example(ids, [0.0] * 8 + [1.0] * (len(ids) - 8), [""] * len(ids)))
    return made


def test_branches_of_a_trunk_have_the_loss_of_separate_rows(tmp_path: Path) -> None:
    model = load_model(write_tiny(tmp_path / "m", SHAPE), dtype="float32", device="cpu")
    rows = [(example.ids, example.weights) for example in corpus(5, 0)]
    shared = model(**from_branches(rows, 6).inputs())
    apart = model(**from_rows(rows).inputs())
    assert from_branches(rows, 6).tokens == from_rows(rows).tokens - 4 * 6
    torch.testing.assert_close(shared.loss, apart.loss)
    torch.testing.assert_close(shared.nll, apart.nll, rtol=1e-4, atol=1e-5)


def test_what_is_written_is_what_was_trained(tmp_path: Path) -> None:
    losses: list[float] = []
    folder = tmp_path / "made"
    settings = ScratchSettings(tokens_per_step=256, epochs=8, learning_rate=5e-3, warmup_steps=5)
    pretrain(corpus(400, 0), SHAPE, folder, settings, on_step=lambda step, steps, loss: losses.append(loss))
    assert losses[-1] < losses[0] / 2
    model = load_model(folder, dtype="float32", device="cpu")  # packed experts, full vocabulary
    fresh = [(example.ids, example.weights) for example in corpus(50, 1)]
    with torch.no_grad():
        loss = model(**from_rows(fresh).inputs()).loss.item()
        logits = model(torch.tensor([fresh[0][0]])).logits[0]
    # The two differ only by the bfloat16 rounding of the weights that are not packed.
    assert abs(loss - sum(losses[-5:]) / 5) < 0.25
    assert logits.shape[-1] == SHAPE.vocabulary
    assert model.head().log_count_V is not None


def test_the_same_seed_makes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        pretrain(corpus(40, 0), SHAPE, tmp_path / name, ScratchSettings(tokens_per_step=256, warmup_steps=2))
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]


def test_a_compact_file_gives_the_checkpoint_back_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer_folder: Path
) -> None:
    monkeypatch.setenv("OSSIA_CACHE", str(tmp_path / "cache"))
    shape = Shape(layers=2, hidden=32, intermediate=32, experts=4, heads=2, kv_heads=1, head_dim=32)
    weights = random_weights(shape)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name][300:] = weights[name][-1].clone()
    weights["lm_head.weight"][150_000] += 1.0  # the row is equal in only one of the two matrices
    write_tiny(tmp_path / "m", shape, weights=weights, tokenizer_folder=tokenizer_folder)
    file = tmp_path / "base.safetensors"
    compress(tmp_path / "m", file)
    assert file.stat().st_size < 200_000
    monkeypatch.setattr("ossia.harmony.tokenizer.vocabulary.offline_tokenizer_folder", lambda: tokenizer_folder)
    folder = expand_compact(file)
    assert folder.is_relative_to(tmp_path / "cache")

    def digests(where: Path) -> dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in where.iterdir()}

    assert digests(folder) == digests(tmp_path / "m")
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert locate(file) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before  # the folder is made once
    (tmp_path / "broken.safetensors").write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="not a compact checkpoint"):
        locate(tmp_path / "broken.safetensors")
