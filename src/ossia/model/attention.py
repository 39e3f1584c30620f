"""Attention over ranges, with learned sinks and a sliding window in position space.

The input is query ranges, each with its key ranges (`batch.Segments`). The sink of a head is one more logit in the
softmax's denominator, without a value (gpt-oss model card, 2025). It is folded into the log-sum-exp of stock kernels,
forward and backward (`ossia.kernels.reference.attention`). With a window of 128, a query sees keys at distance 0..127
along its path. Distances are counted in positions, not in places of the flat batch.

Autograd keeps the inputs, the output and one number per head and token, so memory is linear in the tokens.
`ossia.kernels.dispatch` chooses the form in which a forest reaches the kernels. In the dense form, a full layer takes
one segment at a time. It computes the attention to the segment itself and to its ancestors, and merges the two. A
windowed layer cuts all segments into blocks of queries, each with the keys that its window can reach. For rows of
different lengths see `ossia.model.varlen`.

The implementation is registered with transformers as "ossia". If transformers passes its own masks and a KV cache
(generate), the same function takes those instead.

Shapes: B rows, H query heads, K key/value heads, T tokens, Q queries, C keys, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ossia.kernels import dispatch
from ossia.kernels.reference.attention import Paths, merged
from ossia.model.batch import Segments
from ossia.model.blocks import Blocks
from ossia.model.varlen import VarlenAttention

NAME = "ossia"


def attend(
    q_HTD: Tensor,
    k_KTD: Tensor,
    v_KTD: Tensor,
    sinks_H: Tensor,
    segments: Segments,
    *,
    scale: float,
    window: int | None,
) -> Tensor:
    """Return the attention output [T, H, D] of a flat batch. It is differentiable in all four tensors."""
    group = len(q_HTD) // len(k_KTD)
    form = dispatch.attention_form(q_HTD.device, q_HTD.dtype, q_HTD.shape[-1], group)
    if form == "varlen":
        out_THD: Tensor = VarlenAttention.apply(q_HTD, k_KTD, v_KTD, sinks_H, segments.varlen(window), scale)
        return out_THD
    if form == "paths":
        paths = segments.paths(dispatch.tokens_per_chunk(group))
        along_THD: Tensor = _AlongPaths.apply(q_HTD, k_KTD, v_KTD, sinks_H, paths, window, scale)
        return along_THD
    function = _Full if window is None else _Windowed
    plan = segments if window is None else segments.blocks(window)
    out_HTD: Tensor = function.apply(q_HTD, k_KTD, v_KTD, sinks_H, plan, scale)
    return out_HTD.transpose(0, 1)


class _Full(torch.autograd.Function):
    """Attention of a full layer in the dense form: every query sees its path up to itself."""

    @staticmethod
    def forward(
        ctx: Any, q_HTD: Tensor, k_KTD: Tensor, v_KTD: Tensor, sinks_H: Tensor, segments: Segments, scale: float
    ) -> Tensor:
        out_HTD, lse_HT = _empty(q_HTD)
        for (start, end), ancestors in zip(segments.ranges, segments.ancestors, strict=True):
            own = slice(start, end)
            q, k, v = q_HTD[None, :, own], k_KTD[None, :, own], v_KTD[None, :, own]
            out, lse = dispatch.dense_forward(q, k, v, None, True, scale)
            if ancestors:
                k, v = _gathered(k_KTD, ancestors), _gathered(v_KTD, ancestors)
                out, lse = merged(out, lse, *dispatch.dense_forward(q, k, v, None, False, scale))
            out_HTD[:, own], lse_HT[:, own] = out[0], lse[0]
        ctx.segments, ctx.scale = segments, scale
        return _finish(ctx, q_HTD, k_KTD, v_KTD, sinks_H, out_HTD, lse_HT)

    @staticmethod
    def backward(ctx: Any, grad_HTD: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q_HTD, k_KTD, v_KTD, sinks_H, out_HTD, lse_HT = ctx.saved_tensors
        dtype = lse_HT.dtype
        dq_HTD = torch.empty_like(q_HTD)
        # All segments that share a key add to its gradient, so the sums are kept in float32.
        dk_KTD, dv_KTD = torch.zeros_like(k_KTD, dtype=dtype), torch.zeros_like(v_KTD, dtype=dtype)
        for (start, end), ancestors in zip(ctx.segments.ranges, ctx.segments.ancestors, strict=True):
            own = slice(start, end)
            q, k, v, out = (x[None, :, own] for x in (q_HTD, k_KTD, v_KTD, out_HTD))
            grad, lse = grad_HTD[None, :, own], lse_HT[None, :, own]
            dq, dk, dv = dispatch.dense_backward(grad, q, k, v, out, lse, None, True, ctx.scale)
            dk_KTD[:, own] += dk[0]
            dv_KTD[:, own] += dv[0]
            if ancestors:
                k, v = _gathered(k_KTD, ancestors), _gathered(v_KTD, ancestors)
                more, dk, dv = dispatch.dense_backward(grad, q, k, v, out, lse, None, False, ctx.scale)
                dq = dq.to(dtype) + more
                _scatter(dk_KTD, dk[0], ancestors)
                _scatter(dv_KTD, dv[0], ancestors)
            dq_HTD[:, own] = dq[0]
        dsinks = _sink_gradient(ctx, grad_HTD, sinks_H, out_HTD, lse_HT)
        return dq_HTD, dk_KTD.to(k_KTD.dtype), dv_KTD.to(v_KTD.dtype), dsinks, None, None


class _Windowed(torch.autograd.Function):
    """Attention of a windowed layer in the dense form: every query sees the last `window` positions of its path.

    Blocks of one size are one batch for the kernel.
    """

    @staticmethod
    def forward(
        ctx: Any, q_HTD: Tensor, k_KTD: Tensor, v_KTD: Tensor, sinks_H: Tensor, sizes: Sequence[Blocks], scale: float
    ) -> Tensor:
        out_HTD, lse_HT = _empty(q_HTD)
        for blocks in sizes:
            q, k, v = blocks.queries(q_HTD), blocks.keys(k_KTD), blocks.keys(v_KTD)
            out, lse = dispatch.dense_forward(q, k, v, blocks.seen, False, scale)
            out_HTD.index_copy_(1, blocks.tokens, blocks.real(out))
            lse_HT.index_copy_(1, blocks.tokens, blocks.real(lse))
        ctx.sizes, ctx.scale = sizes, scale
        return _finish(ctx, q_HTD, k_KTD, v_KTD, sinks_H, out_HTD, lse_HT)

    @staticmethod
    def backward(ctx: Any, grad_HTD: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q_HTD, k_KTD, v_KTD, sinks_H, out_HTD, lse_HT = ctx.saved_tensors
        dq_HTD = torch.empty_like(q_HTD)
        # Several blocks add to the gradient of a key, so the sums are kept in float32.
        dk_KTD, dv_KTD = (torch.zeros_like(x, dtype=lse_HT.dtype) for x in (k_KTD, v_KTD))
        for blocks in ctx.sizes:
            q, k, v, out = blocks.queries(q_HTD), blocks.keys(k_KTD), blocks.keys(v_KTD), blocks.queries(out_HTD)
            # Padded queries repeat real ones. Their gradient is zero, so that they add nothing to the keys' gradients.
            grad = blocks.queries(grad_HTD) * blocks.is_real[:, None, :, None]
            dq, dk, dv = dispatch.dense_backward(
                grad, q, k, v, out, blocks.queries(lse_HT), blocks.seen, False, ctx.scale
            )
            dq_HTD.index_copy_(1, blocks.tokens, blocks.real(dq))
            blocks.add(dk_KTD, dk)
            blocks.add(dv_KTD, dv)
        dsinks = _sink_gradient(ctx, grad_HTD, sinks_H, out_HTD, lse_HT)
        return dq_HTD, dk_KTD.to(k_KTD.dtype), dv_KTD.to(v_KTD.dtype), dsinks, None, None


class _AlongPaths(torch.autograd.Function):
    """Attention [T, H, D] of a full or windowed layer in the form "paths": all segments in one call of a kernel."""

    @staticmethod
    def forward(
        ctx: Any,
        q_HTD: Tensor,
        k_KTD: Tensor,
        v_KTD: Tensor,
        sinks_H: Tensor,
        paths: Paths,
        window: int | None,
        scale: float,
    ) -> Tensor:
        out_THD, lse_HT = dispatch.paths_forward(q_HTD, k_KTD, v_KTD, sinks_H, paths, window, scale)
        ctx.save_for_backward(q_HTD, k_KTD, v_KTD, sinks_H, out_THD, lse_HT)
        ctx.further = paths, window, scale
        return out_THD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_THD: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q_HTD, k_KTD, v_KTD, sinks_H, out_THD, lse_HT = ctx.saved_tensors
        grad_HTD, out_HTD = grad_THD.transpose(0, 1), out_THD.transpose(0, 1)
        grads = dispatch.paths_backward(grad_HTD, q_HTD, k_KTD, v_KTD, out_HTD, lse_HT, *ctx.further)
        return *grads, _sink_gradient(ctx, grad_HTD, sinks_H, out_HTD, lse_HT), None, None, None


class _Masked(torch.autograd.Function):
    """Attention of padded rows [B, H, T, D] with a mask, in the form that transformers and other trainers use."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks_H: Tensor, seen: Tensor, scale: float) -> Tensor:
        out, lse = dispatch.dense_forward(q, k, v, seen, False, scale)
        sinks = sinks_H.to(lse.dtype)[:, None].expand(lse.shape)
        # A row of padding that sees no key has no finite log-sum-exp. Only its sink counts, and its output is zero.
        nothing = ~torch.isfinite(lse)
        lse = lse.masked_fill(nothing, -torch.inf)
        total = torch.logaddexp(lse, sinks)
        out = (out.to(lse.dtype) * (lse - total).exp()[..., None]).to(q.dtype).masked_fill(nothing[..., None], 0)
        ctx.save_for_backward(q, k, v, sinks_H, out, total, seen)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, sinks_H, out, lse, seen = ctx.saved_tensors
        dq, dk, dv = dispatch.dense_backward(grad, q, k, v, out, lse, seen, False, ctx.scale)
        dsinks = None
        if ctx.needs_input_grad[3]:
            share = (sinks_H.to(lse.dtype)[:, None] - lse).exp() * (grad * out).sum(-1)
            dsinks = -share.sum((0, 2)).to(sinks_H.dtype)
        return dq, dk, dv, dsinks, None, None


def _empty(q_HTD: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(q_HTD.dtype, torch.float32)
    out_HTD = torch.empty_like(q_HTD, memory_format=torch.contiguous_format)
    return out_HTD, q_HTD.new_empty(q_HTD.shape[:2], dtype=dtype)


def _finish(
    ctx: Any, q_HTD: Tensor, k_KTD: Tensor, v_KTD: Tensor, sinks_H: Tensor, out_HTD: Tensor, lse_HT: Tensor
) -> Tensor:
    """Return the output with the sinks folded into it, and save the tensors for the backward pass."""
    total_HT = torch.logaddexp(lse_HT, sinks_H.to(lse_HT.dtype)[:, None])
    out_HTD = (out_HTD.to(lse_HT.dtype) * (lse_HT - total_HT).exp()[..., None]).to(q_HTD.dtype)
    ctx.save_for_backward(q_HTD, k_KTD, v_KTD, sinks_H, out_HTD, total_HT)
    return out_HTD


def _sink_gradient(ctx: Any, grad_HTD: Tensor, sinks_H: Tensor, out_HTD: Tensor, lse_HT: Tensor) -> Tensor | None:
    """Return the gradient of the sinks [H]. A sink takes probability but has no value.

    Its gradient is therefore minus its probability times grad . out, summed over the tokens.
    """
    if not ctx.needs_input_grad[3]:
        return None
    dtype = lse_HT.dtype
    share_HT = (sinks_H.to(dtype)[:, None] - lse_HT).exp() * (grad_HTD.to(dtype) * out_HTD.to(dtype)).sum(-1)
    return -share_HT.sum(1).to(sinks_H.dtype)


def _gathered(x_KTD: Tensor, ranges: tuple[tuple[int, int], ...]) -> Tensor:
    """Return the keys or values of some ranges, [1, K, C, D]. A single range gives a view."""
    return (
        torch.cat([x_KTD[:, start:end] for start, end in ranges], 1)[None]
        if len(ranges) > 1
        else (x_KTD[None, :, ranges[0][0] : ranges[0][1]])
    )


def _scatter(into_KTD: Tensor, x_KCD: Tensor, ranges: tuple[tuple[int, int], ...]) -> None:
    place = 0
    for start, end in ranges:
        into_KTD[:, start:end] += x_KCD[:, place : place + end - start]
        place += end - start


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Segments | Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return (attention output [B, Q, H, D], None). transformers calls this function in each layer.

    Args:
        query, key, value: [B, H, Q, D] and twice [B, K, C, D].
        attention_mask: the micro-batch's `Segments` (then B is 1), or transformers' additive or boolean mask.
        cu_seq_lens_q: borders of sequences that are laid end to end in one row (TRL's padding_free). transformers' mask
            does not separate them.
    """
    assert dropout == 0.0, "gpt-oss has no attention dropout"
    sinks_H = s_aux if s_aux is not None else module.sinks
    if isinstance(attention_mask, Segments):
        out_THD = attend(query[0], key[0], value[0], sinks_H, attention_mask, scale=scaling, window=sliding_window)
        return out_THD[None], None
    Q, C = query.shape[-2], key.shape[-2]
    if attention_mask is None:
        places = torch.arange(C, device=query.device)
        distance_QC = places[C - Q :, None] - places
        seen = ((distance_QC >= 0) & (distance_QC < (sliding_window or C)))[None, None]
    else:
        mask = attention_mask[..., :C]
        seen = mask if mask.dtype == torch.bool else mask == 0
    if cu_seq_lens_q is not None and Q == C:
        row_C = torch.bucketize(torch.arange(C, device=query.device), cu_seq_lens_q[1:], right=True)
        seen = seen & (row_C[:, None] == row_C)
    out: Tensor = _Masked.apply(query, key, value, sinks_H, seen, scaling)
    return out.transpose(1, 2), None


def register() -> None:
    """Register the implementation with transformers. Called when `ossia.model.modeling` is imported."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
