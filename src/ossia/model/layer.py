"""A layer of gpt-oss that, asked to recompute, recomputes only what is cheaper than keeping.

transformers' switch (`gradient_checkpointing_enable`) makes a layer keep its input and run twice. Here the switch keeps
two tensors per layer, the inputs of its halves, and the backward pass computes again:

* attention: from its input to its output, because every product in it is small;
* experts: the norm, and of the two projections only the first (see `ossia.model.experts`); the router not at all.

Both halves' inputs may be sent to main memory until they are needed (`offload`).

Shapes: B rows, T tokens, D hidden size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from transformers import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssDecoderLayer

from ossia.model.norm import RMSNorm

OFFLOADED = 1 << 20
"""Bytes from which a tensor is worth sending to main memory."""


class DecoderLayer(GptOssDecoderLayer):
    """transformers' layer with frugal norms and a recompute of its own. `offload`: keep inputs in main memory."""

    offload = False

    def __init__(self, config: GptOssConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self._checkpoint: Callable[..., Any] = partial(checkpoint, use_reentrant=False)

    @property
    def _gradient_checkpointing_func(self) -> Callable[..., Any]:
        """transformers would run the whole layer through this; it runs once, and `forward` sees to its halves."""
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
    """While this is active, autograd keeps a way to make `tensor` instead of the tensor itself."""
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
    """While this is active, large activations that autograd keeps go to pinned main memory and come back in time."""

    def pack(kept: Tensor) -> Tensor | tuple[torch.device, Tensor]:
        if isinstance(kept, torch.nn.Parameter) or not kept.is_floating_point() or kept.nbytes < OFFLOADED:
            return kept
        away = torch.empty(kept.shape, dtype=kept.dtype, pin_memory=kept.is_cuda)
        away.copy_(kept, non_blocking=kept.is_cuda)
        return kept.device, away

    def unpack(packed: Tensor | tuple[torch.device, Tensor]) -> Tensor:
        return packed if isinstance(packed, Tensor) else packed[1].to(packed[0], non_blocking=True)

    return saved_tensors_hooks(pack, unpack)
