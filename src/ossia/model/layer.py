"""gpt-oss's decoder layer with a recomputation of its own: only results that are cheaper to recompute than to keep.

With transformers' switch (`gradient_checkpointing_enable`), a layer keeps its input and runs twice. Here a layer keeps
two tensors, the inputs of its halves, and the backward pass recomputes less:

* attention: everything from its input to its output, because every product in it is small;
* experts: the norm, and the first of the two projections (see `ossia.model.experts`), but not the router.

Both halves' inputs may be moved to main memory until they are needed (`offload`).

The norms keep their input and one number per token. For transformers' norms, autograd keeps four float32 copies of the
input. The forward pass makes the same rounding steps, so results are bitwise the same.

Shapes: B rows, T tokens, D hidden size; `...` any leading axes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from transformers import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssDecoderLayer, GptOssRMSNorm

OFFLOADED = 1 << 20
"""Smallest size in bytes of a tensor that is moved to main memory."""


class DecoderLayer(GptOssDecoderLayer):
    """transformers' layer with other norms and its own recomputation. `offload`: keep inputs in main memory."""

    offload = False

    def __init__(self, config: GptOssConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self._checkpoint: Callable[..., Any] = partial(checkpoint, use_reentrant=False)

    @property
    def _gradient_checkpointing_func(self) -> Callable[..., Any]:
        """A function that runs the layer once. transformers calls it for recomputation, which `forward` does itself."""
        return lambda function, *args: function(*args)

    @_gradient_checkpointing_func.setter
    def _gradient_checkpointing_func(self, function: Callable[..., Any]) -> None:
        self._checkpoint = function

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return [B, T, D]. Arguments as in transformers."""
        attend = partial(self._attend, args, kwargs)
        if not (self.gradient_checkpointing and self.training and torch.is_grad_enabled()):
            hidden_states = hidden_states + attend(hidden_states)
            return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))[0]
        with _offloading() if self.offload else contextlib.nullcontext():
            hidden_states = hidden_states + self._checkpoint(attend, hidden_states)
            normed = self.post_attention_layernorm(hidden_states)
        detached = hidden_states.detach()
        with _made_again(normed, lambda: self.post_attention_layernorm(detached)):
            return hidden_states + self.mlp(normed)[0]

    def _attend(self, args: tuple[Any, ...], kwargs: dict[str, Any], hidden_states: Tensor) -> Tensor:
        out: Tensor = self.self_attn(self.input_layernorm(hidden_states), *args, **kwargs)[0]
        return out


def _made_again(tensor: Tensor, make: Callable[[], Tensor]) -> AbstractContextManager[Any]:
    """Return a context in which autograd does not keep `tensor`, but calls `make` to compute it again."""
    pointer, shape = tensor.data_ptr(), tensor.shape[-1]

    def pack(kept: Tensor) -> Tensor | tuple[int, ...]:
        is_it = kept.data_ptr() == pointer and kept.numel() == tensor_size and kept.shape[-1] == shape
        return tuple(kept.shape) if is_it else kept

    def unpack(packed: Tensor | tuple[int, ...]) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        with torch.no_grad():
            return make().view(packed)

    tensor_size = tensor.numel()
    return saved_tensors_hooks(pack, unpack)


def _offloading() -> AbstractContextManager[Any]:
    """Return a context in which autograd keeps large activations in pinned main memory until they are needed."""

    def pack(kept: Tensor) -> Tensor | tuple[torch.device, Tensor]:
        if isinstance(kept, torch.nn.Parameter) or not kept.is_floating_point() or kept.nbytes < OFFLOADED:
            return kept
        away = torch.empty(kept.shape, dtype=kept.dtype, pin_memory=kept.is_cuda)
        away.copy_(kept, non_blocking=kept.is_cuda)
        return kept.device, away

    def unpack(packed: Tensor | tuple[torch.device, Tensor]) -> Tensor:
        return packed if isinstance(packed, Tensor) else packed[1].to(packed[0], non_blocking=True)

    return saved_tensors_hooks(pack, unpack)


class RMSNorm(GptOssRMSNorm):
    """weight * x / sqrt(mean(x^2) + eps), computed in float32, with output in x's dtype (Zhang and Sennrich 2019).

    A float64 input is computed in float64, for tests of exactness; transformers rounds it to float32.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the normalised states, in their dtype."""
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
        change = grad.to(_wide(x), copy=True)  # in place from here: allocation costs more than arithmetic
        dweight_D = (change * normed).flatten(0, -2).sum(0).to(weight_D.dtype) if ctx.needs_input_grad[1] else None
        change.mul_(weight_D)
        # The result does not depend on the length of x, so the component of the gradient along x is removed.
        along = torch.linalg.vecdot(change, normed)[..., None] / x.shape[-1]
        dx = change.sub_(normed.mul_(along)).mul_(scale)
        return dx.to(x.dtype), dweight_D, None
