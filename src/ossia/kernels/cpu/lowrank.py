"""The thin products of LoRA on bfloat16 by the C library (native/lowrank.c).

The reference is `ossia.kernels.reference.lowrank`. The library that torch uses prepares code for each new shape, and
every expert has a different number of tokens at every step. For products this small, the preparation takes several
times as long as the product.

Shapes: N rows, D and W sizes of the adapted matrix, R LoRA rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ossia.kernels.cpu.library import loaded, native


def serves_narrow(x_ND: Tensor, w: Tensor) -> bool:
    """Return whether `narrow` supports these inputs."""
    return _serves(x_ND, w) and x_ND.shape[1] % 32 == 0


def serves_outer(a_NR: Tensor, b_NW: Tensor) -> bool:
    """Return whether `outer` supports these inputs."""
    return _serves(a_NR, b_NW) and b_NW.shape[1] % 64 == 0


def narrow(x_ND: Tensor, w: Tensor, transposed: bool, scale: float) -> Tensor:
    """Return the result of `reference.lowrank.narrow`.

    Raises:
        MemoryError: there is not enough memory for a copy of w.
    """
    assert x_ND.shape[1] == w.shape[1 if transposed else 0], (x_ND.shape, w.shape)
    x_ND, w = x_ND.contiguous(), w.contiguous()
    (rows, depth), rank = x_ND.shape, w.shape[0 if transposed else 1]
    out_NR = x_ND.new_empty(rows, rank)
    pointers = (x_ND.data_ptr(), w.data_ptr(), out_NR.data_ptr())
    if loaded().ossia_narrow_bf16(*pointers, rows, depth, rank, transposed, scale):
        raise MemoryError("no memory for LoRA's first product")
    return out_NR


def outer(a_NR: Tensor, b_NW: Tensor, transposed: bool) -> Tensor:
    """Return the result of `reference.lowrank.outer`, in float32.

    Raises:
        MemoryError: there is not enough memory for a copy of a.
    """
    assert len(a_NR) == len(b_NW), (a_NR.shape, b_NW.shape)
    a_NR, b_NW = a_NR.contiguous(), b_NW.contiguous()
    (rows, rank), width = a_NR.shape, b_NW.shape[1]
    out = a_NR.new_empty((width, rank) if transposed else (rank, width), dtype=torch.float32)
    pointers = (a_NR.data_ptr(), b_NW.data_ptr(), out.data_ptr())
    if loaded().ossia_outer_bf16(*pointers, rows, rank, width, transposed):
        raise MemoryError("no memory for the gradients of LoRA")
    return out


def _serves(x: Tensor, y: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == y.dtype == torch.bfloat16 and native().has_product and len(x) > 0
