"""Tests of the layer: kept, recomputed and offloaded tensors, its norm and its LoRA products."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm

from ossia.adapters import apply as lora
from ossia.adapters.layers import LoraLinear
from ossia.checkpoint.tiny import MICRO, write_tiny
from ossia.model import layer as layer_module
from ossia.model.batch import from_rows
from ossia.model.layer import RMSNorm
from ossia.model.load import load_model

T = 90


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "m", MICRO, seed=1)


def adapted(folder: Path, recompute: bool, dtype: str = "float32") -> Any:
    torch.manual_seed(0)
    model = lora.attach_adapter(load_model(folder, dtype=dtype, device="cpu"), rank=4, expert_rank=2).train()
    for _, parameter in lora.trainable_parameters(model):
        nn.init.normal_(parameter, std=0.1)
    base = model.get_base_model()
    if recompute:
        (getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable)(
            {"use_reentrant": False}
        )
    return model


def batch() -> dict[str, Tensor]:
    ids = torch.randint(MICRO.vocabulary, (T,), generator=torch.Generator().manual_seed(0)).tolist()
    return from_rows([(ids, [0.0] + [1.0] * (T - 1))]).inputs()


def kept_bytes(model: Any, inputs: dict[str, Tensor]) -> int:
    """Return the bytes of activations that autograd keeps between the passes. Each storage counts once."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in parameters and tensor.is_floating_point():
            storages[pointer] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.get_base_model().model(
            input_ids=inputs["input_ids"], attention_mask=None, use_cache=False
        ).last_hidden_state.sum()  # fmt: skip
    loss.backward()
    return sum(storages.values())


def test_recompute_keeps_two_tensors_a_layer_and_projects_each_expert_once_more(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ossia.model import experts

    calls: Counter[tuple[str, bool]] = Counter()
    plain = experts.product

    def counted(x: Tensor, matrix: Any, transposed: bool, **rest: Any) -> Any:
        name = "gate_up" if len(matrix.scales) == 2 * MICRO.intermediate else "down"
        calls[name, transposed] += 1
        return plain(x, matrix, transposed, **rest)

    monkeypatch.setattr(experts, "product", counted)
    inputs = batch()
    counts = {}
    for recompute in (False, True):
        model = adapted(folder, recompute)
        calls.clear()
        model(**inputs).loss.backward()
        counts[recompute] = dict(calls)
    met = counts[False]["down", True]
    assert counts[False] == dict.fromkeys([("gate_up", True), ("down", True), ("gate_up", False), ("down", False)], met)
    assert counts[True] == {**counts[False], ("gate_up", True): 2 * met}  # the second projection is not recomputed


def test_recompute_keeps_little(folder: Path) -> None:
    model, inputs = adapted(folder, True), batch()
    token = MICRO.hidden * 4
    # Each layer keeps the inputs of its halves. Norm scales, routing and the shared rotations add little.
    assert kept_bytes(model, inputs) < T * (2 * MICRO.layers + 1) * token * 1.35
    assert kept_bytes(adapted(folder, False), inputs) > 4 * T * MICRO.layers * token


def test_offloaded_inputs_come_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, away = batch(), []
    here = adapted(folder, True)
    here(**inputs).loss.backward()
    monkeypatch.setattr(layer_module, "OFFLOADED", 1024)
    real = torch.empty

    def counted(*size: Any, **options: Any) -> Tensor:
        if sys._getframe(1).f_code.co_name == "pack":
            away.append(size[0])
        return real(*size, **options)

    monkeypatch.setattr(layer_module.torch, "empty", counted)
    there = adapted(folder, True)
    for layer in there.get_base_model().model.layers:
        layer.offload = True
    there(**inputs).loss.backward()
    assert len(away) >= 2 * MICRO.layers and all(size[-2:] == (T, MICRO.hidden) for size in away)
    for (name, a), (_, b) in zip(lora.trainable_parameters(here), lora.trainable_parameters(there), strict=True):
        assert torch.equal(a.grad, b.grad), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_is_that_of_transformers(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mine, other = RMSNorm(96, eps=1e-5).to(dtype), GptOssRMSNorm(96, eps=1e-5).to(dtype)
    nn.init.normal_(mine.weight, mean=1, std=0.2)
    other.load_state_dict(mine.state_dict())
    x = (torch.randn(2, 7, 96) * 3).to(dtype)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, z = mine(a), other(b)
    assert torch.equal(y, z)
    grad = torch.randn_like(y)
    y.backward(grad)
    z.backward(grad)
    bound = 1e-6 if dtype == torch.float32 else 4e-3
    for got, want in ((a.grad, b.grad), (mine.weight.grad, other.weight.grad)):
        assert got is not None and want is not None
        assert (got - want).norm() <= bound * want.norm()


def test_lora_products_are_those_of_peft(folder: Path) -> None:
    model = adapted(folder, False)
    layers = [module for module in model.modules() if isinstance(module, LoraLinear)]
    assert len(layers) == 4 * MICRO.layers
    layer = layers[-1]
    x = torch.randn(2, 5, layer.in_features, requires_grad=True)
    grad = torch.randn(2, 5, layer.out_features)
    results = []
    for forward in (LoraLinear.forward, Linear.forward):
        layer.zero_grad()
        x.grad = None
        y = forward(layer, x)
        y.backward(grad)
        results.append([y, x.grad, layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    with torch.no_grad(), model.disable_adapter():
        torch.testing.assert_close(layer(x), layer.get_base_layer()(x))
