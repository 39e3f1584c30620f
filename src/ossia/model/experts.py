"""The experts of gpt-oss, which stay in four bits in the forward and the backward pass.

The published bytes (MXFP4: blocks of 32 E2M1 codes with one E8M0 scale) are the parameters of `PackedExperts`, under
the published names. They are multiplied directly (`kernels.dispatch.product`) and get no gradient. No floating-point
copy of a matrix outlives the product that needs it.

Forward and backward pass go expert by expert, and keep the input between them. With `gradient_checkpointing`, the
backward pass computes the first projection again. Without it, the first projection's output is kept, too. The second
projection never runs twice. The gradient of a token's routing weight is its output times the output's gradient. This
equals the activation times the activation's gradient, which the backward pass computes anyway.

Shapes: T tokens, K experts per token, E experts, D hidden size, F intermediate size, N tokens of one expert, R LoRA
rank. Matrices lie as stored: [out, in].
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ossia.kernels.dispatch import gate, gate_backward, narrow, outer, product
from ossia.kernels.reference import GROUP_SIZE, Into, LowRank, Packed, Update
from ossia.kernels.reference import gate as differentiable
from ossia.kernels.reference.mxfp4 import fake_quantise


class ExpertsBase(nn.Module):
    """The parts that all forms of the experts share: sizes, the gate's constants, biases. Subclasses hold the matrices.

    Its parameters are gate_up_proj_bias [E, 2F] and down_proj_bias [E, D].
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        experts, hidden, inner = config.num_local_experts, config.hidden_size, config.intermediate_size
        self.num_experts, self.hidden_size, self.intermediate_size = experts, hidden, inner
        # Only later versions of transformers have config.swiglu_alpha. 1.702 is the published value.
        self.alpha, self.limit = getattr(config, "swiglu_alpha", 1.702), config.swiglu_limit
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(experts, 2 * inner))
        self.down_proj_bias = nn.Parameter(torch.zeros(experts, hidden))


class Route(NamedTuple):
    """The tokens of one expert, int64: their places in the batch, and in the flattened choices [T * K]."""

    expert: int
    places_N: Tensor
    slots_N: Tensor


def routes(indices_TK: Tensor, experts: int) -> Iterator[Route]:
    """Yield the router's choices [T, K] by expert. Experts that no token chose are left out."""
    order = indices_TK.flatten().argsort(stable=True)
    counts = torch.bincount(indices_TK.flatten(), minlength=experts).tolist()
    places = order // indices_TK.shape[1]
    for expert, (places_N, slots_N) in enumerate(zip(places.split(counts), order.split(counts), strict=True)):
        if counts[expert]:
            yield Route(expert, places_N, slots_N)


class PackedExperts(ExpertsBase):
    """A replacement of transformers' GptOssExperts for checkpoints with experts in MXFP4. None of it is trained."""

    gradient_checkpointing = False
    """Set by transformers' `gradient_checkpointing_enable`: compute the first projection again in the backward pass."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        experts, hidden, inner = self.num_experts, self.hidden_size, self.intermediate_size

        def codes(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape, dtype=torch.uint8), requires_grad=False)

        self.gate_up_proj_blocks = codes(experts, 2 * inner, hidden // GROUP_SIZE, GROUP_SIZE // 2)
        self.gate_up_proj_scales = codes(experts, 2 * inner, hidden // GROUP_SIZE)
        self.down_proj_blocks = codes(experts, hidden, inner // GROUP_SIZE, GROUP_SIZE // 2)
        self.down_proj_scales = codes(experts, hidden, inner // GROUP_SIZE)
        self.requires_grad_(False)

    def forward(self, hidden_states: Tensor, router_indices: Tensor, routing_weights: Tensor) -> Tensor:
        """Return [T, D]. hidden_states [T, D], router_indices [T, K] int64, routing_weights [T, K]."""
        return self.run(hidden_states, router_indices, routing_weights, None, None)

    def run(
        self, x_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor, gate_up: LowRank | None, down: LowRank | None
    ) -> Tensor:
        """Return the result of `forward`, [T, D], with optional LoRA updates of the two projections."""
        none = (None, None, 0.0)
        a1, b1, scale1 = gate_up or none
        a2, b2, scale2 = down or none
        frozen = (
            *(self.gate_up_proj_blocks, self.gate_up_proj_scales, self.gate_up_proj_bias.to(x_TD.dtype)),
            *(self.down_proj_blocks, self.down_proj_scales, self.down_proj_bias.to(x_TD.dtype)),
        )
        settings = _Settings(
            self.alpha, self.limit, scale1, scale2, not (self.gradient_checkpointing and self.training)
        )
        y_TD: Tensor = _Mixture.apply(x_TD, weights_TK, indices_TK, a1, b1, a2, b2, frozen, settings)
        return y_TD


class _Settings(NamedTuple):
    alpha: float
    limit: float
    scale1: float
    scale2: float
    keep: bool
    """Keep the first projection's outputs for the backward pass."""


class _Projection(NamedTuple):
    """One projection of one expert, with its LoRA matrices in the compute dtype."""

    matrix: Packed
    bias_O: Tensor
    a_RI: Tensor | None
    b_OR: Tensor | None
    scale: float

    @staticmethod
    def of(expert: int, frozen: Any, a: Tensor | None, b: Tensor | None, scale: float) -> _Projection:
        """Return one expert's projection from those of all. `frozen`: blocks, scales, biases; a, b: LoRA matrices."""
        blocks, scales, bias = frozen
        dtype = bias.dtype
        matrix = Packed(blocks[expert], scales[expert])
        if a is None or b is None:
            return _Projection(matrix, bias[expert], None, None, scale)
        return _Projection(matrix, bias[expert], a[expert].to(dtype), b[expert].to(dtype), scale)

    def down(self, x_NI: Tensor) -> Tensor | None:
        """Return scale * x A^T, the input of the update's second matrix."""
        return None if self.a_RI is None else narrow(x_NI, self.a_RI, True, self.scale)

    def up(self, grad_NO: Tensor) -> Tensor | None:
        """Return scale * grad B, the gradient of x A^T."""
        return None if self.b_OR is None else narrow(grad_NO, self.b_OR, False, self.scale)

    def forward(self, x_NI: Tensor, low_NR: Tensor | None, into: Into | None = None) -> Any:
        update = None if low_NR is None or self.b_OR is None else Update(low_NR, self.b_OR)
        return product(x_NI, self.matrix, True, bias=self.bias_O, update=update, into=into)

    def backward(self, grad_NO: Tensor, high_NR: Tensor | None, into: Into | None = None) -> Any:
        update = None if high_NR is None or self.a_RI is None else Update(high_NR, self.a_RI)
        return product(grad_NO, self.matrix, False, update=update, into=into)


class _Mixture(torch.autograd.Function):
    """The weighted sum of each token's experts, added up in float32 or wider.

    The experts are added in a fixed order, so the result is deterministic.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        weights_TK: Tensor,
        indices_TK: Tensor,
        a1: Tensor | None,
        b1: Tensor | None,
        a2: Tensor | None,
        b2: Tensor | None,
        frozen: tuple[Tensor, ...],
        settings: _Settings,
    ) -> Tensor:
        dtype = torch.promote_types(x_TD.dtype, torch.float32)
        total_TD = torch.zeros(x_TD.shape, dtype=dtype, device=x_TD.device)
        factors = weights_TK.detach().flatten().to(dtype)
        keep = settings.keep and any(ctx.needs_input_grad)
        kept_MH = x_TD.new_empty(indices_TK.numel(), frozen[2].shape[-1]) if keep else None
        for expert, places_N, slots_N in routes(indices_TK, len(frozen[0])):
            first = _Projection.of(expert, frozen[:3], a1, b1, settings.scale1)
            second = _Projection.of(expert, frozen[3:], a2, b2, settings.scale2)
            x_ND = x_TD.index_select(0, places_N)
            h = first.forward(x_ND, first.down(x_ND))
            if kept_MH is not None:
                kept_MH.index_copy_(0, slots_N, h)
            a_NF = gate(h, settings.alpha, settings.limit)
            second.forward(a_NF, second.down(a_NF), Into(total_TD, places_N, factors[slots_N]))
        ctx.save_for_backward(x_TD, weights_TK, indices_TK, a1, b1, a2, b2, *frozen, kept_MH)
        ctx.settings = settings
        return total_TD.to(x_TD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x_TD, weights_TK, indices_TK, a1, b1, a2, b2, *rest = ctx.saved_tensors
        *frozen, kept_MH = rest
        settings: _Settings = ctx.settings
        dtype = torch.promote_types(x_TD.dtype, torch.float32)
        factors = weights_TK.flatten().to(dtype)
        dfactors = torch.zeros_like(factors)
        dx_TD = torch.zeros(x_TD.shape, dtype=dtype, device=x_TD.device)
        da1, db1, da2, db2 = (None if x is None else torch.zeros_like(x) for x in (a1, b1, a2, b2))
        for expert, places_N, slots_N in routes(indices_TK, len(frozen[0])):
            first = _Projection.of(expert, frozen[:3], a1, b1, settings.scale1)
            second = _Projection.of(expert, frozen[3:], a2, b2, settings.scale2)
            x_ND, grad_ND, factors_N = (
                x_TD.index_select(0, places_N),
                grad_TD.index_select(0, places_N),
                factors[slots_N],
            )
            low = first.down(x_ND)
            h = first.forward(x_ND, low) if kept_MH is None else kept_MH.index_select(0, slots_N)
            high = second.up(grad_ND)
            change_NF = second.backward(grad_ND, high)
            a_NF, dh, dots_N = gate_backward(h, change_NF, factors_N, settings.alpha, settings.limit)
            dfactors[slots_N] = dots_N + (grad_ND @ second.bias_O).to(dtype)
            if da2 is not None and db2 is not None and high is not None:
                weighted = factors_N[:, None].to(x_TD.dtype)
                da2[expert] = outer(high * weighted, a_NF, False)
                db2[expert] = outer(second.down(a_NF) * weighted, grad_ND, True)
            high = first.up(dh)
            if da1 is not None and db1 is not None and high is not None and low is not None:
                da1[expert], db1[expert] = outer(high, x_ND, False), outer(low, dh, True)
            if ctx.needs_input_grad[0]:
                first.backward(dh, high, Into(dx_TD, places_N))
        dweights = dfactors.view_as(weights_TK).to(weights_TK.dtype)
        dx = dx_TD.to(x_TD.dtype) if ctx.needs_input_grad[0] else None
        return dx, dweights, None, da1, db1, da2, db2, None, None


class QuantisationAwareExperts(ExpertsBase):
    """Experts in floating point, trained with the MXFP4 values that packing gives (straight-through gradients).

    They are for training small models from scratch. The parameters are gate_up_proj [E, 2F, D] and down_proj [E, D, F].
    """

    def __init__(self, config: Any, std: float = 0.02) -> None:
        super().__init__(config)
        experts, hidden, inner = self.num_experts, self.hidden_size, self.intermediate_size
        self.gate_up_proj = nn.Parameter(torch.randn(experts, 2 * inner, hidden) * std)
        self.down_proj = nn.Parameter(torch.randn(experts, hidden, inner) * std)

    def forward(self, hidden_states: Tensor, router_indices: Tensor, routing_weights: Tensor) -> Tensor:
        """Return [T, D]. hidden_states [T, D], router_indices [T, K] int64, routing_weights [T, K]."""
        gate_up, down = (fake_quantise(weight, "floor") for weight in (self.gate_up_proj, self.down_proj))
        outputs, slots = [], []
        for expert, places_N, slots_N in routes(router_indices, self.num_experts):
            h = hidden_states[places_N] @ gate_up[expert].T + self.gate_up_proj_bias[expert]
            outputs.append(
                differentiable.gate(h, self.alpha, self.limit) @ down[expert].T + self.down_proj_bias[expert]
            )
            slots.append(slots_N)
        # Back to token order. Each token's K experts are added up in a fixed order, so the sum is deterministic.
        order = torch.cat(slots)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        y_TKD = torch.cat(outputs)[back].reshape(*router_indices.shape, -1)
        return (y_TKD * routing_weights[..., None].to(y_TKD.dtype)).sum(1)
