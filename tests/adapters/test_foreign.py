"""Tests of adapters from stock PEFT: Ossia loads them with the same logits and saves the same tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from ossia.adapters import apply as lora
from ossia.adapters.config import CONFIG_FILE, WEIGHTS_FILE
from support.export_samples import (
    ATTENTION,
    EXPERTS,
    logits,
    make_base,
    stock_adapter,
    stock_adapter_with_swapped_experts,
    stock_model,
)
from support.lora_samples import TARGETS, adapted, base_model, relative

ROUTER, VOCABULARY = "mlp.router.weight", ["embed_tokens", "lm_head"]
PLAIN: dict[str, Any] = {"rank_pattern": {}, "alpha_pattern": {}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize(
    ("targets", "settings"),
    [
        (["q_proj", "v_proj"], PLAIN),
        (["model.layers.1.self_attn.o_proj", "self_attn.k_proj"], PLAIN),
        ([*ATTENTION, *EXPERTS, ROUTER], {"use_rslora": True}),
        ([*ATTENTION, *EXPERTS], {"rank_pattern": {"q_proj": 7, "gate_up_proj": 3, "1.mlp.experts.down_proj": 5}}),
        ([*ATTENTION, *EXPERTS], {"alpha_pattern": {r"layers\.0.*_proj": 64, "down_proj": 1}}),
        ([*ATTENTION, *(f"1.{name}" for name in EXPERTS)], PLAIN),  # as in OpenAI's cookbook
        (["q_proj", EXPERTS[1]], PLAIN),
        (["q_proj", "0.mlp.experts.gate_up_proj", "1.mlp.experts.down_proj"], PLAIN),
        (["q_proj", "gate_up_proj", "down_proj", "router.weight"], PLAIN),
        ([ROUTER], {"rank_pattern": {"router.weight": 2}, "alpha_pattern": {r"1\.mlp\.router\.weight": 20}}),
        (VOCABULARY, PLAIN),
        ([*ATTENTION, *EXPERTS, ROUTER, *VOCABULARY], {"rank_pattern": {"lm_head": 2}, "use_rslora": True}),
        (["q_proj"], {"lora_dropout": 0.3, "init_lora_weights": "gaussian"}),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else ",".join(map(str, value)),
)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`", "ignore:The following (rank|alpha)_pattern keys")
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_foreign_adapters_say_the_same_here_and_after_they_were_saved_again(
    base: Path, tmp_path: Path, targets: list[str], settings: dict[str, Any]
) -> None:
    parameters = [name for name in targets if name.rpartition(".")[2] in ("gate_up_proj", "down_proj", "weight")]
    modules = [name for name in targets if name not in parameters]
    stock_adapter(base, tmp_path, modules, parameters=parameters, **settings)
    # The adapter is read again: PEFT sorts the patterns when it writes them, and the first matching pattern counts.
    theirs = logits(PeftModel.from_pretrained(stock_model(base), str(tmp_path)).eval())
    model = lora.load_adapter(base_model(base), tmp_path, trainable=True)
    assert relative(logits(model), theirs) < 1e-5
    assert relative(logits(base_model(base)), theirs) > 1e-3
    file = load_file(tmp_path / WEIGHTS_FILE)
    stored = sum(tensor.numel() for name, tensor in file.items() if ".lora_" in name)
    assert sum(parameter.numel() for _, parameter in lora.trainable_parameters(model)) == stored
    again = tmp_path / "again"
    again.mkdir()
    lora.save_adapter(model, again)
    back = load_file(again / WEIGHTS_FILE)
    assert back.keys() == {name for name in file if ".lora_" in name}
    assert all(torch.equal(back[name], file[name]) for name in back)
    assert torch.equal(logits(lora.load_adapter(base_model(base), again)), logits(model))


def test_a_regular_expression_chooses_the_modules_it_chose_there(base: Path, tmp_path: Path) -> None:
    expression = r".*\.1\.self_attn\.[qk]_proj"
    theirs = logits(stock_adapter(base, tmp_path, expression, parameters=EXPERTS, **PLAIN))
    model = lora.load_adapter(base_model(base), tmp_path)
    assert relative(logits(model), theirs) < 1e-5
    again = tmp_path / "again"
    again.mkdir()
    lora.save_adapter(model, again)
    assert json.loads((again / CONFIG_FILE).read_text())["target_modules"] == expression


def test_targets_that_gpt_oss_does_not_have_do_nothing_here_as_in_peft(base: Path, tmp_path: Path) -> None:
    """Lists of targets for other models contain projections of dense layers."""
    targets = ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
    theirs = logits(stock_adapter(base, tmp_path, targets, **PLAIN))
    assert set(json.loads((tmp_path / CONFIG_FILE).read_text())["target_modules"]) == set(targets)
    model = lora.load_adapter(base_model(base), tmp_path)
    assert relative(logits(model), theirs) < 1e-5
    assert relative(logits(base_model(base)), theirs) > 1e-3


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_the_other_convention_of_experts_says_the_same_and_is_saved_in_this_one(base: Path, tmp_path: Path) -> None:
    theirs = logits(stock_adapter_with_swapped_experts(base, tmp_path).eval())
    model = lora.load_adapter(base_model(base), tmp_path)
    assert relative(logits(model), theirs) < 1e-5
    assert relative(logits(base_model(base)), theirs) > 1e-3
    again = tmp_path / "again"
    again.mkdir()
    lora.save_adapter(model, again)
    assert relative(logits(PeftModel.from_pretrained(stock_model(base), str(again)).eval()), theirs) < 1e-5


def test_experts_in_floating_point_take_the_same_adapters(base: Path, tmp_path: Path) -> None:
    """The base was exported as bfloat16. There, PEFT's own layers hold the updates of the experts."""
    from ossia.export import job
    from ossia.export.source import find_source

    zero, full = tmp_path / "zero", tmp_path / "full"
    zero.mkdir()
    full.mkdir()
    lora.save_adapter(lora.attach_adapter(base_model(base)), zero)
    job.write_export(find_source(str(zero), str(base)), "hf", tmp_path / "bf16", experts="bf16")
    model = adapted(base, TARGETS)
    lora.save_adapter(model, full)
    back = lora.load_adapter(base_model(tmp_path / "bf16"), full)
    assert relative(logits(back), logits(model)) < 1e-5
    again = tmp_path / "again"
    again.mkdir()
    lora.save_adapter(back, again)
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        assert (again / file).read_bytes() == (full / file).read_bytes()


def test_the_base_of_these_tests_is_stock_transformers(base: Path) -> None:
    assert relative(logits(base_model(base)), logits(stock_model(base))) < 1e-5
