"""Attention over ranges, with learned sinks and a sliding window in position space.

One signature: query ranges, each with its key ranges (`batch.Segments`). The sink of a head is one more logit in the
softmax's denominator that carries no value (gpt-oss model card, 2025). The window of 128 means that a query sees keys
at distance 0..127 along its path, counted in positions, not in places of the flat batch.

Registered with transformers as the attention implementation "ossia". Where transformers brings its own masks and a KV
cache (generate), the same function takes those instead.

Shapes: B rows, H query heads, K key/value heads, T tokens, Q queries, C keys, D head size.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from ossia.model.batch import Segments

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
    """Return the attention output [T, H, D] of a flat batch.

    Segments with the same ancestors (all plain rows, all branches of one trunk) are padded to a common length and
    computed together, so that no T x T matrix is ever made.
    """
    groups: dict[tuple[tuple[int, int], ...], list[tuple[int, int]]] = defaultdict(list)
    for own, ancestors in zip(segments.ranges, segments.ancestors, strict=True):
        groups[ancestors].append(own)
    outputs, order = [], []
    for ancestors, members in groups.items():
        outputs.append(_group(q_HTD, k_KTD, v_KTD, sinks_H, members, ancestors, segments.positions_T, scale, window))
        order += [place for start, end in members for place in range(start, end)]
    out_THD = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    if order == list(range(len(order))):
        return out_THD
    return out_THD[torch.tensor(order, device=out_THD.device).argsort()]


def _group(
    q_HTD: Tensor,
    k_KTD: Tensor,
    v_KTD: Tensor,
    sinks_H: Tensor,
    members: list[tuple[int, int]],
    ancestors: tuple[tuple[int, int], ...],
    positions_T: Tensor,
    scale: float,
    window: int | None,
) -> Tensor:
    """Segments with the same ancestors: [sum of their lengths, H, D], one segment after the other."""
    device = q_HTD.device
    lengths_B = torch.tensor([end - start for start, end in members], device=device)
    starts_B = torch.tensor([start for start, _ in members], device=device)
    columns_Q = torch.arange(int(lengths_B.max()), device=device)
    # Padding repeats a segment's last token; causality hides it from every real query of the segment.
    places_BQ = torch.minimum(starts_B[:, None] + columns_Q, (starts_B + lengths_B - 1)[:, None])
    keys_BC, seen = places_BQ, _seen(columns_Q[:, None] - columns_Q, window)
    if ancestors:
        shared_A = torch.cat([torch.arange(start, end, device=device) for start, end in ancestors])
        distance_BQA = positions_T[places_BQ][:, :, None] - positions_T[shared_A]
        keys_BC = torch.cat([shared_A.expand(len(members), -1), places_BQ], dim=1)
        seen = torch.cat([_seen(distance_BQA, window), seen.expand(len(members), -1, -1)], dim=2)[:, None]
    q = q_HTD[:, places_BQ].transpose(0, 1)
    k, v = (x[:, keys_BC].transpose(0, 1) for x in (k_KTD, v_KTD))
    out_BQHD = _softmax_with_sinks(q, k, v, sinks_H, seen, scale).transpose(1, 2)
    rows_T = torch.repeat_interleave(torch.arange(len(members), device=device), lengths_B)
    return out_BQHD[rows_T, torch.cat([columns_Q[: end - start] for start, end in members])]


def _seen(distance_QC: Tensor, window: int | None) -> Tensor:
    seen_QC = distance_QC >= 0
    return seen_QC if window is None else seen_QC & (distance_QC < window)


def _softmax_with_sinks(
    q_BHQD: Tensor, k_BKCD: Tensor, v_BKCD: Tensor, sinks_H: Tensor, seen: Tensor, scale: float
) -> Tensor:
    """softmax([q k / sqrt(D), sink]) without the sink's column, times v. `seen` broadcasts to [B, 1, Q, C].

    The softmax is taken in float32 (float64 stays), the products in the inputs' type.
    """
    group = q_BHQD.shape[1] // k_BKCD.shape[1]
    B, H, Q, D = q_BHQD.shape
    q = (q_BHQD * scale).reshape(B, H // group, group * Q, D)  # the queries of a group share their keys in one product
    logits = (q @ k_BKCD.transpose(-1, -2)).reshape(B, H, Q, -1)
    kind = torch.promote_types(logits.dtype, torch.float32)
    logits = logits.to(kind).masked_fill(~seen, -torch.inf)
    sinks = sinks_H.to(kind).reshape(1, -1, 1, 1)
    highest = torch.maximum(logits.detach().amax(-1, keepdim=True), sinks.detach())
    weights = (logits - highest).exp()
    weights = weights / (weights.sum(-1, keepdim=True) + (sinks - highest).exp())
    out = weights.to(v_BKCD.dtype).reshape(B, H // group, group * Q, -1) @ v_BKCD
    return out.reshape(B, H, Q, D)


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
    **_: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls in each layer: [1, H, T, D] in, [1, T, H, D] out.

    `attention_mask` is the pass's `Segments`, or the additive or boolean mask that transformers made for `generate`.
    """
    assert dropout == 0.0, "gpt-oss has no attention dropout"
    sinks_H = s_aux if s_aux is not None else module.sinks
    if isinstance(attention_mask, Segments):
        out_THD = attend(query[0], key[0], value[0], sinks_H, attention_mask, scale=scaling, window=sliding_window)
        return out_THD[None], None
    Q, C = query.shape[-2], key.shape[-2]
    if attention_mask is None:
        places = torch.arange(C, device=query.device)
        seen = _seen(places[C - Q :, None] - places, sliding_window)
    else:
        mask = attention_mask[..., :C]
        seen = mask if mask.dtype == torch.bool else mask == 0
    return _softmax_with_sinks(query, key, value, sinks_H, seen, scaling).transpose(1, 2), None


def register() -> None:
    """Tell transformers about the implementation; called when `ossia.model.modeling` is imported."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
