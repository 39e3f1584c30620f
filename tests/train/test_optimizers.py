"""Tests of the recipe's optimisers: their names in Trainer, the message if one is not available, and a real run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ossia import runs
from ossia.adapters.layout import lora_parameters
from ossia.checkpoint.layout import Shape
from ossia.checkpoint.tiny import MICRO, write_tiny
from ossia.config import Recipe, TrainSection
from ossia.errors import UserError
from ossia.plan import memory
from ossia.train.arguments import OPTIMIZERS, chosen_optimizer
from ossia.train.supervised import train
from support.train_samples import examples, losses, recipe


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)


def there(monkeypatch: pytest.MonkeyPatch, found: bool) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if found else None)


def test_the_recipe_s_names_are_those_of_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.training_args import OptimizerNames

    there(monkeypatch, True)
    chosen = {name: chosen_optimizer(TrainSection(optimizer=name), on_cpu=False) for name in OPTIMIZERS}
    assert chosen == {
        "adamw": OptimizerNames.ADAMW_TORCH_FUSED,
        "adamw-8bit": OptimizerNames.ADAMW_BNB,
        "paged-adamw-8bit": OptimizerNames.PAGED_ADAMW_8BIT,
    }


def test_what_cannot_be_had_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    there(monkeypatch, False)
    assert chosen_optimizer(TrainSection(), on_cpu=True) == "adamw_torch_fused"  # it needs no other package
    with pytest.raises(UserError, match="adamw-8bit, which needs bitsandbytes"):
        chosen_optimizer(TrainSection(optimizer="adamw-8bit"), on_cpu=False)
    there(monkeypatch, True)
    with pytest.raises(UserError, match="does not work with train"):
        chosen_optimizer(TrainSection(optimizer="adamw-8bit", sharding="fsdp"), on_cpu=False)
    with pytest.raises(UserError, match="on a CPU there are no pages"):
        chosen_optimizer(TrainSection(optimizer="paged-adamw-8bit"), on_cpu=True)


def test_eight_bits_are_refused_before_the_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSSIA_RUNS", str(tmp_path / "runs"))
    there(monkeypatch, False)
    wanted = recipe(tmp_path / "there is no such model", optimizer="adamw-8bit")
    with pytest.raises(UserError, match="needs bitsandbytes"):
        train(wanted, runs.create(wanted, "test"), examples(8), [])


def test_the_plan_counts_a_quarter_for_eight_bits() -> None:
    def moments(**settings: Any) -> int:
        wanted = Recipe(train=TrainSection(**settings))
        return memory._moments(wanted, lora_parameters(Shape.GPT_OSS_20B, wanted.lora))[0]

    assert moments() == 8 * lora_parameters(Shape.GPT_OSS_20B, Recipe().lora)
    assert 0.25 < moments(optimizer="adamw-8bit") / moments() < 0.26
    assert moments(optimizer="paged-adamw-8bit") == moments(optimizer="adamw-8bit")


def test_a_real_run_in_eight_bits_learns_and_continues_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra 8bit is not installed")
    monkeypatch.setenv("OSSIA_RUNS", str(tmp_path / "runs"))
    model = write_tiny(tmp_path / "micro", MICRO, seed=0)
    # bitsandbytes keeps parameters with fewer than 4,096 values in 32 bits. At this rank, the experts' have more.
    full, small = (
        (plain := recipe(model, steps=20, optimizer=name)).model_copy(
            update={"lora": plain.lora.model_copy(update={"expert_rank": 16})}
        )
        for name in ("adamw", "adamw-8bit")
    )
    one, eight, broken = (runs.create(wanted, "test") for wanted in (full, small, small))
    for run, wanted in ((one, full), (eight, small)):
        train(wanted, run, examples(24), examples(4, seed=1))
    assert losses(eight)[20] == pytest.approx(losses(one)[20], abs=0.1)
    assert losses(eight)[20] < losses(eight)[1] - 0.3
    state = torch.load(eight.checkpoint(20) / "optimizer.pt", weights_only=True)["state"]
    kinds = {value.dtype for moments in state.values() for value in _tensors(moments) if value.numel() >= 4096}
    assert kinds == {torch.uint8}

    def stop(event: Any) -> None:
        if getattr(event, "kind", "") == "step" and event.step == 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small, broken, examples(24), examples(4, seed=1), watch=stop)
    train(small, broken, examples(24), examples(4, seed=1))
    assert losses(broken) == losses(eight)
