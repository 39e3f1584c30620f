"""Tests of LoRA's thin products in C against plain torch in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ossia.kernels.cpu import library, lowrank
from ossia.kernels.reference import lowrank as reference

BF16 = torch.bfloat16
ROWS = st.sampled_from([1, 2, 7, 8, 9, 31, 128, 511, 512, 513, 1030])
RANKS = st.sampled_from([1, 2, 4, 8, 15, 16, 17, 32, 40])


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    if not library.native().has_product:
        pytest.skip(f"thin products: {library.native().reason}")


def drawn(*size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(BF16)


def error(mine: Tensor, truth: Tensor) -> float:
    assert mine.shape == truth.shape
    return float((mine.double() - truth).norm() / truth.norm())


@settings(max_examples=80, deadline=None)
@given(rows=ROWS, rank=RANKS, groups=st.integers(1, 20), transposed=st.booleans(), seed=st.integers(0, 2**16))
def test_narrow(rows: int, rank: int, groups: int, transposed: bool, seed: int) -> None:
    """The sum has float32 precision, and the result is rounded once."""
    depth = 32 * groups
    x = drawn(rows, depth, seed=seed)
    w = drawn(rank, depth, seed=seed + 1) if transposed else drawn(depth, rank, seed=seed + 1)
    truth = reference.narrow(x.double(), w.double(), transposed, 0.5)
    assert error(lowrank.narrow(x, w, transposed, 0.5), truth) < 2**-8


@settings(max_examples=80, deadline=None)
@given(rows=ROWS, rank=RANKS, blocks=st.integers(1, 6), transposed=st.booleans(), seed=st.integers(0, 2**16))
def test_outer(rows: int, rank: int, blocks: int, transposed: bool, seed: int) -> None:
    a, b = drawn(rows, rank, seed=seed), drawn(rows, 64 * blocks, seed=seed + 1)
    mine = lowrank.outer(a, b, transposed)
    assert mine.dtype == torch.float32
    assert error(mine, reference.outer(a.double(), b.double(), transposed)) < 1e-5


def test_slices_and_transposes_come_in() -> None:
    x, w = drawn(96, 40, seed=3).T, drawn(96, 16, seed=4)[:, ::2]
    assert error(lowrank.narrow(x, w, False, 1.0), x.double() @ w.double()) < 2**-8
