"""Dense attention by torch's CPU flash kernel, called with shapes for which the kernel is fast.

The kernel cuts the queries of a head into tiles. The tiles grow with the number of queries, and have 32 queries where
there are few. Query heads that share a key head see the same keys, so they are laid end to end as one long head. A
tile then has several times as many queries, and the keys are read once.

The kernel's own causal mask does not fit this layout. Causal attention is therefore computed in blocks of queries. A
block attends to its own keys with a mask, and to all keys before it without one.

The reference is `ossia.kernels.reference.attention`.

Shapes: B rows, H query heads, K key/value heads, G = H / K, Q queries, C keys, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ossia.kernels.reference.attention import merged

BLOCK = 256
"""Number of queries in a causal block."""

_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def serves(device: torch.device) -> bool:
    """Return whether torch's kernel runs on this device. It takes every dtype and head size."""
    return device.type == "cpu"


def dense_forward(
    q_BHQD: Tensor, k_BKCD: Tensor, v_BKCD: Tensor, seen: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the results of `reference.attention.dense_forward`."""
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
    """Return the results of `reference.attention.dense_backward`."""
    if not causal:
        mask = _additive(seen, q_BHQD, k_BKCD)
        return _backward(grad_BHQD, q_BHQD, k_BKCD, v_BKCD, out_BHQD, lse_BHQ, mask, scale)
    dq_BHQD = torch.empty_like(q_BHQD, memory_format=torch.contiguous_format)
    # Every later block adds to the gradients of a block's keys, so the sums are kept in float32.
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
    """Add a block's gradients of some keys and values to the sums, and return the gradient of its queries.

    `part` holds the block's slices of grad, q, out and log-sum-exp. The result has the sums' dtype.
    """
    grad, q, out, lse = part
    dq, dk, dv = _backward(grad, q, k_BKCD[:, :, keys], v_BKCD[:, :, keys], out, lse, mask, scale)
    dk_BKCD[:, :, keys] += dk
    dv_BKCD[:, :, keys] += dv
    return dq.to(dk_BKCD.dtype)


def _blocks(q_BHQD: Tensor, k_BKCD: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield the causal blocks, each with the additive mask of its own keys."""
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
    """Return [B, H, Q, ...] as [B, K, G * Q, ...]."""
    return x_BHQ.unflatten(1, (heads, -1)).flatten(2, 3)


def _additive(seen: Tensor | None, q_BHQD: Tensor, k_BKCD: Tensor) -> Tensor | None:
    """Return the mask [B or 1, 1, Q, C] as a term for the logits, [B or 1, 1, G * Q, C] in q's dtype.

    The term is 0 where a key is seen and -inf elsewhere, repeated for each head of a group.
    """
    if seen is None:
        return None
    mask = torch.zeros(seen.shape, dtype=q_BHQD.dtype).masked_fill_(~seen, -torch.inf)
    group = q_BHQD.shape[1] // k_BKCD.shape[1]
    return mask.expand(-1, group, *seen.shape[2:]).flatten(1, 2)[:, None]
