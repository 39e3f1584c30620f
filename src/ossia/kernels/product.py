"""Products with a matrix that stays in MXFP4: x W^T of a layer's forward pass, x W of its backward pass.

`plain_product` is the truth: dequantise, then torch's own product. On a CPU with AVX-512 BF16 the C library fuses the
two for bfloat16 (see native/product.c); a few float32 rows, as in decoding, are fused on every CPU.

Shapes: N rows, I inputs and O outputs of the matrix, C columns of the result (O or I), R LoRA rank, T tokens.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from ossia.checkpoint.layout import GROUP
from ossia.kernels.cpu.library import BEST, Product, native
from ossia.kernels.cpu.mxfp4 import dequantised

FEW = 8
"""Most float32 rows that are multiplied without dequantising first."""


class Packed(NamedTuple):
    """A matrix [O, I] in MXFP4: blocks uint8 [O, I / 32, 16], scales uint8 [O, I / 32]."""

    blocks: Tensor
    scales: Tensor


class Update(NamedTuple):
    """A low-rank update of the product: x_NR w, with w [O, R] (transposed) or [R, I]. All in the product's type."""

    x_NR: Tensor
    w: Tensor


class Into(NamedTuple):
    """Where a product is added up instead of returned: total_TC[places_N] += factors_N * product.

    total_TC: float32 (float64 for float64 products). places_N: int64, no two equal. factors_N: total's type, or ones.
    """

    total_TC: Tensor
    places_N: Tensor
    factors_N: Tensor | None = None


def product(
    x: Tensor,
    matrix: Packed,
    transposed: bool,
    *,
    bias: Tensor | None = None,
    update: Update | None = None,
    into: Into | None = None,
) -> Tensor | None:
    """Return x W^T + bias + update [N, O] (transposed) or x W + update [N, I], in x's type; or add it up in `into`.

    Args:
        x: [N, I] if transposed, else [N, O].
        bias: [O], in x's type; only if transposed.
    """
    if x.device.type == "cpu" and x.dtype == torch.bfloat16 and native().has_product:
        return _fused(x, matrix, transposed, bias, update, into)
    if x.device.type == "cpu" and x.dtype == torch.float32 and len(x) <= FEW and transposed and native().library:
        return _finished(few(x, matrix), bias, update, into, transposed)
    return plain_product(x, matrix, transposed, bias=bias, update=update, into=into)


def plain_product(
    x: Tensor,
    matrix: Packed,
    transposed: bool,
    *,
    bias: Tensor | None = None,
    update: Update | None = None,
    into: Into | None = None,
) -> Tensor | None:
    """`product` in plain torch."""
    w_OI = dequantised(*matrix, x.dtype)
    return _finished(x @ w_OI.T if transposed else x @ w_OI, bias, update, into, transposed)


def few(x_NI: Tensor, matrix: Packed, level: int = BEST) -> Tensor:
    """x W^T of at most FEW float32 rows by the C library, [N, O]. `level` as in `kernels.mxfp4.dequantise`."""
    library = native().library
    assert library is not None and len(x_NI) <= FEW
    blocks, scales = matrix.blocks.contiguous(), matrix.scales.contiguous()
    x_NI, out_NO = x_NI.contiguous(), torch.empty(len(x_NI), len(scales), dtype=torch.float32)
    places = blocks.data_ptr(), scales.data_ptr(), *_size(scales), out_NO.data_ptr()
    library.ossia_few_f32(x_NI.data_ptr(), len(x_NI), *places, level)
    return out_NO


def _finished(
    y_NC: Tensor, bias: Tensor | None, update: Update | None, into: Into | None, transposed: bool
) -> Tensor | None:
    if bias is not None:
        y_NC = y_NC.add_(bias)
    if update is not None:
        y_NC = y_NC.addmm_(update.x_NR, update.w.T if transposed else update.w)
    if into is None:
        return y_NC
    y_NC = y_NC.to(into.total_TC.dtype)
    if into.factors_N is not None:
        y_NC = y_NC * into.factors_N[:, None]
    into.total_TC.index_add_(0, into.places_N, y_NC)
    return None


def _fused(
    x: Tensor, matrix: Packed, transposed: bool, bias: Tensor | None, update: Update | None, into: Into | None
) -> Tensor | None:
    library = native().library
    assert library is not None
    x, blocks, scales = x.contiguous(), matrix.blocks.contiguous(), matrix.scales.contiguous()
    outputs, inputs = _size(scales)
    assert x.shape[1] == (inputs if transposed else outputs) and outputs % GROUP == 0, (x.shape, outputs, inputs)
    columns = outputs if transposed else inputs
    out = torch.empty(len(x), columns, dtype=x.dtype) if into is None else None
    more_x, more_w = (None, None) if update is None else _even(update, transposed)
    total, places, factors = into if into is not None else (None, None, None)
    if total is not None:
        assert total.dtype == torch.float32 and total.is_contiguous() and total.shape[1] == columns
    # Named, so that what is behind a pointer lives until the call is over.
    given = (x, blocks, scales, more_x, more_w, bias, out, total, places, factors)
    tensors = [None if tensor is None else tensor.contiguous() for tensor in given]
    pointers = (None if tensor is None else tensor.data_ptr() for tensor in tensors)
    rank = 0 if more_x is None else more_x.shape[1]
    if library.ossia_product_bf16(ctypes.byref(Product(*pointers, len(x), outputs, inputs, rank, transposed))):
        raise MemoryError("the fused product found no memory for its panels (half a megabyte per thread)")
    return out


def _size(scales: Tensor) -> tuple[int, int]:
    """Outputs and inputs."""
    return scales.shape[0], scales.shape[1] * GROUP


def _even(update: Update, transposed: bool) -> Update:
    """Pairs are multiplied, so an odd rank gets a zero."""
    x_NR, w = update
    if x_NR.shape[1] % 2 == 0:
        return update
    pad = torch.nn.functional.pad
    return Update(pad(x_NR, (0, 1)), pad(w, (0, 1) if transposed else (0, 0, 0, 1)))
