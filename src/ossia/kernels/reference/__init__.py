"""The hot loops in plain torch: the truth that every backend is checked against, and the types that all of them share.

mxfp4        the four-bit format: dequantising, and the quantisers
product      products with a matrix in MXFP4
gate         gpt-oss's SwiGLU and its gradient
lowrank      the thin products of LoRA
attention    dense attention, rows of different lengths at once, and the layouts of a forest that kernels take

No torch is imported here, so that the planner and the checkpoint's layout know the format without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

#: Weights that share one scale byte in MXFP4, "block size" in OCP Microscaling Formats specification 1.0, section 5.
GROUP_SIZE = 32


class Packed(NamedTuple):
    """A matrix [O, I] in MXFP4: blocks uint8 [O, I / 32, 16], scales uint8 [O, I / 32]."""

    blocks: Tensor
    scales: Tensor


class Update(NamedTuple):
    """A low-rank update of a product: x_NR w, with w [O, R] (transposed) or [R, I]. All in the product's dtype."""

    x_NR: Tensor
    w: Tensor


class Into(NamedTuple):
    """Where a product is added up instead of returned: total_TC[places_N] += factors_N * product.

    total_TC: float32 (float64 for float64 products). places_N: int64, no two equal. factors_N: total's dtype, or ones.
    """

    total_TC: Tensor
    places_N: Tensor
    factors_N: Tensor | None = None


class LowRank(NamedTuple):
    """A LoRA update of every expert's projection: scale * (x A^T) B^T. a_ERI: [E, R, in], b_EOR: [E, out, R]."""

    a_ERI: Tensor
    b_EOR: Tensor
    scale: float
