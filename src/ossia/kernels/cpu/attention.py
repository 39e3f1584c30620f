"""Dense attention by torch's CPU flash kernel, given the shapes that it is fast with.

The kernel cuts queries into tiles by their number per head, and makes tiles of 32 where there are few. Query heads that
share a key head see the same keys, so they are laid end to end as one long head: several times as many queries per tile
and keys read once. That leaves no room for the kernel's own causal mask. Causal attention goes by blocks of queries
instead, each first to all keys before the block, without a mask, and then to the block's own keys with one. The truth
is `ossia.kernels.reference.attention`.

Shapes: B rows, H query heads, K key/value heads, G = H / K, Q queries, C keys, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ossia.kernels.reference.attention import merged

BLOCK = 256
"""Queries of a causal block."""

_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def serves(device: torch.device) -> bool:
    """Whether torch's kernel runs there; it takes every dtype and head size."""
    return device.type == "cpu"


def dense_forward(
    q_BHQD: Tensor, k_BKCD: Tensor, v_BKCD: Tensor, seen: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """As the truth."""
    if not causal:
        return _forward(q_BHQD, k_BKCD, v_BKCD, _additive(seen, q_BHQD, k_BKCD), scale)
    dtype = torch.promote_types(q_BHQD.dtype, torch.float32)
    out_BHQD = torch.empty_like(q_BHQD, memory_format=torch.contiguous_format)
    lse_BHQ = q_BHQD.new_empty(q_BHQD.shape[:3], dtype=dtype)
    for own, mask in _blocks(q_BHQD, k_BKCD):
        q = q_BHQD[:, :, own]
        out, lse = _forward(q, k_BKCD[:, :, own], v_BKCD[:, :, own], mask, scale)
        if own.start:
            before = slice(0, own.start)
            out, lse = merged(out, lse, *_forward(q, k_BKCD[:, :, before], v_BKCD[:, :, before], None, scale))
        out_BHQD[:, :, own], lse_BHQ[:, :, own] = out, lse
    return out_BHQD, lse_BHQ


def dense_backward(
    grad_BHQD: Tensor,
    q_BHQD: Tensor,
    k_BKCD: Tensor,
    v_BKCD: Tensor,
    out_BHQD: Tensor,
    lse_BHQ: Tensor,
    seen: Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """As the truth."""
    if not causal:
        mask = _additive(seen, q_BHQD, k_BKCD)
        return _backward(grad_BHQD, q_BHQD, k_BKCD, v_BKCD, out_BHQD, lse_BHQ, mask, scale)
    dq_BHQD = torch.empty_like(q_BHQD, memory_format=torch.contiguous_format)
    # Keys collect gradients from every later block, so sums are kept in float32.
    dk_BKCD, dv_BKCD = (torch.zeros(x.shape, dtype=lse_BHQ.dtype) for x in (k_BKCD, v_BKCD))
    for own, mask in _blocks(q_BHQD, k_BKCD):
        part = [x[:, :, own] for x in (grad_BHQD, q_BHQD, out_BHQD, lse_BHQ)]
        dq = _added(part, k_BKCD, v_BKCD, dk_BKCD, dv_BKCD, own, mask, scale)
        if own.start:
            dq = dq + _added(part, k_BKCD, v_BKCD, dk_BKCD, dv_BKCD, slice(0, own.start), None, scale)
        dq_BHQD[:, :, own] = dq
    return dq_BHQD, dk_BKCD.to(k_BKCD.dtype), dv_BKCD.to(v_BKCD.dtype)


def _added(
    part: list[Tensor],
    k_BKCD: Tensor,
    v_BKCD: Tensor,
    dk_BKCD: Tensor,
    dv_BKCD: Tensor,
    keys: slice,
    mask: Tensor | None,
    scale: float,
) -> Tensor:
    """Add a block's gradients of some keys and values to the sums; return that of its queries, in the sums' type."""
    grad, q, out, lse = part
    dq, dk, dv = _backward(grad, q, k_BKCD[:, :, keys], v_BKCD[:, :, keys], out, lse, mask, scale)
    dk_BKCD[:, :, keys] += dk
    dv_BKCD[:, :, keys] += dv
    return dq.to(dk_BKCD.dtype)


def _blocks(q_BHQD: Tensor, k_BKCD: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The causal blocks, each with the mask of its own keys."""
    Q = q_BHQD.shape[2]
    for start in range(0, Q, BLOCK):
        own = slice(start, min(start + BLOCK, Q))
        count = own.stop - own.start
        seen = torch.ones(count, count, dtype=torch.bool).tril_()
        mask = _additive(seen[None, None], q_BHQD, k_BKCD)
        assert mask is not None
        yield own, mask


def _forward(
    q_BHQD: Tensor, k_BKCD: Tensor, v_BKCD: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    K = k_BKCD.shape[1]
    out, lse = _FLASH(_grouped(q_BHQD, K), k_BKCD, v_BKCD, 0.0, False, attn_mask=mask, scale=scale)
    return out.reshape(q_BHQD.shape), lse.reshape(q_BHQD.shape[:3])


def _backward(
    grad_BHQD: Tensor,
    q_BHQD: Tensor,
    k_BKCD: Tensor,
    v_BKCD: Tensor,
    out_BHQD: Tensor,
    lse_BHQ: Tensor,
    mask: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    K = k_BKCD.shape[1]
    grad, q, out, lse = (_grouped(x, K) for x in (grad_BHQD, q_BHQD, out_BHQD, lse_BHQ))
    dq, dk, dv = _FLASH_BACKWARD(grad, q, k_BKCD, v_BKCD, out, lse, 0.0, False, attn_mask=mask, scale=scale)
    return dq.reshape(q_BHQD.shape), dk, dv


def _grouped(x_BHQ: Tensor, heads: int) -> Tensor:
    """[B, H, Q, ...] -> [B, K, G * Q, ...]."""
    return x_BHQ.unflatten(1, (heads, -1)).flatten(2, 3)


def _additive(seen: Tensor | None, q_BHQD: Tensor, k_BKCD: Tensor) -> Tensor | None:
    """[B or 1, 1, Q, C] -> [.., 1, G * Q, C]: what is added to logits, once for each head of a group, in q's type."""
    if seen is None:
        return None
    mask = torch.zeros(seen.shape, dtype=q_BHQD.dtype).masked_fill_(~seen, -torch.inf)
    group = q_BHQD.shape[1] // k_BKCD.shape[1]
    return mask.expand(-1, group, *seen.shape[2:]).flatten(1, 2)[:, None]
