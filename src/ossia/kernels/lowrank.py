"""The thin products of LoRA: one side is the rank. In bfloat16 on CPUs by the C library (native/lowrank.c).

torch's library prepares code for each new shape, which takes several times as long as products this small, and every
expert has another number of tokens at every step.

Shapes: N rows, D and W sizes of what is adapted, R LoRA rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ossia.kernels.cpu.library import native


def narrow(x_ND: Tensor, w: Tensor, transposed: bool, scale: float) -> Tensor:
    """Return scale * x w, [N, R], in x's type. w is [D, R] or, transposed, [R, D]. Not differentiable."""
    assert x_ND.shape[1] == w.shape[1 if transposed else 0], (x_ND.shape, w.shape)
    if _by_library(x_ND, w) and x_ND.shape[1] % 32 == 0:
        x_ND, w = x_ND.contiguous(), w.contiguous()
        (rows, depth), rank = x_ND.shape, w.shape[0 if transposed else 1]
        out_NR = x_ND.new_empty(rows, rank)
        library = native().library
        assert library is not None
        pointers = (x_ND.data_ptr(), w.data_ptr(), out_NR.data_ptr())
        if not library.ossia_narrow_bf16(*pointers, rows, depth, rank, transposed, scale):
            return out_NR
    return plain_narrow(x_ND, w, transposed, scale)


def outer(a_NR: Tensor, b_NW: Tensor, transposed: bool) -> Tensor:
    """Return a^T b, [R, W], or its transpose: in float32 from the library, else in their type. Not differentiable."""
    assert len(a_NR) == len(b_NW), (a_NR.shape, b_NW.shape)
    if _by_library(a_NR, b_NW) and b_NW.shape[1] % 64 == 0:
        a_NR, b_NW = a_NR.contiguous(), b_NW.contiguous()
        (rows, rank), width = a_NR.shape, b_NW.shape[1]
        out = a_NR.new_empty((width, rank) if transposed else (rank, width), dtype=torch.float32)
        library = native().library
        assert library is not None
        pointers = (a_NR.data_ptr(), b_NW.data_ptr(), out.data_ptr())
        if not library.ossia_outer_bf16(*pointers, rows, rank, width, transposed):
            return out
    return plain_outer(a_NR, b_NW, transposed)


def plain_narrow(x_ND: Tensor, w: Tensor, transposed: bool, scale: float) -> Tensor:
    """`narrow` in plain torch."""
    return (x_ND @ (w.T if transposed else w)).mul_(scale)


def plain_outer(a_NR: Tensor, b_NW: Tensor, transposed: bool) -> Tensor:
    """`outer` in plain torch."""
    return b_NW.T @ a_NR if transposed else a_NR.T @ b_NW


def _by_library(x: Tensor, y: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == y.dtype == torch.bfloat16 and native().has_product and len(x) > 0
