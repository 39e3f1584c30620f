"""gpt-oss's gate on bfloat16 by the C library (native/gate.c); the reference is `ossia.kernels.reference.gate`.

Shapes: N rows, F intermediate size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ossia.kernels.cpu.library import BEST_LEVEL, loaded, native


def serves(h: Tensor) -> bool:
    """Return whether the library supports these inputs of a gate."""
    return h.device.type == "cpu" and h.dtype == torch.bfloat16 and native().library is not None


def gate(h_N2F: Tensor, alpha: float, limit: float, level: int = BEST_LEVEL) -> Tensor:
    """Return the result of `reference.gate.gate`, [N, F]. Not differentiable. `level`: as in `cpu.mxfp4.dequantise`."""
    h_N2F = h_N2F.contiguous()
    rows, inner = h_N2F.shape[0], h_N2F.shape[1] // 2
    out_NF = torch.empty(rows, inner, dtype=h_N2F.dtype)
    loaded().ossia_gate_bf16(h_N2F.data_ptr(), out_NF.data_ptr(), rows, inner, alpha, limit, level)
    return out_NF


def gate_backward(
    h_N2F: Tensor, grad_NF: Tensor, factors_N: Tensor, alpha: float, limit: float, level: int = BEST_LEVEL
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the results of `reference.gate.gate_backward`; the gradient of the factors is float32.

    If h is contiguous, its gradient overwrites it.
    """
    h_N2F, grad_NF, factors_N = h_N2F.contiguous(), grad_NF.contiguous(), factors_N.float().contiguous()
    rows, inner = grad_NF.shape
    out_NF, dots_N = torch.empty_like(grad_NF), torch.empty_like(factors_N)
    pointers = (x.data_ptr() for x in (h_N2F, grad_NF, factors_N, out_NF, dots_N))
    loaded().ossia_gate_backward_bf16(*pointers, rows, inner, alpha, limit, level)
    return out_NF, h_N2F, dots_N
