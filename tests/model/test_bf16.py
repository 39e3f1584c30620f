"""Tests of gradients in bfloat16, with the routing of a float32 run: as good as those of transformers and PEFT."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import GptOssForCausalLM

from ossia.adapters import apply as lora
from ossia.adapters.config import WEIGHTS_FILE
from ossia.checkpoint.tiny import MICRO, write_tiny
from ossia.kernels.cpu import library
from ossia.model.batch import from_rows
from ossia.model.load import load_model

SHAPE = MICRO.replace(hidden=128, intermediate=160, layers=3)
LENGTH, RANK, EXPERT_RANK = 96, 8, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "m", SHAPE, seed=5)


@pytest.fixture(scope="module")
def adapter(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = lora.attach_adapter(load_model(folder, dtype="float32", device="cpu"), rank=RANK, expert_rank=EXPERT_RANK)
    for _, parameter in lora.trainable_parameters(model):
        nn.init.normal_(parameter, std=0.05)
    path = tmp_path_factory.mktemp("adapter")
    lora.save_adapter(model, path)
    return path


@pytest.fixture(params=["native", "plain"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("OSSIA_NATIVE", "1" if request.param == "native" else "0")
    library.native.cache_clear()
    yield request.param
    monkeypatch.undo()
    library.native.cache_clear()


@contextmanager
def routing(model: nn.Module, choices: list[Tensor], replay: bool) -> Iterator[None]:
    """Record the experts that the routers choose, or make the routers repeat the recorded choices."""
    taken = iter(choices)

    def watch(module: nn.Module, args: Any, output: tuple[Tensor, Tensor, Tensor]) -> Any:
        logits, scores, indices = output
        if not replay:
            choices.append(indices)
            return None
        indices = next(taken)
        return logits, logits.gather(1, indices).softmax(-1, dtype=scores.dtype), indices

    hooks = [m.register_forward_hook(watch) for name, m in model.named_modules() if name.endswith("mlp.router")]
    assert len(hooks) == SHAPE.layers
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    """Return the gradient of every adapter tensor, with the names and the layout of the adapter's file."""
    model.zero_grad()
    loss.backward()
    if isinstance(model.get_base_model(), GptOssForCausalLM) and type(model.get_base_model()) is GptOssForCausalLM:
        named = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        return {name.replace(".default", ""): grad.float() for name, grad in named.items()}
    with torch.no_grad():
        kept = {p: p.detach().clone() for p in model.parameters() if p.requires_grad}
        for p in kept:
            p.copy_(p.grad)
        with TemporaryDirectory() as folder:
            lora.save_adapter(model, Path(folder))
            tensors = {name: tensor.clone() for name, tensor in load_file(f"{folder}/{WEIGHTS_FILE}").items()}
        for p, value in kept.items():
            p.copy_(value)
    return tensors


def stock(folder: Path, adapter: Path, dtype: torch.dtype) -> PeftModel:
    base = GptOssForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", experts_implementation="eager"
    ).to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(base, str(adapter), is_trainable=True)


def test_gradients_are_as_close_to_float32_as_those_of_transformers(folder: Path, adapter: Path, kernels: str) -> None:
    if kernels == "native" and library.native().library is None:
        pytest.skip(library.native().reason)
    ids = torch.randint(SHAPE.vocabulary, (1, LENGTH), generator=torch.Generator().manual_seed(3))
    rows = from_rows([(ids[0].tolist(), [0.0] + [1.0] * (LENGTH - 1))]).inputs()

    def theirs(model: Any) -> Tensor:
        log_p = model(ids).logits[0, :-1].float().log_softmax(-1)
        return -log_p.gather(1, ids[0, 1:, None]).mean()

    choices: list[Tensor] = []
    exact = stock(folder, adapter, torch.float32)
    with routing(exact, choices, replay=False):
        truth = gradients(exact, theirs(exact))
    other = stock(folder, adapter, torch.bfloat16)
    with routing(other, choices, replay=True):
        peer = gradients(other, theirs(other))
    mine = lora.load_adapter(load_model(folder, dtype="bfloat16", device="cpu"), adapter, trainable=True).train()
    with routing(mine, choices, replay=True):
        ours = gradients(mine, mine(**rows).loss)
    assert ours.keys() == truth.keys() == peer.keys() and len(truth) == SHAPE.layers * 12
    worst = {}
    for name, want in truth.items():
        error = (ours[name] - want).norm() / want.norm()
        allowed = (peer[name] - want).norm() / want.norm()
        assert allowed > 0
        worst[name] = float(error / allowed)
    assert max(worst.values()) <= 1.1, sorted(worst.items(), key=lambda item: -item[1])[:8]
