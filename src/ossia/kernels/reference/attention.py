"""Attention in plain torch, in two steps: output and log-sum-exp, and the gradients from those.

Neither step includes sinks. A sink, or a second set of keys, changes only the log-sum-exp, which normalises the
output. Given the output and the log-sum-exp *after* that change, the ordinary backward pass gives the right gradients.
It computes the probabilities as exp(logit - lse), and the terms of the denominator do not matter to it. Stock fused
kernels can therefore compute attention with sinks, although they do not support them.

A forest (`ossia.model.batch.Segments`) reaches a kernel in one of three forms (`ossia.kernels.dispatch.Form`). They are
dense batches, rows of different lengths (`VarlenRows`), and the forest itself (`Paths`).

Shapes: B rows, H query heads, K key/value heads (H a multiple of K), Q queries, C keys, T tokens, D head size.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK_SCORES = 1 << 24
"""Number of attention scores that are held at a time (64 MB in float32)."""


def dense_forward(
    q_BHQD: Tensor, k_BKCD: Tensor, v_BKCD: Tensor, seen: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Return (output [B, H, Q, D] in q's dtype, log-sum-exp of the scaled logits [B, H, Q] in float32 or float64).

    Args:
        seen: bool [B or 1, 1, Q, C], the keys that each query sees; None: all. A query that sees no key gives NaN.
        causal: query i sees keys 0 to i. Q must then equal C, and `seen` must be None.
    """
    dtype = torch.promote_types(q_BHQD.dtype, torch.float32)
    out_BHQD = torch.empty_like(q_BHQD, memory_format=torch.contiguous_format)
    lse_BHQ = q_BHQD.new_empty(q_BHQD.shape[:3], dtype=dtype)
    for part in _chunks(q_BHQD, k_BKCD):
        logits = _logits(q_BHQD[:, :, part], k_BKCD, _visible(seen, causal, part, q_BHQD, k_BKCD), scale)
        lse_BHQ[:, :, part] = logits.logsumexp(-1)
        weights = (logits - lse_BHQ[:, :, part, None]).exp().to(v_BKCD.dtype)
        out_BHQD[:, :, part] = _ungrouped(_grouped(weights, v_BKCD) @ v_BKCD, q_BHQD.shape[1])
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
    """Return the gradients of q, k and v (Dao et al. 2022, FlashAttention, appendix B.4).

    `out_BHQD` and `lse_BHQ` are those of the whole attention, sinks and further keys included (see the module).
    """
    dtype = lse_BHQ.dtype
    dq_BHQD = torch.empty_like(q_BHQD, memory_format=torch.contiguous_format)
    dk_BKCD, dv_BKCD = torch.zeros_like(k_BKCD, dtype=dtype), torch.zeros_like(v_BKCD, dtype=dtype)
    for part in _chunks(q_BHQD, k_BKCD):
        q, grad = q_BHQD[:, :, part], grad_BHQD[:, :, part]
        logits = _logits(q, k_BKCD, _visible(seen, causal, part, q_BHQD, k_BKCD), scale)
        weights = (logits - lse_BHQ[:, :, part, None]).exp()
        grad_g = _grouped(grad, v_BKCD)
        dv_BKCD += (_grouped(weights, v_BKCD).to(grad.dtype).transpose(-1, -2) @ grad_g).to(dtype)
        change = _ungrouped(grad_g @ v_BKCD.transpose(-1, -2), q.shape[1]).to(dtype)
        change -= (grad.to(dtype) * out_BHQD[:, :, part].to(dtype)).sum(-1, keepdim=True)
        slope = _grouped((weights * change * scale).to(q.dtype), k_BKCD)
        dq_BHQD[:, :, part] = _ungrouped(slope @ k_BKCD, q.shape[1])
        dk_BKCD += (slope.transpose(-1, -2) @ _grouped(q, k_BKCD)).to(dtype)
    return dq_BHQD, dk_BKCD.to(k_BKCD.dtype), dv_BKCD.to(v_BKCD.dtype)


def merged(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Return (output [..., Q, D], log-sum-exp [..., Q]) over two sets of keys, given those over each set."""
    total = torch.logaddexp(lse, other_lse)
    mixed = out.to(lse.dtype) * (lse - total).exp()[..., None]
    mixed += other.to(lse.dtype) * (other_lse - total).exp()[..., None]
    return mixed.to(out.dtype), total


@dataclass(frozen=True)
class VarlenRows:
    """Rows of different lengths, laid end to end, in the queries and in the keys.

    Attributes:
        cu_seqlens_q, cu_seqlens_k: int32 [rows + 1] on the device, the start of each row and the end of the last.
        max_seqlen_q, max_seqlen_k: the length of the longest row.
    """

    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int

    @staticmethod
    def of(queries: Sequence[int], keys: Sequence[int], device: torch.device | str) -> VarlenRows:
        """Return rows with these numbers of queries and keys."""

        def starts(lengths: Sequence[int]) -> Tensor:
            return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)

        return VarlenRows(starts(queries), starts(keys), max(queries), max(keys))


def varlen_forward(
    q_THD: Tensor, k_CKD: Tensor, v_CKD: Tensor, rows: VarlenRows, *, causal: bool, window: int | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Return (output [T, H, D] in q's dtype, log-sum-exp of the scaled logits [H, T] in float32 or float64).

    Args:
        causal: query i of a row sees the row's keys 0 to i, and the row must have as many keys as queries. Otherwise
            a query sees all keys of its row.
        window: a query sees only the last `window` of those keys; None: no limit. Needs `causal`.
    """
    outs, lses = [], []
    for own, keys, seen in _cut(rows, causal, window):
        out, lse = dense_forward(_by_head(q_THD[own]), _by_head(k_CKD[keys]), _by_head(v_CKD[keys]), seen, False, scale)
        outs.append(out[0].transpose(0, 1))
        lses.append(lse[0])
    return torch.cat(outs), torch.cat(lses, 1)


def varlen_backward(
    grad_THD: Tensor,
    q_THD: Tensor,
    k_CKD: Tensor,
    v_CKD: Tensor,
    out_THD: Tensor,
    lse_HT: Tensor,
    rows: VarlenRows,
    *,
    causal: bool,
    window: int | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v. Output and log-sum-exp are as in `dense_backward`."""
    parts = []
    for own, keys, seen in _cut(rows, causal, window):
        grad, q, out = (_by_head(x[own]) for x in (grad_THD, q_THD, out_THD))
        k, v = _by_head(k_CKD[keys]), _by_head(v_CKD[keys])
        grads = dense_backward(grad, q, k, v, out, lse_HT[None, :, own], seen, False, scale)
        parts.append([part[0].transpose(0, 1) for part in grads])
    dq, dk, dv = (torch.cat(part) for part in zip(*parts, strict=True))
    return dq, dk, dv


@dataclass(frozen=True)
class Paths:
    """A forest of segments with their paths. All tensors are int64 on the CPU."""

    ranges_M2: Tensor
    """The ranges (start, end) of each segment's path, path after path. The last one of a path is the segment's own."""
    starts_N: Tensor
    """The index in `ranges_M2` of each path's first range, and at the end the number of ranges."""
    chunks_C3: Tensor
    """The stretches of segments that the kernel processes one at a time: (segment, first token, end)."""
    tokens: int
    """Number of tokens of all segments, which lie end to end."""

    @staticmethod
    def of(
        ranges: Sequence[tuple[int, int]], ancestors: Sequence[Sequence[tuple[int, int]]], tokens_per_chunk: int
    ) -> Paths:
        """Return the paths of segments, given the ranges before each on its path (`ossia.model.batch.Segments`)."""
        paths = [[*before, own] for own, before in zip(ranges, ancestors, strict=True)]
        chunks = [
            (number, first, min(first + tokens_per_chunk, end))
            for number, (start, end) in enumerate(ranges)
            for first in range(start, end, tokens_per_chunk)
        ]
        return Paths(
            _int64([place for path in paths for place in path]).reshape(-1, 2),
            _int64([0, *itertools.accumulate(map(len, paths))]),
            _int64(chunks).reshape(-1, 3),
            ranges[-1][1] if ranges else 0,
        )


def _chunks(q_BHQD: Tensor, k_BKCD: Tensor) -> list[slice]:
    B, H, Q, _ = q_BHQD.shape
    step = max(1, CHUNK_SCORES // (B * H * k_BKCD.shape[2]))
    return [slice(start, min(start + step, Q)) for start in range(0, Q, step)]


def _visible(seen: Tensor | None, causal: bool, part: slice, q_BHQD: Tensor, k_BKCD: Tensor) -> Tensor | None:
    if causal:
        queries = torch.arange(part.start, part.stop, device=q_BHQD.device)
        return queries[:, None] >= torch.arange(k_BKCD.shape[2], device=q_BHQD.device)
    return None if seen is None else seen[:, :, part]


def _logits(q_BHQD: Tensor, k_BKCD: Tensor, seen: Tensor | None, scale: float) -> Tensor:
    """Return scaled logits [B, H, Q, C] in float32 or wider, -inf where a key is not seen."""
    logits = _ungrouped(_grouped(q_BHQD, k_BKCD) @ k_BKCD.transpose(-1, -2), q_BHQD.shape[1])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * scale
    return logits if seen is None else logits.masked_fill(~seen, -torch.inf)


def _grouped(x_BHQN: Tensor, like_BKCD: Tensor) -> Tensor:
    """Return [B, H, Q, N] as [B, K, H / K * Q, N]: one product for the query heads that share a key head."""
    B, _, _, N = x_BHQN.shape
    return x_BHQN.reshape(B, like_BKCD.shape[1], -1, N)


def _ungrouped(x: Tensor, heads: int) -> Tensor:
    return x.reshape(x.shape[0], heads, -1, x.shape[-1])


def _cut(rows: VarlenRows, causal: bool, window: int | None) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """Yield each row's queries, its keys, and the mask of seen keys, bool [1, 1, Q, C] or None for all."""
    starts = (rows.cu_seqlens_q.tolist(), rows.cu_seqlens_k.tolist())
    for own, keys in zip(*(itertools.starmap(slice, itertools.pairwise(x)) for x in starts), strict=True):
        seen = None
        if causal:
            places_Q, places_C = (torch.arange(part.stop - part.start) for part in (own, keys))
            distance_QC = places_Q[:, None] - places_C
            in_window = distance_QC < (window or len(places_C))
            seen = ((distance_QC >= 0) & in_window).to(rows.cu_seqlens_q.device)[None, None]
        yield own, keys, seen


def _by_head(x_QHD: Tensor) -> Tensor:
    """Return [Q, H, D] as [1, H, Q, D]."""
    return x_QHD.transpose(0, 1)[None]


def _int64(values: list[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device="cpu")
