"""gpt-oss's gate: SwiGLU on interleaved halves, clamped, with one added to the linear half (gpt-oss model card, 2025).

Shapes: N rows, F intermediate size; `...` any leading axes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def gate(h: Tensor, alpha: float, limit: float) -> Tensor:
    """Return (clamp(up) + 1) * gate * sigmoid(alpha * gate), [..., 2F] -> [..., F]; gate is clamped from above.

    This function is differentiable; `dispatch.gate` is not.
    """
    gate, up = h[..., ::2].clamp(max=limit), h[..., 1::2].clamp(min=-limit, max=limit)
    return (up + 1) * (gate * functional.sigmoid(gate * alpha))


def gate_backward(
    h_N2F: Tensor, grad_NF: Tensor, factors_N: Tensor, alpha: float, limit: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gate's output again, and the gradients of sum(factors * grad * output), computed in float32 or wider.

    Args:
        h_N2F: the gate's input.
        grad_NF: the gradient of each row's output times its factor.
        factors_N: float32 or float64: the factor of each row's output.

    Returns:
        The output [N, F] and the gradient of h [N, 2F], in h's dtype; the gradient of the factors [N], in theirs.
    """
    dtype = torch.promote_types(h_N2F.dtype, torch.float32)
    g, u = h_N2F[:, ::2].to(dtype), h_N2F[:, 1::2].to(dtype)
    gate, up = g.clamp(max=limit), u.clamp(-limit, limit)
    s = functional.sigmoid(alpha * gate)
    glu = gate * s
    out = (up + 1) * glu
    change = grad_NF.to(dtype)
    dots_N = (change * out).sum(1).to(factors_N.dtype)
    change = change * factors_N[:, None].to(dtype)
    grad = torch.empty_like(h_N2F)
    grad[:, ::2] = change * (up + 1) * (s + alpha * glu * (1 - s)) * (g <= limit)
    grad[:, 1::2] = change * glu * (u.abs() <= limit)
    return out.to(h_N2F.dtype), grad, dots_N
