"""LoRA on a frozen linear layer in one step of autograd: everything in the compute type, nothing kept but the input.

PEFT's own layer keeps the input a second time in float32 and adds the update in float32; in bfloat16 that costs more
than the update's arithmetic. The matrices stay float32 parameters and get float32 gradients here, too.

Shapes: N rows, I inputs, O outputs, R LoRA rank.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ossia.kernels.dispatch import narrow, outer


class LoraLinear(Linear):
    """PEFT's LoRA layer; with one plain adapter (no dropout, no variant, not merged) in one autograd step."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return x W^T + bias + scale * (x A^T) B^T, [..., O] in x's type."""
        if self.disable_adapters or self.merged or args or kwargs or not self._is_plain():
            result: Tensor = super().forward(x, *args, **kwargs)
            return result
        name = self.active_adapters[0]
        base = self.get_base_layer()
        matrices = self.lora_A[name].weight, self.lora_B[name].weight
        y: Tensor = _LowRankLinear.apply(x, base.weight, base.bias, *matrices, self.scaling[name])
        return y

    def _is_plain(self) -> bool:
        if len(self.active_adapters) != 1:
            return False
        name = self.active_adapters[0]
        base = self.get_base_layer()
        return (
            name in self.lora_A
            and name not in self.lora_variant
            and not self.lora_bias[name]
            and isinstance(self.lora_dropout[name], nn.Identity)
            and type(base) is nn.Linear
            and not base.weight.requires_grad
            and (base.bias is None or not base.bias.requires_grad)
        )


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scale: float
    ) -> Tensor:
        ctx.save_for_backward(x, w_OI, a_RI, b_OR)
        ctx.scale = scale
        x_NI = x.flatten(0, -2)
        y_NO = functional.linear(x_NI, w_OI, bias_O)
        low_NR = narrow(x_NI, a_RI.to(x.dtype), True, scale)
        return y_NO.addmm_(low_NR, b_OR.to(x.dtype).T).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, w_OI, a_RI, b_OR = ctx.saved_tensors
        x_NI, grad_NO = x.flatten(0, -2), grad.flatten(0, -2)
        a, b = a_RI.to(x.dtype), b_OR.to(x.dtype)
        high_NR = narrow(grad_NO, b, False, ctx.scale)
        da_RI = outer(high_NR, x_NI, False).to(a_RI.dtype)
        db_OR = outer(narrow(x_NI, a, True, ctx.scale), grad_NO, True).to(b_OR.dtype)
        dx = (grad_NO @ w_OI).addmm_(high_NR, a).view(x.shape) if ctx.needs_input_grad[0] else None
        return dx, None, None, da_RI, db_OR, None
