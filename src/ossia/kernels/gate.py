"""gpt-oss's gate: SwiGLU on interleaved halves, clamped, with one added to the linear half (gpt-oss model card, 2025).

`plain_gate` and `plain_gate_backward` are the truth; bfloat16 on a CPU goes through the C library (native/gate.c).

Shapes: N rows, F intermediate size; `...` any leading axes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ossia.kernels.cpu.library import BEST, native


def gate(h_N2F: Tensor, alpha: float, limit: float, level: int = BEST) -> Tensor:
    """Return (clamp(up) + 1) * gate * sigmoid(alpha * gate), [N, F]; gate is clamped from above. Not differentiable.

    `level`: as in `kernels.mxfp4.dequantise`.
    """
    library = native().library
    if library is None or h_N2F.device.type != "cpu" or h_N2F.dtype != torch.bfloat16:
        return plain_gate(h_N2F, alpha, limit)
    h_N2F = h_N2F.contiguous()
    rows, inner = h_N2F.shape[0], h_N2F.shape[1] // 2
    out_NF = torch.empty(rows, inner, dtype=h_N2F.dtype)
    library.ossia_gate_bf16(h_N2F.data_ptr(), out_NF.data_ptr(), rows, inner, alpha, limit, level)
    return out_NF


def gate_backward(
    h_N2F: Tensor, grad_NF: Tensor, factors_N: Tensor, alpha: float, limit: float, level: int = BEST
) -> tuple[Tensor, Tensor, Tensor]:
    """The gate's output again, and the gradients of sum(factors * grad * output).

    Args:
        h_N2F: the gate's input. May be overwritten.
        factors_N: float32 or float64: what each row's output is multiplied with.

    Returns:
        output [N, F]; the gradient of h [N, 2F]; the gradient of the factors [N], in their type.
    """
    library = native().library
    if library is None or h_N2F.device.type != "cpu" or h_N2F.dtype != torch.bfloat16:
        return plain_gate_backward(h_N2F, grad_NF, factors_N, alpha, limit)
    h_N2F, grad_NF, factors_N = h_N2F.contiguous(), grad_NF.contiguous(), factors_N.float().contiguous()
    rows, inner = grad_NF.shape
    out_NF, dots_N = torch.empty_like(grad_NF), torch.empty_like(factors_N)
    pointers = (x.data_ptr() for x in (h_N2F, grad_NF, factors_N, out_NF, dots_N))
    library.ossia_gate_backward_bf16(*pointers, rows, inner, alpha, limit, level)
    return out_NF, h_N2F, dots_N


def plain_gate(h: Tensor, alpha: float, limit: float) -> Tensor:
    """`gate` in plain torch, differentiable, [..., 2F] -> [..., F]."""
    gate, up = h[..., ::2].clamp(max=limit), h[..., 1::2].clamp(min=-limit, max=limit)
    return (up + 1) * (gate * functional.sigmoid(gate * alpha))


def plain_gate_backward(
    h_N2F: Tensor, grad_NF: Tensor, factors_N: Tensor, alpha: float, limit: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`gate_backward` in plain torch, in float32 or wider."""
    kind = torch.promote_types(h_N2F.dtype, torch.float32)
    g, u = h_N2F[:, ::2].to(kind), h_N2F[:, 1::2].to(kind)
    gate, up = g.clamp(max=limit), u.clamp(-limit, limit)
    s = functional.sigmoid(alpha * gate)
    glu = gate * s
    out = (up + 1) * glu
    change = grad_NF.to(kind)
    dots_N = (change * out).sum(1).to(factors_N.dtype)
    change = change * factors_N[:, None].to(kind)
    grad = torch.empty_like(h_N2F)
    grad[:, ::2] = change * (up + 1) * (s + alpha * glu * (1 - s)) * (g <= limit)
    grad[:, 1::2] = change * glu * (u.abs() <= limit)
    return out.to(h_N2F.dtype), grad, dots_N
