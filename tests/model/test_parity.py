"""Tests of the whole model against stock transformers (eager attention, eager experts) on the dequantised weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ossia.adapters import apply as lora
from ossia.checkpoint.tiny import MICRO, write_tiny
from ossia.errors import UserError
from ossia.model.batch import from_rows
from ossia.model.load import load
from support.lora_samples import LENGTHS, TARGETS, Rows, adapted, base_model, random_rows, relative, stock


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("micro")
    write_tiny(path, MICRO, seed=3)
    return path


@pytest.fixture(scope="module")
def rows() -> Rows:
    return random_rows()


def test_labels_as_other_trainers_pass_them_give_the_same_loss(folder: Path, rows: Rows) -> None:
    model = base_model(folder)
    plain = [(ids, [0.0] * 4 + [1.0] * (len(ids) - 4)) for ids, _ in rows]
    flat = model(**from_rows(plain).inputs()).loss
    longest = max(LENGTHS)
    for side in ("left", "right"):
        ids_BT = torch.zeros(len(rows), longest, dtype=torch.int64)
        mask_BT, labels_BT = torch.zeros_like(ids_BT), torch.full_like(ids_BT, -100)
        for row, (ids, weights) in enumerate(plain):
            place = slice(longest - len(ids), None) if side == "left" else slice(0, len(ids))
            ids_BT[row, place], mask_BT[row, place] = torch.tensor(ids), 1
            labels_BT[row, place] = torch.where(torch.tensor(weights) > 0, torch.tensor(ids), -100)
        padded = model(input_ids=ids_BT, attention_mask=mask_BT, labels=labels_BT).loss
        torch.testing.assert_close(padded, flat)


def test_a_step_cut_into_micro_batches_has_the_same_gradient(folder: Path, rows: Rows) -> None:
    model = adapted(folder)
    whole = model(**from_rows(rows).inputs())
    whole.loss.backward()
    grads = {name: parameter.grad.clone() for name, parameter in lora.trainable_parameters(model)}
    model.zero_grad()
    denominator = sum(sum(weights[1:]) for _, weights in rows)
    for row in rows:
        model(**from_rows([row]).inputs(), denominator=denominator).loss.backward()
    for name, parameter in lora.trainable_parameters(model):
        assert relative(parameter.grad, grads[name]) < 1e-4, name


def test_generate_with_a_cache_equals_stock_transformers(folder: Path) -> None:
    model, theirs = base_model(folder), stock(folder)
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, MICRO.vocabulary, (2, 120), generator=generator)
    mask = torch.ones_like(ids)
    ids[0, :30], mask[0, :30] = MICRO.pad_id, 0  # left padding, and generation runs past the window
    wanted = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": MICRO.pad_id, "eos_token_id": None}
    mine = model.generate(input_ids=ids, attention_mask=mask, **wanted)
    other = theirs.generate(input_ids=ids, attention_mask=mask, **wanted)
    assert mine.tolist() == other.tolist()


@pytest.mark.parametrize("targets", [["attention", "experts"], TARGETS], ids="+".join)
def test_recompute_changes_nothing(folder: Path, rows: Rows, targets: list[str]) -> None:
    plain, recomputed = adapted(folder, targets), adapted(folder, targets)
    base = recomputed.get_base_model()
    (getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable)(
        {"use_reentrant": False}
    )
    for model in (plain, recomputed):
        model.train()
        model(**from_rows(rows).inputs()).loss.backward()
    for (name, a), (_, b) in zip(lora.trainable_parameters(plain), lora.trainable_parameters(recomputed), strict=True):
        assert torch.equal(a.grad, b.grad), name


def test_loading_says_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"config\.json"):
        load(tmp_path)
