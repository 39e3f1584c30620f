"""Reading adapters: against PEFT's own updates, in both of its conventions, and what is refused."""

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
from safetensors.torch import load_file, save_file

from export_samples import ATTENTION, EXPERTS, make_base, peft_model, stock_adapter, stock_model
from ossia.adapters import read as adapters
from ossia.adapters.config import CONFIG_FILE, WEIGHTS_FILE
from ossia.checkpoint.layout import Shape
from ossia.checkpoint.tiny import MICRO
from ossia.errors import UserError


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


def deltas_of(model: Any) -> dict[str, torch.Tensor]:
    """PEFT's updates in float32, under the names of the parameters they change, in transformers' orientation."""
    found = {}
    for name, module in model.base_model.model.named_modules():
        if hasattr(module, "get_delta_weight"):
            parameter = getattr(module, "parameter_name", "weight")
            key = f"{name.replace('.base_layer', '')}.{parameter}"
            found[key] = module.get_delta_weight("default").detach()
    return found


def edit(folder: Path, target: Path, config: dict[str, Any] | None = None, drop: str = "", **tensors: Any) -> Path:
    """Copy an adapter with changes: of its configuration, without the tensors that contain `drop`, with new ones."""
    target.mkdir()
    values = json.loads((folder / CONFIG_FILE).read_text()) | (config or {})
    (target / CONFIG_FILE).write_text(json.dumps(values))
    kept = {name: tensor for name, tensor in load_file(folder / WEIGHTS_FILE).items() if not drop or drop not in name}
    save_file(kept | {name: tensor.clone() for name, tensor in tensors.items()}, target / WEIGHTS_FILE)
    return target


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
    ours = adapters.read(tmp_path, MICRO).deltas
    assert ours.keys() == theirs.keys()
    assert len(ours) == 2 * 7 + 2
    for name, delta in ours.items():
        if ".experts." in name:
            mine = torch.stack([delta.matrix(expert).T for expert in range(MICRO.experts)])
        else:
            mine = delta.matrix()
        torch.testing.assert_close(mine, theirs[name], rtol=1e-6, atol=1e-8)


def test_the_other_convention_is_recognised_and_read_as_peft_reads_it(base: Path, tmp_path: Path) -> None:
    stock = stock_model(base)
    for layer in stock.model.layers:
        layer.mlp.experts.is_transposed = False  # as if transformers did not say; PEFT then swaps the axes
    model = peft_model(stock, LoraConfig(r=2, lora_alpha=8, target_modules=[], target_parameters=EXPERTS))
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(str(tmp_path))
    gate_up = next(tensor for name, tensor in load_file(tmp_path / WEIGHTS_FILE).items() if "base_layer.lora_A" in name)
    assert gate_up.shape[1] == 2 * MICRO.intermediate
    theirs = deltas_of(model)
    for name, delta in adapters.read(tmp_path, MICRO).deltas.items():
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
    """PEFT's layout written from its definition; refused exactly when all the matrices it holds are square."""
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
        with pytest.raises(UserError, match="do not tell"):
            adapters.read(folder, shape)
        return
    found = adapters.read(folder, shape).deltas
    assert len(found) == len(projections)
    for name, update in wanted.items():
        delta = found[f"model.layers.0.mlp.experts.{name}"]
        mine = torch.stack([delta.matrix(expert).T for expert in range(experts)])
        torch.testing.assert_close(mine, update, rtol=1e-5, atol=1e-5)


def test_what_does_not_belong_is_named(base: Path, tmp_path: Path) -> None:
    stock_adapter(base, tmp_path / "good")
    prefix = "base_model.model.model.layers."
    extra = torch.ones(4, 4)
    cases: list[tuple[str, dict[str, Any]]] = [
        ("lm_head.bias", {"base_model.model.lm_head.bias": extra}),
        ("layers.9.self_attn.q_proj", {f"{prefix}9.self_attn.q_proj.lora_{side}.weight": extra for side in "AB"}),
        ("mlp.router has lora_A", {f"{prefix}0.mlp.router.lora_{side}.weight": extra for side in "AB"}),
        ("layers.0.self_attn.q_proj has lora_A", {f"{prefix}0.self_attn.q_proj.lora_A.weight": extra}),
        ("layers.1.mlp.experts has lora_A", {f"{prefix}1.mlp.experts.lora_B.weight": extra}),
        ("lm_head.lora_embedding_A", {"base_model.model.lm_head.lora_embedding_A": extra}),
        ("embed_tokens.lora_A", {"base_model.model.model.embed_tokens.lora_A.weight": extra}),
        ("model.norm", {f"base_model.model.model.norm.lora_{side}.weight": extra for side in "AB"}),
        ("partner", {"base_model.model.lm_head.lora_A.weight": extra}),
    ]
    for number, (message, tensors) in enumerate(cases):
        with pytest.raises(UserError, match=message.replace(".", r"\.")):
            adapters.read(edit(tmp_path / "good", tmp_path / str(number), **tensors), MICRO)
    with pytest.raises(UserError, match="not every layer"):
        adapters.read(edit(tmp_path / "good", tmp_path / "hole", drop="layers.1.mlp.experts.base_layer"), MICRO)


def test_an_adapter_for_another_model_is_refused(base: Path, tmp_path: Path) -> None:
    stock_adapter(base, tmp_path / "experts", EXPERTS)
    stock_adapter(base, tmp_path / "attention", ATTENTION)
    for name in ("experts", "attention"):
        with pytest.raises(UserError, match="do not fit") as error:
            adapters.read(tmp_path / name, MICRO.replace(hidden=96, intermediate=160))
        assert error.value.do
    with pytest.raises(UserError, match="do not fit"):
        adapters.read(tmp_path / "experts", MICRO.replace(experts=6))


@pytest.mark.parametrize(
    "config",
    [
        {"peft_type": "IA3"},
        {"use_dora": True},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"init_lora_weights": "pissa_niter_4"},
        {"r": 5},
        {"rank_pattern": {"gate_up_proj": 4}},
    ],
    ids=str,
)
def test_configurations_that_mean_something_else_are_refused(
    base: Path, tmp_path: Path, config: dict[str, Any]
) -> None:
    stock_adapter(base, tmp_path / "good")
    with pytest.raises(UserError):
        adapters.read(edit(tmp_path / "good", tmp_path / "bad", config), MICRO)


def test_no_adapter_no_weights_and_damage(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not an adapter"):
        adapters.read(tmp_path, MICRO)
    stock_adapter(base, tmp_path / "good")
    (tmp_path / "good" / WEIGHTS_FILE).write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(UserError, match="cannot be read"):
        adapters.read(tmp_path / "good", MICRO)


def test_an_update_that_diverged_is_refused_and_an_untrained_one_is_zero() -> None:
    zero, one = torch.zeros(2, 3, 4), torch.ones(2, 5, 3)
    assert adapters.Delta("w", zero, one, 1.0).is_zero(1)
    assert not adapters.Delta("w", zero + 1, one, 1.0).is_zero(1)
    with pytest.raises(UserError, match="NaN"):
        adapters.Delta("w", zero + math.inf, one, 1.0).matrix(0)
