"""What must hold on a GPU; run by `make gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ossia.generate.engine import Sampling
from ossia.generate.native import NativeEngine
from ossia.model import lora
from ossia.model.batch import from_rows
from ossia.model.load import load_model
from ossia.model.mxfp4 import dequantise
from ossia.model.tiny import MICRO, write_tiny

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

ROWS = [(list(range(3, 153)), [0.0] * 4 + [1.0] * 146), (list(range(400, 420)), [0.0] * 4 + [1.0] * 16)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("micro") / "m", MICRO, seed=3)


def test_dequantisation_is_bitwise_that_of_the_cpu() -> None:
    blocks = torch.arange(256, dtype=torch.uint8).repeat(254, 1).reshape(254, 16, 16)
    scales = torch.arange(1, 255, dtype=torch.uint8)[:, None].repeat(1, 16)
    for dtype in (torch.bfloat16, torch.float32):
        there = dequantise(blocks.cuda(), scales.cuda(), dtype).cpu()
        assert torch.equal(there, dequantise(blocks, scales, dtype))


def test_loss_and_gradients_are_those_of_the_cpu(folder: Path) -> None:
    grads = {}
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = lora.attach(load_model(folder, dtype="float32", device=device), rank=4, expert_rank=2)
        generator = torch.Generator().manual_seed(1)
        for _, parameter in lora.trainable_parameters(model):
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        inputs = {name: value.to(device) for name, value in from_rows(ROWS).inputs().items()}
        loss = model(**inputs).loss
        loss.backward()
        grads[device] = {name: p.grad.cpu() for name, p in lora.trainable_parameters(model)} | {"loss": loss.cpu()}
    for name, grad in grads["cpu"].items():
        assert (grads["cuda"][name] - grad).norm() < 1e-3 * grad.norm(), name


def test_generation_is_that_of_the_cpu(folder: Path) -> None:
    wanted = Sampling(max_new_tokens=16, stop=frozenset())
    said = {
        device: NativeEngine(load_model(folder, dtype="float32", device=device)).batch([[5, 6, 7], [8] * 40], wanted)
        for device in ("cpu", "cuda")
    }
    assert said["cpu"] == said["cuda"]
