"""RMS norm with a backward pass that keeps its input and one number per token.

transformers' GptOssRMSNorm is written for autograd, which keeps four float32 copies of the input. The forward pass here
makes the same rounding steps, so results are bitwise the same.

Shapes: `...` any leading axes, D hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm


class RMSNorm(GptOssRMSNorm):
    """weight * x / sqrt(mean(x^2) + eps) in float32, in and out in x's type (Zhang and Sennrich 2019).

    A float64 input stays in float64, where transformers rounds it: that is for tests of exactness.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the normed states, in their type."""
        normed: Tensor = _Norm.apply(hidden_states, self.weight, self.variance_epsilon)
        return normed


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        wide = x.to(_wide(x))
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight_D, scale)
        return (wide * scale).mul_(weight_D).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        x, weight_D, scale = ctx.saved_tensors
        normed = x.to(_wide(x)) * scale
        change = grad.to(_wide(x), copy=True)  # in place from here: a new tensor costs more than its arithmetic
        dweight_D = (change * normed).flatten(0, -2).sum(0).to(weight_D.dtype) if ctx.needs_input_grad[1] else None
        change.mul_(weight_D)
        # The length of x does not matter to the result, so what points along x is taken out.
        along = torch.linalg.vecdot(change, normed)[..., None] / x.shape[-1]
        dx = change.sub_(normed.mul_(along)).mul_(scale)
        return dx.to(x.dtype), dweight_D, None
