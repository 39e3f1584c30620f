"""Tests that need a GPU. `make gpu` runs them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ossia.adapters import apply as lora
from ossia.checkpoint.reader import CheckpointReader
from ossia.checkpoint.tiny import MICRO, write_tiny
from ossia.generate.engine import Request
from ossia.generate.native import SerialEngine
from ossia.kernels.cuda import flash
from ossia.kernels.reference.mxfp4 import dequantise
from ossia.model.attention import attend
from ossia.model.batch import Segments, from_rows
from ossia.model.load import load_model
from support.attention_samples import laid_out

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
        model = lora.attach_adapter(load_model(folder, dtype="float32", device=device), rank=4, expert_rank=2)
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
    asked = [Request(prompt=prompt, max_new_tokens=16, stop=frozenset()) for prompt in ((5, 6, 7), (8,) * 40)]
    said = {
        device: SerialEngine(load_model(folder, dtype="float32", device=device)).complete(asked)
        for device in ("cpu", "cuda")
    }
    assert said["cpu"] == said["cuda"]


# torch's flash kernels. On a CPU, tests/kernels/cuda/test_flash.py tests the code around them with stand-ins.

AMPERE = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0), reason="needs compute capability 8.0"
)


@AMPERE
@pytest.mark.parametrize("dtype", flash.DTYPES)
@pytest.mark.parametrize("head_dim", [16, 32, 64])
def test_the_flash_kernels_pass_their_trial(dtype: torch.dtype, head_dim: int) -> None:
    """A warning is an error here. The tiny models have heads of 16 and 32, and the published models of 64."""
    flash._verdict.cache_clear()
    assert flash.serves(torch.device("cuda", torch.cuda.current_device()), dtype, head_dim)


@AMPERE
@pytest.mark.parametrize("window", [None, 128])
@pytest.mark.parametrize(
    "forest", [[(None, 700)], [(None, 300), (None, 5), (None, 129)], [(None, 300), (0, 290), (1, 5), (0, 130)]]
)
def test_attention_on_the_gpu_is_the_definition(window: int | None, forest: list[tuple[int | None, int]]) -> None:
    """The heads are the published ones, 64 over 8 of size 64, in bfloat16.

    The judge is dense attention in float32 with a sink column.
    """
    segments, seen_TT = laid_out(forest)
    if window is not None:
        seen_TT = seen_TT & (segments.positions_T[:, None] - segments.positions_T < window)
    T, generator = len(segments.positions_T), torch.Generator().manual_seed(7)
    inputs = [torch.randn(n, T, 64, generator=generator).bfloat16() for n in (64, 8, 8)]
    inputs.append(torch.randn(64, generator=generator).bfloat16())
    grad = torch.randn(T, 64, 64, generator=generator)
    mine = [x.cuda().requires_grad_() for x in inputs]
    there = Segments(segments.ranges, segments.ancestors, segments.positions_T.cuda())
    out = attend(*mine, there, scale=0.125, window=window)
    grads = torch.autograd.grad(out, mine, grad.to("cuda", torch.bfloat16))
    assert there._varlen and not there._blocks  # it went through the flash kernels
    q, k, v, sinks = judge = [x.float().cuda().requires_grad_() for x in inputs]
    logits = (q @ k.repeat_interleave(8, 0).transpose(1, 2) * 0.125).masked_fill(~seen_TT.cuda(), -torch.inf)
    weights = torch.cat([logits, sinks[:, None, None].expand(64, T, 1)], -1).softmax(-1)[..., :-1]
    truth = (weights @ v.repeat_interleave(8, 0)).transpose(0, 1)
    true_grads = torch.autograd.grad(truth, judge, grad.bfloat16().float().cuda())
    for found, right in zip((out, *grads), (truth, *true_grads), strict=True):
        assert (found.float() - right).norm() < 0.02 * right.norm()


def test_float32_on_the_gpu_stays_with_the_plain_form() -> None:
    assert not flash.serves(torch.device("cuda"), torch.float32, 64)


def test_loading_to_the_gpu_gives_the_checkpoint(folder: Path) -> None:
    model = load_model(folder, dtype="bfloat16", device="cuda")
    reader = CheckpointReader(folder)
    for name, tensor in model.state_dict().items():
        assert tensor.is_cuda
        assert torch.equal(tensor.cpu(), reader.get(name)), name
