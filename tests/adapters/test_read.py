"""Tests of reading adapters, against PEFT's own updates in both of its conventions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file

from ossia.adapters.config import CONFIG_FILE, WEIGHTS_FILE, AdapterConfig
from ossia.adapters.layout import adaptable_weights
from ossia.adapters.read import LoraDelta, read_adapter
from ossia.checkpoint.layout import Shape
from ossia.checkpoint.tiny import MICRO
from ossia.errors import UserError
from support.export_samples import ATTENTION, EXPERTS, make_base, stock_adapter, stock_adapter_with_swapped_experts


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


def deltas_of(model: Any) -> dict[str, torch.Tensor]:
    """Return PEFT's updates by the names of the changed parameters, in float32 and in transformers' orientation."""
    found = {}
    for name, module in model.base_model.model.named_modules():
        if hasattr(module, "get_delta_weight"):
            parameter = getattr(module, "parameter_name", "weight")
            key = f"{name.replace('.base_layer', '')}.{parameter}"
            found[key] = module.get_delta_weight("default").detach()
    return found


@pytest.mark.parametrize(
    "settings_of_peft",
    [
        {},
        {"use_rslora": True, "rank_pattern": {}, "alpha_pattern": {}},
        {"rank_pattern": {"router.weight": 3, "lm_head": 2, "gate_up_proj": 2, "down_proj": 2}},
        {"rank_pattern": {r"layers\.1\..*\.q_proj": 3, "gate_up_proj": 2}, "alpha_pattern": {"down_proj": 1}},
    ],
    ids=["plain", "rank-stabilised", "own ranks", "pattern"],
)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_every_update_is_pefts_own(base: Path, tmp_path: Path, settings_of_peft: dict[str, Any]) -> None:
    every = [*ATTENTION, *EXPERTS, "mlp.router.weight", "embed_tokens", "lm_head"]
    theirs = deltas_of(stock_adapter(base, tmp_path, every, **settings_of_peft))
    ours = read_adapter(tmp_path, MICRO).deltas
    assert ours.keys() == theirs.keys()
    assert len(ours) == 2 * 7 + 2
    for name, delta in ours.items():
        if ".experts." in name:
            mine = torch.stack([delta.matrix(expert).T for expert in range(MICRO.experts)])
        else:
            mine = delta.matrix()
        torch.testing.assert_close(mine, theirs[name], rtol=1e-6, atol=1e-8)


def test_layers_may_have_updates_of_different_projections(base: Path, tmp_path: Path) -> None:
    parameters = ["0.mlp.experts.gate_up_proj", "1.mlp.experts.down_proj"]
    theirs = deltas_of(stock_adapter(base, tmp_path, ["q_proj"], parameters=parameters))
    ours = read_adapter(tmp_path, MICRO).deltas
    assert ours.keys() == theirs.keys()
    for name in (f"model.layers.{parameter}" for parameter in parameters):
        mine = torch.stack([ours[name].matrix(expert).T for expert in range(MICRO.experts)])
        torch.testing.assert_close(mine, theirs[name], rtol=1e-6, atol=1e-8)


def test_the_other_convention_is_recognised_and_read_as_peft_reads_it(base: Path, tmp_path: Path) -> None:
    theirs = deltas_of(stock_adapter_with_swapped_experts(base, tmp_path))
    gate_up = next(tensor for name, tensor in load_file(tmp_path / WEIGHTS_FILE).items() if "base_layer.lora_A" in name)
    assert gate_up.shape[1] == 2 * MICRO.intermediate
    for name, delta in read_adapter(tmp_path, MICRO).deltas.items():
        mine = torch.stack([delta.matrix(expert).T for expert in range(MICRO.experts)])
        torch.testing.assert_close(mine, theirs[name], rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(st.sampled_from([32, 64, 96]), st.sampled_from([32, 64])),
    experts=st.integers(2, 3),
    rank=st.integers(1, 3),
    transposed=st.booleans(),
    projections=st.sampled_from([("gate_up_proj",), ("down_proj",), ("gate_up_proj", "down_proj")]),
)
def test_any_shape_is_read_as_written_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: tuple[int, int],
    experts: int,
    rank: int,
    transposed: bool,
    projections: tuple[str, ...],
) -> None:
    """The test writes PEFT's layout from its definition. It is refused exactly when all its matrices are square."""
    hidden, inner = sizes
    shape = Shape(1, hidden, inner, experts, 1, heads=2, kv_heads=1, head_dim=16, vocabulary=64)
    widths = {"gate_up_proj": (hidden, 2 * inner), "down_proj": (inner, hidden)}
    generator, tensors, wanted = torch.Generator().manual_seed(rank), {}, {}
    for place, projection in zip((".base_layer", "")[-len(projections) :], projections, strict=True):
        first, second = widths[projection] if transposed else widths[projection][::-1]
        a = torch.randn(experts, rank, first, generator=generator)
        b = torch.randn(second, rank, experts, generator=generator)
        update = torch.einsum("ore,eri->eio", b, a) * 3
        wanted[projection] = update if transposed else update.transpose(1, 2)
        prefix = f"base_model.model.model.layers.0.mlp.experts{place}"
        tensors[f"{prefix}.lora_A.weight"] = a.reshape(experts * rank, -1)
        tensors[f"{prefix}.lora_B.weight"] = b.reshape(-1, rank * experts)
    folder = tmp_path_factory.mktemp("adapter")
    save_file(tensors, folder / WEIGHTS_FILE)
    targeted = [f"mlp.experts.{name}" for name in projections]
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 3 * rank, "target_parameters": targeted}
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    if all(widths[name][0] == widths[name][1] for name in projections):
        with pytest.raises(UserError, match="do not determine"):
            read_adapter(folder, shape)
        return
    found = read_adapter(folder, shape).deltas
    assert len(found) == len(projections)
    for name, update in wanted.items():
        delta = found[f"model.layers.0.mlp.experts.{name}"]
        mine = torch.stack([delta.matrix(expert).T for expert in range(experts)])
        torch.testing.assert_close(mine, update, rtol=1e-5, atol=1e-5)


EXPRESSIONS = [
    "q_proj", "self_attn.q_proj", r"layers\.1\..*\.q_proj", "1.mlp.experts.down_proj", "down_proj", "router.weight",
    "proj", r".*_proj", "lm_head", "model.lm_head", "embed_tokens", "q_proj|k_proj", r"model\.layers\.0.*",
]  # fmt: skip
KEYS = [weight.key for weight in adaptable_weights(MICRO)]


@given(patterns=st.dictionaries(st.sampled_from(EXPRESSIONS), st.integers(1, 9)), key=st.sampled_from(KEYS))
def test_patterns_choose_as_pefts_do(patterns: dict[str, int], key: str) -> None:
    config = AdapterConfig(99, 98, rank_pattern=patterns, alpha_pattern=patterns)
    chosen = get_pattern_key(patterns.keys(), key)
    assert config.rank_of(key) == patterns.get(chosen, 99)
    assert config.alpha_of(key) == patterns.get(chosen, 98)


@given(
    targets=st.one_of(st.sampled_from(EXPRESSIONS), st.lists(st.sampled_from(EXPRESSIONS), min_size=1)),
    key=st.sampled_from(KEYS),
)
def test_modules_are_chosen_as_pefts_are(targets: str | list[str], key: str) -> None:
    config = AdapterConfig(1, 1, target_modules=targets if isinstance(targets, str) else tuple(targets))
    assert config.targets_module(key) is bool(check_target_module_exists(LoraConfig(target_modules=targets), key))


def test_an_update_that_diverged_is_refused_and_an_untrained_one_is_zero() -> None:
    zero, one = torch.zeros(2, 3, 4), torch.ones(2, 5, 3)
    assert LoraDelta("w", zero, one, 1.0).is_zero(1)
    assert not LoraDelta("w", zero + 1, one, 1.0).is_zero(1)
    with pytest.raises(UserError, match="NaN"):
        LoraDelta("w", zero + math.inf, one, 1.0).matrix(0)
