"""Adapters that were trained elsewhere, with stock PEFT: loaded with the same logits, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from export_samples import ATTENTION, EXPERTS, logits, make_base, stock_adapter, stock_model
from lora_samples import TARGETS, adapted, base_model, relative
from ossia.adapters import apply as lora
from ossia.checkpoint.tiny import MICRO, write_tiny
from ossia.errors import UserError

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
    # Read again, because PEFT sorts the patterns when it writes them, and the first one that matches counts.
    theirs = logits(PeftModel.from_pretrained(stock_model(base), str(tmp_path)).eval())
    model = lora.load(base_model(base), tmp_path, trainable=True)
    assert relative(logits(model), theirs) < 1e-5
    assert relative(logits(base_model(base)), theirs) > 1e-3
    file = load_file(tmp_path / lora.WEIGHTS_FILE)
    stored = sum(tensor.numel() for name, tensor in file.items() if ".lora_" in name)
    assert sum(parameter.numel() for _, parameter in lora.trainable_parameters(model)) == stored
    again = tmp_path / "again"
    again.mkdir()
    lora.save(model, again)
    back = load_file(again / lora.WEIGHTS_FILE)
    assert back.keys() == {name for name in file if ".lora_" in name}
    assert all(torch.equal(back[name], file[name]) for name in back)
    assert torch.equal(logits(lora.load(base_model(base), again)), logits(model))


def test_a_regular_expression_chooses_the_modules_it_chose_there(base: Path, tmp_path: Path) -> None:
    expression = r".*\.1\.self_attn\.[qk]_proj"
    theirs = logits(stock_adapter(base, tmp_path, expression, parameters=EXPERTS, **PLAIN))
    model = lora.load(base_model(base), tmp_path)
    assert relative(logits(model), theirs) < 1e-5
    again = tmp_path / "again"
    again.mkdir()
    lora.save(model, again)
    assert json.loads((again / lora.CONFIG_FILE).read_text())["target_modules"] == expression


def test_copies_of_the_base_must_be_this_base(base: Path, tmp_path: Path) -> None:
    """Stock PEFT writes the embeddings beside a LoRA on them, and loads them in place of the base's."""
    with pytest.warns(UserWarning, match="save_embedding_layers"):
        stock_adapter(base, tmp_path, VOCABULARY, **PLAIN)
    tensors = load_file(tmp_path / lora.WEIGHTS_FILE)
    name = "base_model.model.lm_head.base_layer.weight"
    tensors[name][5, 5] += 1
    save_file(tensors, tmp_path / lora.WEIGHTS_FILE)
    with pytest.raises(UserError, match=r"lm_head\.base_layer\.weight is not what this base"):
        lora.load(base_model(base), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"target_modules": ["q_proj", "mlp.gate"]}, r"changes mlp\.gate"),
        ({"target_parameters": ["mlp.experts.gate_up_proj_bias"]}, "gate_up_proj_bias"),
        ({"target_parameters": ["input_layernorm.weight"]}, "input_layernorm"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"exclude_modules": ["q_proj"]}, "exclude_modules"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"target_modules": "nothing", "target_parameters": None}, "cannot be put on this model"),
        ({"rank_pattern": {"k_proj": 3, "gate_up_proj": 2, "down_proj": 2}}, r"k_proj\.lora_A\.weight has shape"),
        ({"target_modules": ["q_proj"]}, "nobody needs"),
        ({"target_modules": [*ATTENTION, "lm_head"]}, r"no tensor .*lm_head\.lora_A"),
    ],
    ids=str,
)
def test_what_is_not_understood_is_named(base: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    stock_adapter(base, tmp_path)
    config = json.loads((tmp_path / lora.CONFIG_FILE).read_text())
    (tmp_path / lora.CONFIG_FILE).write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=message):
        lora.load(base_model(base), tmp_path)


def test_damaged_files_are_refused(base: Path, tmp_path: Path) -> None:
    lora.save(adapted(base, TARGETS), tmp_path)
    other = tmp_path / "other"
    write_tiny(other, MICRO.replace(hidden=96), seed=0)
    with pytest.raises(UserError, match="another base model"):
        lora.load(base_model(other), tmp_path)
    (tmp_path / lora.WEIGHTS_FILE).write_bytes(b"\x10")
    with pytest.raises(UserError, match="cannot be read"):
        lora.load(base_model(base), tmp_path)
    (tmp_path / lora.CONFIG_FILE).write_text("[]")
    with pytest.raises(UserError, match="not an adapter"):
        lora.load(base_model(base), tmp_path)


def test_experts_in_floating_point_take_the_same_adapters(base: Path, tmp_path: Path) -> None:
    """A base that was exported as bfloat16: PEFT's own layers hold the experts' updates."""
    from ossia.export import job
    from ossia.export.source import find_source

    zero, full = tmp_path / "zero", tmp_path / "full"
    zero.mkdir()
    full.mkdir()
    lora.save(lora.attach(base_model(base)), zero)
    job.export(find_source(str(zero), str(base)), "hf", tmp_path / "bf16", experts="bf16")
    model = adapted(base, TARGETS)
    lora.save(model, full)
    back = lora.load(base_model(tmp_path / "bf16"), full)
    assert relative(logits(back), logits(model)) < 1e-5
    again = tmp_path / "again"
    again.mkdir()
    lora.save(back, again)
    for file in (lora.CONFIG_FILE, lora.WEIGHTS_FILE):
        assert (again / file).read_bytes() == (full / file).read_bytes()


def test_the_base_of_these_tests_is_stock_transformers(base: Path) -> None:
    assert relative(logits(base_model(base)), logits(stock_model(base))) < 1e-5
