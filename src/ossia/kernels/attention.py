"""Attention in two steps that can be put together: output and log-sum-exp, and the gradients from those.

Both steps know nothing of sinks. A sink, or a second set of keys, only changes the log-sum-exp that the output is
normalised by; given the output and the log-sum-exp *after* that change, the ordinary backward pass gives the right
gradients, because it makes the probabilities as exp(logit - lse) and never asks what the denominator consisted of. So
stock fused kernels serve an attention that they were not made for.

On CPUs this is torch's own flash kernel (`ossia.kernels.cpu.attention`); elsewhere, and as the truth, plain torch over
chunks of queries. GPUs have kernels for whole batches of rows in `ossia.kernels.cuda.flash`, which is asked first.

Shapes: B rows, H query heads, K key/value heads (H a multiple of K), Q queries, C keys, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ossia.kernels.cpu import attention as cpu_attention

CHUNK_SCORES = 1 << 24
"""Attention scores that the plain form holds at a time (64 MB in float32)."""


def forward(
    q_BHQD: Tensor, k_BKCD: Tensor, v_BKCD: Tensor, seen: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Return (output [B, H, Q, D] in q's type, log-sum-exp of the scaled logits [B, H, Q] in float32 or float64).

    Args:
        seen: bool, [B or 1, 1, Q, C]: which keys a query sees; None: all. A query that sees none gives NaN.
        causal: query i sees keys 0 to i; then Q equals C and `seen` is None.
    """
    if q_BHQD.device.type == "cpu":
        return cpu_attention.forward(q_BHQD, k_BKCD, v_BKCD, seen, causal, scale)
    return plain_forward(q_BHQD, k_BKCD, v_BKCD, seen, causal, scale)


def backward(
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
    """Return the gradients of q, k and v. `out_BHQD` and `lse_BHQ` are those of the whole attention (see above)."""
    if q_BHQD.device.type == "cpu":
        return cpu_attention.backward(grad_BHQD, q_BHQD, k_BKCD, v_BKCD, out_BHQD, lse_BHQ, seen, causal, scale)
    return plain_backward(grad_BHQD, q_BHQD, k_BKCD, v_BKCD, out_BHQD, lse_BHQ, seen, causal, scale)


def plain_forward(
    q_BHQD: Tensor, k_BKCD: Tensor, v_BKCD: Tensor, seen: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """`forward` in plain torch."""
    kind = torch.promote_types(q_BHQD.dtype, torch.float32)
    out_BHQD = torch.empty_like(q_BHQD, memory_format=torch.contiguous_format)
    lse_BHQ = q_BHQD.new_empty(q_BHQD.shape[:3], dtype=kind)
    for part in _chunks(q_BHQD, k_BKCD):
        logits = _logits(q_BHQD[:, :, part], k_BKCD, _visible(seen, causal, part, q_BHQD, k_BKCD), scale)
        lse_BHQ[:, :, part] = logits.logsumexp(-1)
        weights = (logits - lse_BHQ[:, :, part, None]).exp().to(v_BKCD.dtype)
        out_BHQD[:, :, part] = _ungrouped(_grouped(weights, v_BKCD) @ v_BKCD, q_BHQD.shape[1])
    return out_BHQD, lse_BHQ


def plain_backward(
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
    """`backward` in plain torch: Dao et al. 2022, FlashAttention, appendix B.4."""
    kind = lse_BHQ.dtype
    dq_BHQD = torch.empty_like(q_BHQD, memory_format=torch.contiguous_format)
    dk_BKCD, dv_BKCD = torch.zeros_like(k_BKCD, dtype=kind), torch.zeros_like(v_BKCD, dtype=kind)
    for part in _chunks(q_BHQD, k_BKCD):
        q, grad = q_BHQD[:, :, part], grad_BHQD[:, :, part]
        logits = _logits(q, k_BKCD, _visible(seen, causal, part, q_BHQD, k_BKCD), scale)
        weights = (logits - lse_BHQ[:, :, part, None]).exp()
        grad_g = _grouped(grad, v_BKCD)
        dv_BKCD += (_grouped(weights, v_BKCD).to(grad.dtype).transpose(-1, -2) @ grad_g).to(kind)
        change = _ungrouped(grad_g @ v_BKCD.transpose(-1, -2), q.shape[1]).to(kind)
        change -= (grad.to(kind) * out_BHQD[:, :, part].to(kind)).sum(-1, keepdim=True)
        slope = _grouped((weights * change * scale).to(q.dtype), k_BKCD)
        dq_BHQD[:, :, part] = _ungrouped(slope @ k_BKCD, q.shape[1])
        dk_BKCD += (slope.transpose(-1, -2) @ _grouped(q, k_BKCD)).to(kind)
    return dq_BHQD, dk_BKCD.to(k_BKCD.dtype), dv_BKCD.to(v_BKCD.dtype)


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
    """Scaled logits [B, H, Q, C] in float32 or wider, -inf where a key is not seen."""
    logits = _ungrouped(_grouped(q_BHQD, k_BKCD) @ k_BKCD.transpose(-1, -2), q_BHQD.shape[1])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * scale
    return logits if seen is None else logits.masked_fill(~seen, -torch.inf)


def _grouped(x_BHQN: Tensor, like_BKCD: Tensor) -> Tensor:
    """[B, H, Q, N] -> [B, K, H / K * Q, N]: the query heads that share a key head, in one product."""
    B, _, _, N = x_BHQN.shape
    return x_BHQN.reshape(B, like_BKCD.shape[1], -1, N)


def _ungrouped(x: Tensor, heads: int) -> Tensor:
    return x.reshape(x.shape[0], heads, -1, x.shape[-1])
