"""The experts of gpt-oss, kept in four bits while everything passes through them.

The published bytes (MXFP4: blocks of 32 E2M1 codes with one E8M0 scale) are the parameters of this module, under the
published names. An expert's matrix exists in floating point only while it is multiplied: once in the forward pass, once
more in the backward pass, which needs it to pass gradients on to the input. The weights themselves get no gradient.

Shapes: T tokens, K experts per token, E experts, D hidden size, F intermediate size, G groups of 32 along the input,
N tokens of one expert, R LoRA rank. Matrices lie as stored: [out, in].
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ossia.kernels.mxfp4 import dequantised
from ossia.model.mxfp4 import fake_quantise


class LowRank(NamedTuple):
    """A LoRA update of every expert's projection: scale * (x A^T) B^T. a_ERI: [E, R, in], b_EOR: [E, out, R]."""

    a_ERI: Tensor
    b_EOR: Tensor
    scale: float

    def experts(self) -> list[ExpertUpdate]:
        """Return each expert's part. They are taken apart once, so that their gradients are put together once."""
        pairs = zip(self.a_ERI.unbind(0), self.b_EOR.unbind(0), strict=True)
        return [ExpertUpdate(a_RI, b_OR, self.scale) for a_RI, b_OR in pairs]


class ExpertUpdate(NamedTuple):
    """The LoRA update of one expert's projection."""

    a_RI: Tensor
    b_OR: Tensor
    scale: float

    def of(self, x_NI: Tensor) -> Tensor:
        """Return the update of the output, [N, out], in x's type; the product of A and B is never formed."""
        return (x_NI @ self.a_RI.to(x_NI.dtype).T) @ self.b_OR.to(x_NI.dtype).T * self.scale


class PackedLinear(torch.autograd.Function):
    """x [N, in] times a frozen MXFP4 matrix [out, in], transposed. Dequantises in both passes and keeps nothing."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, blocks_OG16: Tensor, scales_OG: Tensor) -> Tensor:
        ctx.save_for_backward(blocks_OG16, scales_OG)
        return x_NI @ dequantised(blocks_OG16, scales_OG, x_NI.dtype).T

    @staticmethod
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        blocks_OG16, scales_OG = ctx.saved_tensors
        return grad_NO @ dequantised(blocks_OG16, scales_OG, grad_NO.dtype), None, None


class Experts(nn.Module):
    """What all forms of the experts share: grouping tokens by expert, the gate, biases, LoRA. Subclasses hold weights.

    Parameters gate_up_proj_bias [E, 2F] and down_proj_bias [E, D] are here, matrices in the subclass.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        experts, hidden, inner = config.num_local_experts, config.hidden_size, config.intermediate_size
        self.num_experts, self.hidden_size, self.intermediate_size = experts, hidden, inner
        # config.swiglu_alpha came with later versions of transformers; the published value is fixed.
        self.alpha, self.limit = getattr(config, "swiglu_alpha", 1.702), config.swiglu_limit
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(experts, 2 * inner))
        self.down_proj_bias = nn.Parameter(torch.zeros(experts, hidden))

    def forward(self, hidden_states: Tensor, router_indices: Tensor, routing_weights: Tensor) -> Tensor:
        """Return [T, D]. hidden_states [T, D], router_indices [T, K] int64, routing_weights [T, K]."""
        return self.run(hidden_states, router_indices, routing_weights, None, None)

    def run(
        self, x_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor, gate_up: LowRank | None, down: LowRank | None
    ) -> Tensor:
        """The forward pass with optional LoRA updates of the two projections."""
        T, K = indices_TK.shape
        order = indices_TK.flatten().argsort(stable=True)
        counts = torch.bincount(indices_TK.flatten(), minlength=self.num_experts).tolist()
        none: list[ExpertUpdate | None] = [None] * self.num_experts
        updates = zip(gate_up.experts() if gate_up else none, down.experts() if down else none, strict=True)
        outputs = []
        for expert, (x_ND, update) in enumerate(zip(x_TD[order // K].split(counts), updates, strict=True)):
            if len(x_ND):
                outputs.append(self._expert(expert, x_ND, *update))
        # Back to token order; each token adds up its K experts in a fixed order, so the sum is deterministic.
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        y_TKD = torch.cat(outputs)[back].reshape(T, K, -1)
        return (y_TKD * weights_TK[..., None].to(y_TKD.dtype)).sum(1)

    def project(self, name: str, expert: int, x_NI: Tensor) -> Tensor:
        """Multiply with one expert's matrix, [N, in] -> [N, out]. `name` is gate_up_proj or down_proj."""
        raise NotImplementedError

    def _expert(self, expert: int, x_ND: Tensor, gate_up: ExpertUpdate | None, down: ExpertUpdate | None) -> Tensor:
        h = self.project("gate_up_proj", expert, x_ND) + self.gate_up_proj_bias[expert].to(x_ND.dtype)
        if gate_up is not None:
            h = h + gate_up.of(x_ND)
        a_NF = swiglu(h, self.alpha, self.limit)
        y = self.project("down_proj", expert, a_NF) + self.down_proj_bias[expert].to(x_ND.dtype)
        return y if down is None else y + down.of(a_NF)


class PackedExperts(Experts):
    """Replaces transformers' GptOssExperts on a checkpoint whose experts are MXFP4. Nothing in it is trained."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        experts, hidden, inner = self.num_experts, self.hidden_size, self.intermediate_size

        def codes(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape, dtype=torch.uint8), requires_grad=False)

        self.gate_up_proj_blocks = codes(experts, 2 * inner, hidden // 32, 16)
        self.gate_up_proj_scales = codes(experts, 2 * inner, hidden // 32)
        self.down_proj_blocks = codes(experts, hidden, inner // 32, 16)
        self.down_proj_scales = codes(experts, hidden, inner // 32)
        self.requires_grad_(False)

    def project(self, name: str, expert: int, x_NI: Tensor) -> Tensor:
        blocks, scales = getattr(self, f"{name}_blocks"), getattr(self, f"{name}_scales")
        return PackedLinear.apply(x_NI, blocks[expert], scales[expert])


class QuantisationAwareExperts(Experts):
    """Experts in floating point that are trained as the MXFP4 they will be packed to (straight-through gradients).

    For making small models from scratch. Parameters gate_up_proj [E, 2F, D] and down_proj [E, D, F].
    """

    def __init__(self, config: Any, std: float = 0.02) -> None:
        super().__init__(config)
        experts, hidden, inner = self.num_experts, self.hidden_size, self.intermediate_size
        self.gate_up_proj = nn.Parameter(torch.randn(experts, 2 * inner, hidden) * std)
        self.down_proj = nn.Parameter(torch.randn(experts, hidden, inner) * std)
        self._rounded: dict[str, Tensor] = {}

    def run(self, *args: Any) -> Tensor:
        self._rounded = {name: fake_quantise(getattr(self, name), "floor") for name in ("gate_up_proj", "down_proj")}
        try:
            return super().run(*args)
        finally:
            self._rounded = {}

    def project(self, name: str, expert: int, x_NI: Tensor) -> Tensor:
        return x_NI @ self._rounded[name][expert].T


def swiglu(h: Tensor, alpha: float, limit: float) -> Tensor:
    """gpt-oss's gate on interleaved halves, [..., 2F] -> [..., F]: (clamp(up) + 1) * gate * sigmoid(alpha * gate)."""
    gate, up = h[..., ::2].clamp(max=limit), h[..., 1::2].clamp(min=-limit, max=limit)
    return (up + 1) * (gate * functional.sigmoid(gate * alpha))
