"""Products with a matrix that stays in MXFP4, by the C library; the reference is `ossia.kernels.reference.product`.

For bfloat16 rows on processors with AVX-512 BF16, dequantising and multiplying are fused (native/product.c). For a few
float32 rows, as in decoding, they are fused on every CPU (native/product_few.c).

Shapes: N rows, I inputs and O outputs of the matrix.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ossia.kernels.cpu.library import BEST_LEVEL, ProductArguments, loaded, native
from ossia.kernels.reference import GROUP_SIZE, Into, Packed, Update
from ossia.kernels.reference.product import completed

FEW_ROWS = 8
"""Largest number of float32 rows that are multiplied without dequantising first."""


def serves(x: Tensor, transposed: bool) -> bool:
    """Return whether `product` supports these rows on their device."""
    if x.device.type != "cpu":
        return False
    if x.dtype == torch.bfloat16:
        return native().has_product
    return x.dtype == torch.float32 and transposed and len(x) <= FEW_ROWS and native().library is not None


def product(
    x: Tensor,
    matrix: Packed,
    transposed: bool,
    *,
    bias: Tensor | None = None,
    update: Update | None = None,
    into: Into | None = None,
) -> Tensor | None:
    """Return the result of `reference.product.product`, for rows that pass `serves`.

    Raises:
        MemoryError: there is not enough memory for the panels.
    """
    if x.dtype == torch.float32:
        return completed(product_few(x, matrix), transposed, bias, update, into)
    x, blocks, scales = x.contiguous(), matrix.blocks.contiguous(), matrix.scales.contiguous()
    outputs, inputs = _size(scales)
    assert x.shape[1] == (inputs if transposed else outputs) and outputs % GROUP_SIZE == 0, (x.shape, outputs, inputs)
    columns = outputs if transposed else inputs
    out = torch.empty(len(x), columns, dtype=x.dtype) if into is None else None
    more_x, more_w = (None, None) if update is None else _even(update, transposed)
    total, places, factors = into if into is not None else (None, None, None)
    if total is not None:
        assert total.dtype == torch.float32 and total.is_contiguous() and total.shape[1] == columns
    # The list keeps every tensor alive until the call is over.
    given = (x, blocks, scales, more_x, more_w, bias, out, total, places, factors)
    tensors = [None if tensor is None else tensor.contiguous() for tensor in given]
    pointers = (None if tensor is None else tensor.data_ptr() for tensor in tensors)
    rank = 0 if more_x is None else more_x.shape[1]
    arguments = ProductArguments(*pointers, len(x), outputs, inputs, rank, transposed)
    if loaded().ossia_product_bf16(ctypes.byref(arguments)):
        raise MemoryError("not enough memory for the panels of the fused product (half a megabyte per thread)")
    return out


def product_few(x_NI: Tensor, matrix: Packed, level: int = BEST_LEVEL) -> Tensor:
    """Return x W^T of at most FEW_ROWS float32 rows, [N, O]. `level`: as in `cpu.mxfp4.dequantise`."""
    assert len(x_NI) <= FEW_ROWS
    blocks, scales = matrix.blocks.contiguous(), matrix.scales.contiguous()
    x_NI, out_NO = x_NI.contiguous(), torch.empty(len(x_NI), len(scales), dtype=torch.float32)
    places = blocks.data_ptr(), scales.data_ptr(), *_size(scales), out_NO.data_ptr()
    loaded().ossia_product_few_f32(x_NI.data_ptr(), len(x_NI), *places, level)
    return out_NO


def _size(scales: Tensor) -> tuple[int, int]:
    """Return (outputs, inputs) of a matrix, given its scales."""
    return scales.shape[0], scales.shape[1] * GROUP_SIZE


def _even(update: Update, transposed: bool) -> Update:
    """Return the update with an even rank, padded with zeros: the kernel multiplies pairs."""
    x_NR, w = update
    if x_NR.shape[1] % 2 == 0:
        return update
    pad = torch.nn.functional.pad
    return Update(pad(x_NR, (0, 1)), pad(w, (0, 1) if transposed else (0, 0, 0, 1)))
