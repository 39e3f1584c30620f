"""Dequantising MXFP4 by the C library (native/mxfp4.c), bit for bit as `ossia.kernels.reference.mxfp4`, the truth.

Legend as there.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from ossia.kernels.cpu.library import BEST_LEVEL, loaded, native
from ossia.kernels.reference import GROUP_SIZE

_scratch = threading.local()


def serves(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the library dequantises to this dtype here."""
    return device.type == "cpu" and dtype in (torch.bfloat16, torch.float32) and native().library is not None


def dequantise(
    blocks: Tensor,
    scales: Tensor,
    dtype: torch.dtype = torch.bfloat16,
    out: Tensor | None = None,
    level: int = BEST_LEVEL,
) -> Tensor:
    """As the truth (any NaN for a NaN).

    Args:
        out: where to put the values: contiguous, of their size and dtype.
        level: the best instructions to use, an index into `LEVELS` (for tests).
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
    """The same in memory that the next call on this thread uses again.

    Fresh memory costs more than the work itself: the system hands it out page by page, zeroed.
    """
    wanted = scales.numel() * GROUP_SIZE
    buffers: dict[torch.dtype, Tensor] = _scratch.__dict__.setdefault("buffers", {})
    if dtype not in buffers or buffers[dtype].numel() < wanted:
        buffers[dtype] = torch.empty(wanted, dtype=dtype)
    return dequantise(blocks, scales, dtype, out=buffers[dtype][:wanted])
