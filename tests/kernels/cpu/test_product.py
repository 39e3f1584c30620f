"""Tests of fused products, the gate and the products of a few rows against plain torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ossia.kernels.cpu import library
from ossia.kernels.cpu.gate import gate, gate_backward
from ossia.kernels.cpu.product import product, product_few
from ossia.kernels.reference import Into, Packed, Update
from ossia.kernels.reference import gate as reference_gate
from ossia.kernels.reference import product as reference_product
from ossia.kernels.reference.mxfp4 import dequantise

ALPHA, LIMIT = 1.702, 7.0
BF16 = torch.bfloat16


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    if library.native().library is None:
        pytest.skip(f"native kernels: {library.native().reason}")


@pytest.fixture(scope="module")
def fused() -> None:
    if not library.native().has_product:
        pytest.skip("this processor has no AVX-512 BF16")


def matrix(outputs: int, inputs: int, seed: int, scales: tuple[int, int] = (118, 125)) -> Packed:
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(256, (outputs, inputs // 32, 16), generator=generator, dtype=torch.uint8)
    return Packed(blocks, torch.randint(*scales, blocks.shape[:2], generator=generator, dtype=torch.uint8))


def error(mine: Tensor, truth: Tensor) -> float:
    return float((mine.double() - truth).norm() / truth.norm())


@pytest.mark.parametrize("transposed", [True, False])
def test_every_code_under_every_scale_comes_through(fused: None, transposed: bool) -> None:
    """The identity times W is W, bit for bit, for all 16 codes and the 253 scales without infinite values."""
    codes = torch.arange(16, dtype=torch.uint8)
    blocks = (codes | (codes.flip(0) << 4)).expand(256, 4, 16).contiguous()
    scales = (torch.arange(256)[:, None].expand(256, 4).clamp(max=252)).to(torch.uint8).contiguous()
    scales[:, 2] = scales[:, 2].flip(0)
    packed = Packed(blocks, scales)
    x = torch.eye(128 if transposed else 256, dtype=BF16)
    got, want = product(x, packed, transposed), dequantise(*packed)
    assert got is not None
    got = got.T if transposed else got
    # The processor's BF16 products treat subnormal numbers as zero. They occur only under the lowest three scales.
    normal = want.abs() >= torch.finfo(BF16).tiny
    assert torch.equal(got[normal], want[normal]) and not got[~normal].any()
    assert normal[3:253, :64].float().mean() == 0.875  # all but the two zeros of sixteen codes


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 6), st.integers(1, 6), st.integers(0, 5), st.booleans(), st.booleans(),
    st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_fused_products_of_all_shapes(
    fused: None,
    rows: int,
    outputs: int,
    inputs: int,
    rank: int,
    transposed: bool,
    biased: bool,
    summed: bool,
    seed: int,
) -> None:
    packed = matrix(32 * outputs, 32 * inputs, seed)
    generator = torch.Generator().manual_seed(seed)
    depth, columns = (32 * inputs, 32 * outputs) if transposed else (32 * outputs, 32 * inputs)
    x = torch.randn(rows, depth, generator=generator).to(BF16)
    bias = torch.randn(columns, generator=generator).to(BF16) if biased and transposed else None
    low = torch.randn(rows, rank, generator=generator).to(BF16)
    high = torch.randn((columns, rank) if transposed else (rank, columns), generator=generator).to(BF16)
    update = Update(low, high) if rank else None
    wide = Packed(packed.blocks, packed.scales)
    truth = reference_product.product(
        x.double(), wide, transposed, bias=None if bias is None else bias.double(),
        update=None if update is None else Update(low.double(), high.double()),
    )  # fmt: skip
    assert truth is not None
    if not summed:
        got = product(x, packed, transposed, bias=bias, update=update)
        assert got is not None and got.dtype == BF16 and error(got, truth) < 4e-3
        return
    total = torch.randn(50, columns, generator=generator)
    places, factors = torch.randperm(50, generator=generator)[:rows], torch.rand(rows, generator=generator)
    wanted = total.double().index_add(0, places, truth * factors[:, None])
    assert product(x, packed, transposed, bias=bias, update=update, into=Into(total, places, factors)) is None
    assert error(total, wanted) < 1e-5  # never rounded to bfloat16


def test_many_rows_and_a_deep_sum(fused: None) -> None:
    """There are more rows than in a block, and the sum is deeper than a panel."""
    packed = matrix(1024, 1056, 0)
    for transposed in (True, False):
        x = torch.randn(1100, 1056 if transposed else 1024, generator=torch.Generator().manual_seed(1)).to(BF16)
        got, truth = product(x, packed, transposed), reference_product.product(x.double(), packed, transposed)
        assert got is not None and truth is not None and error(got, truth) < 4e-3


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_a_few_float32_rows(level: int, rows: int) -> None:
    packed = matrix(96, 160, 3, scales=(0, 240))
    packed.scales[0] = 127
    x = torch.randn(rows, 160, generator=torch.Generator().manual_seed(2))
    truth = reference_product.product(x.double(), packed, True)
    assert truth is not None
    got = product_few(x, packed, level)
    assert (
        (got.double() - truth).abs() <= 1e-5 * (x.abs().double() @ dequantise(*packed, torch.float64).abs().T)
    ).all()


def gate_inputs(rows: int, inner: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    h = (torch.randn(rows, 2 * inner, generator=generator) * 5).to(BF16)
    h[0, :8] = torch.tensor([LIMIT, LIMIT, -LIMIT, -LIMIT, 90.0, -90.0, -1e30, 1e30])
    return h, torch.randn(rows, inner, generator=generator).to(BF16), torch.rand(rows, generator=generator)


def test_the_gate_and_its_gradient(level: int) -> None:
    h, grad, factors = gate_inputs(7, 51)
    wide, factors_wide = h.double().requires_grad_(), factors.double().requires_grad_()
    truth = reference_gate.gate(wide, ALPHA, LIMIT)
    (truth * grad.double() * factors_wide[:, None]).sum().backward()
    assert wide.grad is not None and factors_wide.grad is not None
    ok = torch.isfinite(truth)
    rounding = 2.0**-8
    assert torch.allclose(gate(h, ALPHA, LIMIT, level).double()[ok], truth.detach()[ok], rtol=rounding, atol=1e-30)
    out, dh, dots = gate_backward(h.clone(), grad, factors, ALPHA, LIMIT, level)
    assert torch.allclose(out.double(), truth.detach(), rtol=rounding, atol=1e-30)
    assert torch.allclose(dh.double(), wide.grad, rtol=rounding, atol=1e-6)
    assert torch.allclose(dots.double(), factors_wide.grad, rtol=1e-4, atol=1e-4)


def test_nan_stays_nan_in_the_gate(level: int) -> None:
    """A diverged run must stay visible."""
    h = torch.zeros(2, 64, dtype=BF16)
    h[0, 4], h[1, 9] = float("nan"), float("nan")
    out = gate(h, ALPHA, LIMIT, level)
    assert out.isnan().nonzero().tolist() == [[0, 2], [1, 4]]
    _, dh, dots = gate_backward(h, torch.ones(2, 32, dtype=BF16), torch.ones(2), ALPHA, LIMIT, level)
    assert dots.isnan().all() and dh[0].isnan().any() and dh[1].isnan().any()
