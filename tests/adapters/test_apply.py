"""Tests of LoRA on every target against stock PEFT on stock transformers, in memory and through files."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from ossia.adapters import apply as lora
from ossia.adapters.config import CONFIG_FILE, WEIGHTS_FILE
from ossia.checkpoint.tiny import MICRO, write_tiny
from ossia.errors import UserError
from ossia.model import loss
from ossia.model.batch import from_rows
from support.lora_samples import (
    TARGETS,
    Rows,
    adapted,
    base_model,
    random_rows,
    reference_loss,
    relative,
    stock,
)

SETS = [[target] for target in TARGETS] + [["attention", "experts"], TARGETS]
IDS = torch.arange(60)[None] * 7 % MICRO.vocabulary


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("micro")
    write_tiny(path, MICRO, seed=3)
    return path


@pytest.fixture(scope="module")
def rows() -> Rows:
    return random_rows()


def on_stock(folder: Path, adapter: Path) -> PeftModel:
    with warnings.catch_warnings():
        # Stock PEFT warns that it ignores the ranks of parameters, but it uses them (checked by shape and value).
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(stock(folder), str(adapter), is_trainable=True)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits[0]


def theirs_of(name: str, grads: dict[str, Tensor]) -> Tensor:
    """Return stock PEFT's gradient of our parameter `name`, in our shape."""
    prefix, _, leaf = name.rpartition(".experts.lora_")
    if not prefix:
        return grads[name]
    which, _, _ = leaf.partition(".")
    inner = ".base_layer" if which.startswith("gate_up") else ""
    grad = grads[f"{prefix}.experts{inner}.lora_{which[-1]}.default.weight"]
    E = MICRO.experts
    return grad.reshape(E, -1, grad.shape[1]) if which[-1] == "A" else grad.reshape(len(grad), -1, E).permute(2, 0, 1)


@pytest.mark.parametrize("chunk", [1 << 25, 50 * MICRO.vocabulary], ids=["one chunk", "chunks"])
@pytest.mark.parametrize("targets", SETS, ids="+".join)
def test_loss_and_gradients_equal_stock_peft_on_stock_transformers(
    folder: Path, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, targets: list[str], chunk: int
) -> None:
    monkeypatch.setattr(loss, "CHUNK_LOGITS", chunk)
    mine = adapted(folder, targets)
    lora.save_adapter(mine, tmp_path)
    other = on_stock(folder, tmp_path)
    for model in (mine, other):
        for name, parameter in model.named_parameters():
            if name.endswith(".sinks"):
                parameter.requires_grad_(True)
    value, truth = mine(**from_rows(rows).inputs()).loss, reference_loss(other, rows)
    assert abs(value.item() - truth.item()) < 1e-6 * truth.item()
    value.backward()
    truth.backward()
    grads = {name: parameter.grad for name, parameter in other.named_parameters() if parameter.grad is not None}
    compared = 0
    for name, parameter in lora.trainable_parameters(mine):
        assert relative(parameter.grad, theirs_of(name, grads)) < 1e-5, name
        compared += 1
    assert compared == len(grads)
    per_layer = {"attention": 4, "experts": 2, "router": 1}
    pairs = sum(per_layer[target] * MICRO.layers if target in per_layer else 1 for target in targets)
    assert compared == 2 * pairs + MICRO.layers


ALONE = """
import sys, torch, warnings
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GptOssForCausalLM
warnings.simplefilter("ignore")
base, ids, *adapters = sys.argv[1:]
ids = torch.load(ids)
for adapter in adapters:
    # .float(): transformers 5.17 ignores the dtype for experts and loads them in bfloat16, where they are exact
    model = GptOssForCausalLM.from_pretrained(base, dtype=torch.float32).float()
    model = PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        torch.save(model(input_ids=ids).logits[0], adapter + "/logits.pt")
assert "ossia" not in sys.modules
print("done")
"""


def test_adapters_load_where_ossia_is_not(folder: Path, tmp_path: Path) -> None:
    """In another process, stock PEFT on stock transformers gives the same logits as the model here."""
    torch.save(IDS, tmp_path / "ids.pt")
    said = {}
    for targets in SETS:
        adapter = tmp_path / "+".join(targets)
        adapter.mkdir()
        model = adapted(folder, targets)
        said[adapter] = logits(model)
        lora.save_adapter(model, adapter)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    arguments = [str(folder), str(tmp_path / "ids.pt"), *map(str, said)]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.strip() == "done", done.stderr
    untuned = logits(base_model(folder))
    for adapter, mine in said.items():
        assert relative(mine, torch.load(adapter / "logits.pt")) < 1e-5, adapter.name
        assert relative(mine, untuned) > 1e-2, adapter.name


@pytest.mark.parametrize("targets", SETS, ids="+".join)
def test_an_adapter_comes_back_from_disk_bit_for_bit(folder: Path, tmp_path: Path, targets: list[str]) -> None:
    model = adapted(folder, targets, attention_ranks={"q_proj": 7})
    lora.save_adapter(model, tmp_path)
    back = lora.load_adapter(base_model(folder), tmp_path)
    wanted = dict(lora.trainable_parameters(model))
    got = {name: parameter for name, parameter in back.named_parameters() if name in wanted}
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    assert not any(parameter.requires_grad for parameter in back.parameters())
    assert torch.equal(logits(back), logits(model))
    again = tmp_path / "again"
    again.mkdir()
    lora.save_adapter(back, again)
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        assert (again / file).read_bytes() == (tmp_path / file).read_bytes()


@pytest.mark.parametrize("targets", SETS, ids="+".join)
def test_switching_the_adapter_off_gives_the_base(folder: Path, rows: Rows, targets: list[str]) -> None:
    base, model = base_model(folder), adapted(folder, targets)
    inputs = from_rows(rows).inputs()
    with torch.no_grad(), model.disable_adapter():
        off = model(**inputs)
        assert torch.equal(logits(model), logits(base))
    with torch.no_grad():
        plain, on = base(**inputs), model(**inputs)
    assert torch.equal(off.loss, plain.loss)
    assert torch.equal(off.nll, plain.nll)
    assert not torch.allclose(on.nll, off.nll, rtol=1e-4)


def test_a_new_adapter_changes_nothing_and_learns(folder: Path, rows: Rows) -> None:
    """As in PEFT, one of A and B is zero at first, and that matrix has a gradient."""
    base = base_model(folder)
    model = lora.attach_adapter(base_model(folder), targets=TARGETS)
    inputs = from_rows(rows).inputs()
    assert torch.allclose(model(**inputs).loss, base(**inputs).loss, rtol=1e-6)
    model(**inputs).loss.backward()
    zero = [(name, parameter) for name, parameter in lora.trainable_parameters(model) if not parameter.any()]
    assert len(zero) == MICRO.layers * (4 + 2 + 1) + 2
    assert all(parameter.grad.any() for _, parameter in zero)
    assert {name.rpartition("lora_")[2] for name, _ in zero} >= {"embedding_A.default", "B.default.weight"}


def test_generate_uses_the_adapters(folder: Path, tmp_path: Path) -> None:
    model = adapted(folder, TARGETS)
    lora.save_adapter(model, tmp_path)
    wanted = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": MICRO.pad_id, "eos_token_id": None}
    mine = model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), **wanted)
    other = on_stock(folder, tmp_path).generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), **wanted)
    assert mine.tolist() == other.tolist()


def test_recorded_router_logits_are_the_adapted_ones(folder: Path, tmp_path: Path) -> None:
    model = adapted(folder, ["router"])
    lora.save_adapter(model, tmp_path)
    with torch.no_grad():
        mine = model(input_ids=IDS, output_router_logits=True).router_logits
        other = on_stock(folder, tmp_path)(input_ids=IDS, output_router_logits=True).router_logits
    assert len(mine) == len(other) == MICRO.layers
    for a, b in zip(mine, other, strict=True):
        assert relative(a, b) < 1e-5


def test_a_router_update_below_bfloat16s_resolution_counts(folder: Path) -> None:
    from ossia.model.load import load_model

    model = lora.attach_adapter(load_model(folder, dtype="bfloat16", device="cpu"), targets=["router"], router_rank=1)
    router = model.base_model.model.model.layers[0].mlp.router
    hidden = torch.randn(9, MICRO.hidden, generator=torch.Generator().manual_seed(0)).bfloat16()
    before, _, _ = router(hidden)
    router.lora_A["default"].weight.data.fill_(1e-4)
    router.lora_B["default"].weight.data.fill_(1.0)
    after, scores, indices = router(hidden)
    expected = router.scaling["default"] * 1e-4 * hidden.float().sum(1, keepdim=True).expand(-1, MICRO.experts)
    torch.testing.assert_close(after - before, expected, rtol=1e-2, atol=1e-5)
    assert scores.dtype == torch.bfloat16
    assert indices.shape == (9, MICRO.experts_per_token)


def test_pefts_own_lora_on_the_head_is_in_the_loss_and_what_is_more_is_refused(folder: Path, rows: Rows) -> None:
    """Other trainers attach LoRA in this way. The chunked loss does not support DoRA, or dropout in training."""
    inputs = from_rows(rows).inputs()

    def with_head(**settings: Any) -> Any:
        torch.manual_seed(0)
        config = LoraConfig(r=3, target_modules=["lm_head"], **settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = get_peft_model(base_model(folder), config)
        torch.nn.init.normal_(model.base_model.model.lm_head.lora_B["default"].weight)
        return model

    model = with_head(lora_dropout=0.5).eval()
    truth = reference_loss(model, rows)
    assert torch.isclose(model(**inputs).loss, truth, rtol=1e-6)
    with pytest.raises(UserError, match="plain LoRA"):
        model.train()(**inputs)
    with pytest.raises(UserError, match="plain LoRA"):
        with_head(use_dora=True)(**inputs)
    merged = with_head()
    merged.merge_adapter()
    assert torch.isclose(merged(**inputs).loss, truth, rtol=1e-5)


def test_every_target_has_its_rank_and_its_scale(folder: Path) -> None:
    settings = {
        "rank": 4, "alpha": 12.0, "attention_ranks": {"o_proj": 6}, "expert_rank": 2, "expert_alpha": 5.0,
        "router_rank": 3, "router_alpha": 7.0, "vocabulary_rank": 5, "vocabulary_alpha": 11.0,
    }  # fmt: skip
    model = lora.attach_adapter(base_model(folder), targets=TARGETS, **settings).base_model.model
    layer = model.model.layers[1]
    scales = {name: getattr(layer.self_attn, name).scaling["default"] for name in ("q_proj", "o_proj")}
    assert scales == {"q_proj": 3.0, "o_proj": 3.0}
    assert layer.self_attn.o_proj.lora_A["default"].weight.shape[0] == 6
    assert [(update.a_ERI.shape[1], update.scale) for update in layer.mlp.experts.updates()] == [(2, 2.5)] * 2
    assert (layer.mlp.router.r["default"], layer.mlp.router.scaling["default"]) == (3, 7 / 3)
    for place in (model.model.embed_tokens, model.lm_head):
        assert (place.r["default"], place.scaling["default"]) == (5, 11 / 5)
