"""Dequantisation of MXFP4 in C; `ossia.kernels.reference.mxfp4.dequantise` is its twin and the truth.

On a CPU this is the C library of `native/` if it was built, else plain torch. Results are bitwise the same.

Legend as in `ossia.kernels.reference.mxfp4`.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from ossia.checkpoint.layout import GROUP
from ossia.kernels.cpu.library import BEST, native
from ossia.kernels.reference import mxfp4

_scratch = threading.local()


def dequantise(
    blocks: Tensor, scales: Tensor, dtype: torch.dtype = torch.bfloat16, out: Tensor | None = None, level: int = BEST
) -> Tensor:
    """Values of packed weights, [..., rows, 32 * G] in `dtype`; bitwise those of the twin (any NaN for a NaN).

    Args:
        out: where to put them: contiguous, of that size and type.
        level: the best instructions to use, an index into `LEVELS` (for tests).
    """
    shape = (*scales.shape[:-1], scales.shape[-1] * GROUP)
    library = native().library if blocks.device.type == "cpu" else None
    if library is None or dtype not in (torch.bfloat16, torch.float32):
        values = mxfp4.dequantise(blocks, scales, dtype)
        return values if out is None else out.view(shape).copy_(values)
    assert blocks.shape == (*scales.shape, GROUP // 2), (blocks.shape, scales.shape)
    blocks, scales = blocks.contiguous(), scales.contiguous()
    result = torch.empty(shape, dtype=dtype) if out is None else out.view(shape)
    assert result.dtype == dtype and result.is_contiguous()
    function = library.ossia_mxfp4_bf16 if dtype == torch.bfloat16 else library.ossia_mxfp4_f32
    function(blocks.data_ptr(), scales.data_ptr(), result.data_ptr(), scales.numel(), level)
    return result


def dequantised(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The same in memory that the next call on this thread uses again: for a matrix that is multiplied and forgotten.

    Fresh memory costs more than the work itself: the system hands it out page by page, zeroed.
    """
    if blocks.device.type != "cpu" or native().library is None:
        return dequantise(blocks, scales, dtype)
    wanted = scales.numel() * GROUP
    buffers: dict[torch.dtype, Tensor] = _scratch.__dict__.setdefault("buffers", {})
    if dtype not in buffers or buffers[dtype].numel() < wanted:
        buffers[dtype] = torch.empty(wanted, dtype=dtype)
    return dequantise(blocks, scales, dtype, out=buffers[dtype][:wanted])
