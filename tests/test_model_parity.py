"""The whole model against stock transformers (eager attention, eager experts) on the same dequantised weights."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import GptOssForCausalLM

from ossia.errors import UserError
from ossia.model import lora
from ossia.model.batch import from_rows
from ossia.model.experts import PackedExperts
from ossia.model.load import load, load_model
from ossia.model.tiny import MICRO, write_tiny

ROWS = (150, 7, 63)  # one longer than the window of 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("micro")
    write_tiny(path, MICRO, seed=3)
    return path


@pytest.fixture(scope="module")
def rows() -> list[tuple[list[int], list[float]]]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for length in ROWS:
        ids = torch.randint(MICRO.vocabulary, (length,), generator=generator).tolist()
        weights = torch.rand(length, generator=generator).tolist()
        made.append((ids, [0.0] * 4 + weights[4:]))
    return made


def stock(folder: Path) -> GptOssForCausalLM:
    model = GptOssForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    assert not hasattr(model, "hf_quantizer") or not isinstance(model.model.layers[0].mlp.experts, PackedExperts)
    return model.float()


def adapted(folder: Path, targets: tuple[str, ...] = ("attention", "experts")) -> PeftModel:
    torch.manual_seed(0)
    model = lora.attach(load_model(folder, dtype="float32", device="cpu"), rank=4, expert_rank=2, targets=targets)
    for _, parameter in lora.trainable_parameters(model):
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def reference_loss(model: GptOssForCausalLM, rows: list[tuple[list[int], list[float]]]) -> Tensor:
    """One sequence at a time, full logits."""
    total, denominator = torch.zeros(()), 0.0
    for ids, weights in rows:
        log_p = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        chosen = log_p.gather(1, torch.tensor(ids)[1:, None])[:, 0]
        total = total - (chosen * torch.tensor(weights)[1:]).sum()
        denominator += sum(weights[1:])
    return total / denominator


def relative(mine: Tensor, other: Tensor) -> float:
    return float((mine - other).norm() / other.norm())


def test_loss_and_gradients_equal_stock_peft_on_stock_transformers(
    folder: Path, rows: list[tuple[list[int], list[float]]], tmp_path: Path
) -> None:
    mine = adapted(folder)
    lora.save(mine, tmp_path)
    with warnings.catch_warnings():
        # Stock PEFT says that the experts' ranks were ignored although it uses them (checked below by shape and value).
        warnings.simplefilter("ignore")
        other = PeftModel.from_pretrained(stock(folder), str(tmp_path), is_trainable=True)
    loss = mine(**from_rows(rows).inputs()).loss
    truth = reference_loss(other, rows)
    assert abs(loss.item() - truth.item()) < 1e-5 * truth.item()
    loss.backward()
    truth.backward()
    compared = 0
    theirs = dict(other.named_parameters())
    for name, parameter in mine.named_parameters():
        if not parameter.requires_grad:
            continue
        prefix, _, leaf = name.rpartition(".experts.lora_")
        if prefix:
            which, _, _ = leaf.partition(".")
            inner = ".base_layer" if which.startswith("gate_up") else ""
            grad = theirs[f"{prefix}.experts{inner}.lora_{which[-1]}.default.weight"].grad
            E, R = MICRO.experts, 2
            grad = grad.reshape(E, R, -1) if which[-1] == "A" else grad.reshape(-1, R, E).permute(2, 0, 1)
        else:
            grad = theirs[name].grad
        assert relative(parameter.grad, grad) < 1e-4, name
        compared += 1
    assert compared == MICRO.layers * (4 * 2 + 2 * 2)


def test_labels_as_other_trainers_pass_them_give_the_same_loss(
    folder: Path, rows: list[tuple[list[int], list[float]]]
) -> None:
    model = load_model(folder, dtype="float32", device="cpu")
    plain = [(ids, [0.0] * 4 + [1.0] * (len(ids) - 4)) for ids, _ in rows]
    flat = model(**from_rows(plain).inputs()).loss
    longest = max(ROWS)
    for side in ("left", "right"):
        ids_BT = torch.zeros(len(rows), longest, dtype=torch.int64)
        mask_BT, labels_BT = torch.zeros_like(ids_BT), torch.full_like(ids_BT, -100)
        for row, (ids, weights) in enumerate(plain):
            place = slice(longest - len(ids), None) if side == "left" else slice(0, len(ids))
            ids_BT[row, place], mask_BT[row, place] = torch.tensor(ids), 1
            labels_BT[row, place] = torch.where(torch.tensor(weights) > 0, torch.tensor(ids), -100)
        padded = model(input_ids=ids_BT, attention_mask=mask_BT, labels=labels_BT).loss
        torch.testing.assert_close(padded, flat)


def test_a_step_cut_into_passes_has_the_same_gradient(folder: Path, rows: list[tuple[list[int], list[float]]]) -> None:
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
    model, theirs = load_model(folder, dtype="float32", device="cpu"), stock(folder)
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, MICRO.vocabulary, (2, 120), generator=generator)
    mask = torch.ones_like(ids)
    ids[0, :30], mask[0, :30] = MICRO.pad_id, 0  # left padding, and generation runs past the window
    wanted = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": MICRO.pad_id, "eos_token_id": None}
    mine = model.generate(input_ids=ids, attention_mask=mask, **wanted)
    other = theirs.generate(input_ids=ids, attention_mask=mask, **wanted)
    assert mine.tolist() == other.tolist()


def test_recompute_changes_nothing(folder: Path, rows: list[tuple[list[int], list[float]]]) -> None:
    plain, recomputed = adapted(folder), adapted(folder)
    base = recomputed.get_base_model()
    (getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable)(
        {"use_reentrant": False}
    )
    for model in (plain, recomputed):
        model.train()
        model(**from_rows(rows).inputs()).loss.backward()
    for (name, a), (_, b) in zip(lora.trainable_parameters(plain), lora.trainable_parameters(recomputed), strict=True):
        assert torch.equal(a.grad, b.grad), name


@pytest.mark.parametrize("targets", [("attention",), ("experts",), ("attention", "experts")])
def test_an_adapter_comes_back_from_disk_bit_for_bit(folder: Path, tmp_path: Path, targets: tuple[str, ...]) -> None:
    model = adapted(folder, targets)
    lora.save(model, tmp_path)
    back = lora.load(load_model(folder, dtype="float32", device="cpu"), tmp_path)
    wanted = dict(lora.trainable_parameters(model))
    got = {name: parameter for name, parameter in back.named_parameters() if name in wanted}
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    assert not any(parameter.requires_grad for parameter in back.parameters())


def test_switching_the_adapter_off_gives_the_base(folder: Path, rows: list[tuple[list[int], list[float]]]) -> None:
    base, model = load_model(folder, dtype="float32", device="cpu"), adapted(folder)
    inputs = from_rows(rows).inputs()
    with torch.no_grad(), model.disable_adapter():
        off = model(**inputs).loss
    with torch.no_grad():
        assert torch.equal(off, base(**inputs).loss)
        assert not torch.equal(model(**inputs).loss, off)


@pytest.mark.parametrize("pattern", [{"q_proj": 64}, {"gate_up_proj": 4}, {"gate_up_proj": 4, "down_proj": 8}])
def test_an_adapter_with_other_scales_than_ours_is_refused(
    folder: Path, tmp_path: Path, pattern: dict[str, float]
) -> None:
    model = load_model(folder, dtype="float32", device="cpu")
    lora.save(lora.attach(model, rank=2, expert_rank=2), tmp_path)
    config = json.loads((tmp_path / lora.CONFIG_FILE).read_text())
    (tmp_path / lora.CONFIG_FILE).write_text(json.dumps({**config, "alpha_pattern": pattern}))
    with pytest.raises(UserError, match="alpha_pattern"):
        lora.load(load_model(folder, dtype="float32", device="cpu"), tmp_path)
    (tmp_path / lora.CONFIG_FILE).write_text("[]")
    with pytest.raises(UserError, match="not an adapter"):
        lora.load(load_model(folder, dtype="float32", device="cpu"), tmp_path)


def test_an_adapter_that_does_not_fit_is_refused_with_the_tensor_named(folder: Path, tmp_path: Path) -> None:
    lora.save(adapted(folder), tmp_path)
    other = tmp_path / "other"
    write_tiny(other, MICRO.replace(hidden=96), seed=0)
    with pytest.raises(UserError, match="another base model"):
        lora.load(load_model(other, dtype="float32", device="cpu"), tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x10")
    with pytest.raises(UserError, match="cannot be read"):
        lora.load(load_model(folder, dtype="float32", device="cpu"), tmp_path)


def test_loading_says_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"config\.json"):
        load(tmp_path)
