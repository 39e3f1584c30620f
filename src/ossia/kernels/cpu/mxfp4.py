"""Dequantising MXFP4 by the C library (native/mxfp4.c).

The values are bitwise those of the reference, `ossia.kernels.reference.mxfp4`. The legend is the same.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from ossia.kernels.cpu.library import BEST_LEVEL, loaded, native
from ossia.kernels.reference import GROUP_SIZE

_scratch = threading.local()


def serves(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the library dequantises to this dtype on this device."""
    return device.type == "cpu" and dtype in (torch.bfloat16, torch.float32) and native().library is not None


def dequantise(
    blocks: Tensor,
    scales: Tensor,
    dtype: torch.dtype = torch.bfloat16,
    out: Tensor | None = None,
    level: int = BEST_LEVEL,
) -> Tensor:
    """Return the result of `reference.mxfp4.dequantise`. The bits of a NaN may differ.

    Args:
        out: a contiguous tensor for the values, of their size and dtype.
        level: upper limit of the instructions to use, an index into `library.LEVELS` (for tests).
    """
    shape = (*scales.shape[:-1], scales.shape[-1] * GROUP_SIZE)
    assert blocks.shape == (*scales.shape, GROUP_SIZE // 2), (blocks.shape, scales.shape)
    blocks, scales = blocks.contiguous(), scales.contiguous()
    result = torch.empty(shape, dtype=dtype) if out is None else out.view(shape)
    assert result.dtype == dtype and result.is_contiguous()
    library = loaded()
    function = library.ossia_mxfp4_bf16 if dtype == torch.bfloat16 else library.ossia_mxfp4_f32
    function(blocks.data_ptr(), scales.data_ptr(), result.data_ptr(), scales.numel(), level)
    return result


def dequantise_to_scratch(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the result of `dequantise`, in memory that the next call on this thread overwrites.

    Fresh memory costs more time than dequantising, because the system provides it page by page and zeroes it.
    """
    wanted = scales.numel() * GROUP_SIZE
    buffers: dict[torch.dtype, Tensor] = _scratch.__dict__.setdefault("buffers", {})
    if dtype not in buffers or buffers[dtype].numel() < wanted:
        buffers[dtype] = torch.empty(wanted, dtype=dtype)
    return dequantise(blocks, scales, dtype, out=buffers[dtype][:wanted])
