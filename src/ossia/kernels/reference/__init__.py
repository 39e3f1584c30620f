"""The kernels in plain torch: the reference that every backend is tested against, and the types that all share.

    mxfp4        the four-bit format: dequantising and quantising
    product      products with a matrix in MXFP4
    gate         gpt-oss's SwiGLU and its gradient
    lowrank      the thin products of LoRA
    attention    dense attention, attention of rows of different lengths, and the layouts of a forest that kernels take

This file does not import torch, so that the planner and the checkpoint's layout can use it without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

#: Number of weights that share one scale byte in MXFP4. It is the "block size" in section 5 of the OCP Microscaling
#: Formats specification 1.0.
GROUP_SIZE = 32


class Packed(NamedTuple):
    """A matrix [O, I] in MXFP4: blocks uint8 [O, I / 32, 16], scales uint8 [O, I / 32]."""

    blocks: Tensor
    scales: Tensor


class Update(NamedTuple):
    """A low-rank update of a product: x_NR w^T with w [O, R] if transposed, else x_NR w with w [R, I].

    Both tensors have the product's dtype.
    """

    x_NR: Tensor
    w: Tensor


class Into(NamedTuple):
    """The destination of a product that is added up instead of returned: total_TC[places_N] += factors_N * product.

    Attributes:
        total_TC: float32, or float64 for float64 products.
        places_N: int64, all different.
        factors_N: in total's dtype; None means ones.
    """

    total_TC: Tensor
    places_N: Tensor
    factors_N: Tensor | None = None


class LowRank(NamedTuple):
    """A LoRA update of every expert's projection: scale * (x A^T) B^T. a_ERI: [E, R, in], b_EOR: [E, out, R]."""

    a_ERI: Tensor
    b_EOR: Tensor
    scale: float
