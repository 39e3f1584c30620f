"""Attention of a whole flat batch in few calls, for kernels that take rows of different lengths at once.

A segment is a row. In a windowed layer the row also repeats the tokens before the segment on its path, as far as the
window reaches. Every row is then an ordinary sequence; the outputs of repeated tokens are computed and discarded. In a
full layer, further calls compute the attention to the ancestors' keys, without a mask. The results are merged by their
log-sum-exp. A call gathers the keys of as many segments as GATHERED allows, so memory does not grow with the number of
branches.

Shapes: T tokens, N tokens of all rows with repetitions, H query heads, K key/value heads, D head size.
M queries with ancestors, C keys of ancestors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ossia.kernels import dispatch
from ossia.kernels.reference.attention import VarlenRows, merged
from ossia.model.blocks import tail

GATHERED = 1 << 17
"""Largest number of ancestors' keys in one call (a single segment may have more)."""


@dataclass(frozen=True)
class Ancestors:
    """A further call in a full layer: the queries of some segments and the keys of their ancestors."""

    queries_M: Tensor
    """int64: the flat places of the queries."""
    keys_C: Tensor
    """int64: the flat places of the keys, row after row. A key that several segments share is repeated."""
    rows: VarlenRows


@dataclass(frozen=True)
class VarlenPlan:
    """The rows of a forest, for one kind of layer (full, or windowed)."""

    rows: VarlenRows
    window: int | None
    places_N: Tensor | None = None
    """int64: the flat places of the rows' tokens. None: the rows are all tokens in order."""
    kept_T: Tensor | None = None
    """int64: the place of each flat token's own query among the N tokens of the rows. None if `places_N` is None."""
    ancestors: tuple[Ancestors, ...] = ()


def varlen_plan(
    ranges: Sequence[tuple[int, int]],
    ancestors: Sequence[Sequence[tuple[int, int]]],
    window: int | None,
    device: torch.device | str,
) -> VarlenPlan:
    """Return the rows of segments (see `batch.Segments`). Positions on a path must count up by one."""
    own = [end - start for start, end in ranges]
    if not any(ancestors):
        return VarlenPlan(VarlenRows.of(own, own, device), window)
    if window is None:
        calls = tuple(_ancestors(group, device) for group in _groups(ranges, ancestors))
        return VarlenPlan(VarlenRows.of(own, own, device), None, ancestors=calls)
    places, kept, at = [], [], 0
    for (start, end), before in zip(ranges, ancestors, strict=True):
        repeated = tail(before, window - 1)
        places += [repeated, torch.arange(start, end)]
        kept.append(torch.arange(end - start) + at + len(repeated))
        at += len(repeated) + end - start
    lengths = [len(first) + len(second) for first, second in zip(places[::2], places[1::2], strict=True)]
    rows = VarlenRows.of(lengths, lengths, device)
    return VarlenPlan(rows, window, torch.cat(places).to(device), torch.cat(kept).to(device))


def _groups(
    ranges: Sequence[tuple[int, int]], ancestors: Sequence[Sequence[tuple[int, int]]]
) -> Iterator[list[tuple[tuple[int, int], Sequence[tuple[int, int]]]]]:
    """Yield (segment, ancestors) of the segments with ancestors, in groups with at most GATHERED keys of ancestors."""
    group: list[tuple[tuple[int, int], Sequence[tuple[int, int]]]] = []
    keys = 0
    for own, before in zip(ranges, ancestors, strict=True):
        more = sum(end - start for start, end in before)
        if before and group and keys + more > GATHERED:
            yield group
            group, keys = [], 0
        if before:
            group.append((own, before))
            keys += more
    yield group


def _ancestors(
    pairs: Sequence[tuple[tuple[int, int], Sequence[tuple[int, int]]]], device: torch.device | str
) -> Ancestors:
    queries = [torch.arange(start, end) for (start, end), _ in pairs]
    keys = [torch.cat([torch.arange(start, end) for start, end in before]) for _, before in pairs]
    rows = VarlenRows.of([len(x) for x in queries], [len(x) for x in keys], device)
    return Ancestors(torch.cat(queries).to(device), torch.cat(keys).to(device), rows)


class VarlenAttention(torch.autograd.Function):
    """Attention in the form "varlen": q [H, T, D], k and v [K, T, D], sinks [H] -> output [T, H, D]."""

    @staticmethod
    def forward(
        ctx: Any, q_HTD: Tensor, k_KTD: Tensor, v_KTD: Tensor, sinks_H: Tensor, plan: VarlenPlan, scale: float
    ) -> Tensor:
        q, k, v = (x.transpose(0, 1) for x in (q_HTD, k_KTD, v_KTD))
        rows = (q, k, v) if plan.places_N is None else (q[plan.places_N], k[plan.places_N], v[plan.places_N])
        out, lse = dispatch.varlen_forward(*rows, plan.rows, causal=True, window=plan.window, scale=scale)
        if plan.kept_T is not None:
            out, lse = out[plan.kept_T], lse[:, plan.kept_T]
        for ancestors in plan.ancestors:
            out, lse = _with_ancestors(out, lse, q, k, v, ancestors, scale)
        total_HT = torch.logaddexp(lse, sinks_H.to(lse.dtype)[:, None])
        out = (out.to(lse.dtype) * (lse - total_HT).exp().T[..., None]).to(q.dtype)
        ctx.save_for_backward(q_HTD, k_KTD, v_KTD, sinks_H, out, total_HT)
        ctx.plan, ctx.scale = plan, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad_THD: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        *inputs, sinks_H, out, lse_HT = ctx.saved_tensors
        plan: VarlenPlan = ctx.plan
        q, k, v = (x.transpose(0, 1) for x in inputs)
        dq, dk, dv = _own_gradients(grad_THD, q, k, v, out, lse_HT, plan, ctx.scale)
        if plan.ancestors:  # all segments that share a key add to its gradient: sums in float32
            dq, dk, dv = (x.to(lse_HT.dtype) for x in (dq, dk, dv))
        for places in plan.ancestors:
            at, keys = places.queries_M, places.keys_C
            more = dispatch.varlen_backward(
                grad_THD[at], q[at], k[keys], v[keys], out[at], lse_HT[:, at], places.rows,
                causal=False, window=None, scale=ctx.scale,
            )  # fmt: skip
            for grad, where, part in zip((dq, dk, dv), (at, keys, keys), more, strict=True):
                grad.index_add_(0, where, part.to(grad.dtype))
        dsinks = None
        if ctx.needs_input_grad[3]:  # minus the sink's probability times grad . out
            dtype = lse_HT.dtype
            share_HT = (sinks_H.to(dtype)[:, None] - lse_HT).exp() * (grad_THD.to(dtype) * out.to(dtype)).sum(-1).T
            dsinks = -share_HT.sum(1).to(sinks_H.dtype)
        grads = (x.to(given.dtype).transpose(0, 1) for x, given in zip((dq, dk, dv), inputs, strict=True))
        return *grads, dsinks, None, None


def _with_ancestors(
    out_THD: Tensor, lse_HT: Tensor, q: Tensor, k: Tensor, v: Tensor, ancestors: Ancestors, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the attention to own keys and ancestors, given the attention to own keys."""
    at, keys = ancestors.queries_M, ancestors.keys_C
    other, other_lse = dispatch.varlen_forward(
        q[at], k[keys], v[keys], ancestors.rows, causal=False, window=None, scale=scale
    )  # fmt: skip
    both, total = merged(out_THD[at].transpose(0, 1), lse_HT[:, at], other.transpose(0, 1), other_lse)
    return out_THD.index_copy(0, at, both.transpose(0, 1)), lse_HT.index_copy(1, at, total)


def _own_gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse_HT: Tensor, plan: VarlenPlan, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v through the rows' own keys, [T, ...]."""
    places, kept = plan.places_N, plan.kept_T
    if places is None or kept is None:
        return dispatch.varlen_backward(
            grad, q, k, v, out, lse_HT, plan.rows, causal=True, window=plan.window, scale=scale
        )  # fmt: skip
    # Outputs of repeated queries were discarded. Their gradient is zero, so they add nothing to the keys' gradients.
    grad_N = grad.new_zeros(len(places), *grad.shape[1:]).index_copy(0, kept, grad)
    dq, dk, dv = dispatch.varlen_backward(
        grad_N, q[places], k[places], v[places], out[places], lse_HT[:, places], plan.rows,
        causal=True, window=plan.window, scale=scale,
    )  # fmt: skip
    summed = (
        torch.zeros(x.shape, dtype=lse_HT.dtype, device=x.device).index_add(0, places, part.to(lse_HT.dtype))
        for x, part in ((k, dk), (v, dv))
    )
    dk, dv = summed
    return dq[kept], dk, dv
