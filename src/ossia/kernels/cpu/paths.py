"""Attention of a whole flat batch along its paths, in one call of the C library (native/attend.c).

For bfloat16 with heads of 64 (gpt-oss) on processors with AVX-512 BF16. No mask is made and no key is copied for a
branch, so a prefix tree costs what its paths cost. Everything else goes through `ossia.model.attention`'s other forms,
which are the truth for this one.

Shapes: T tokens, H query heads, K key/value heads, D head size (64), P parts of a sum.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from ossia.kernels.cpu.library import Attention, native

HEAD = 64
MOST_PARTS = 4
"""Sums of keys' gradients that are made at a time, each as large as the keys in float32."""


@dataclass(frozen=True)
class Paths:
    """A forest of segments, as the library takes it. All int64, on the CPU."""

    ranges_M2: Tensor
    """The ranges of each segment's path, one path after the other; a segment's own range is the last of its path."""
    starts_N: Tensor
    """Where in `ranges_M2` each path begins, and at the end their number."""
    chunks_C3: Tensor
    """Stretches of segments that go through the kernel at a time: (segment, first token, end)."""
    tokens: int
    """Of all segments, which lie end to end."""

    @staticmethod
    def of(
        ranges: Sequence[tuple[int, int]], ancestors: Sequence[Sequence[tuple[int, int]]], tokens_per_chunk: int
    ) -> Paths:
        """From segments and the ranges before each of them on its path (`ossia.model.batch.Segments`)."""
        paths = [[*before, own] for own, before in zip(ranges, ancestors, strict=True)]
        chunks = [
            (number, first, min(first + tokens_per_chunk, end))
            for number, (start, end) in enumerate(ranges)
            for first in range(start, end, tokens_per_chunk)
        ]
        return Paths(
            _int64([place for path in paths for place in path]).reshape(-1, 2),
            _int64([0, *accumulate(map(len, paths))]),
            _int64(chunks).reshape(-1, 3),
            ranges[-1][1] if ranges else 0,
        )


def _int64(values: list[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device="cpu")


def serves(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the kernel can run here."""
    return device.type == "cpu" and dtype == torch.bfloat16 and head_dim == HEAD and native().attention_rows > 0


def tokens_per_chunk(q_HTD: Tensor, k_KTD: Tensor) -> int:
    """How many tokens the kernel takes at a time; 0 where it does not serve (or there are too many heads to a key)."""
    if not serves(q_HTD.device, q_HTD.dtype, q_HTD.shape[-1]) or q_HTD.shape[0] % k_KTD.shape[0]:
        return 0
    return native().attention_rows * k_KTD.shape[0] // q_HTD.shape[0]


def forward(
    q_HTD: Tensor, k_KTD: Tensor, v_KTD: Tensor, sinks_H: Tensor, paths: Paths, window: int | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Return (output [T, H, D], log-sum-exp with the sink [H, T] in float32). No two axes need be in any order.

    Raises:
        MemoryError: there is none for the threads' scratch space.
    """
    _check(q_HTD, k_KTD, v_KTD, paths)
    (H, T, D), q, k, v = q_HTD.shape, *map(_by_rows, (q_HTD, k_KTD, v_KTD))
    assert sinks_H.shape == (H,), sinks_H.shape
    sinks = sinks_H.float().contiguous()
    out_THD, lse_HT = q.new_empty(T, H, D), q.new_empty(H, T, dtype=torch.float32)
    given = _arguments(q, k, v, paths, window, scale)
    given.sinks, given.out, given.lse = sinks.data_ptr(), out_THD.data_ptr(), lse_HT.data_ptr()
    _call("ossia_attention_forward", given)
    return out_THD, lse_HT


def backward(
    grad_HTD: Tensor,
    q_HTD: Tensor,
    k_KTD: Tensor,
    v_KTD: Tensor,
    out_HTD: Tensor,
    lse_HT: Tensor,
    paths: Paths,
    window: int | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v from what `forward` returned.

    Raises:
        MemoryError: as `forward`.
    """
    _check(q_HTD, k_KTD, v_KTD, paths)
    grad, q, k, v, out = map(_by_rows, (grad_HTD, q_HTD, k_KTD, v_KTD, out_HTD))
    assert grad.shape == out.shape == q.shape and grad.dtype == out.dtype == q.dtype, (grad.shape, out.shape)
    lse_HT = lse_HT.contiguous()
    dq_HTD = q.new_empty(q.shape)
    # One thread sums a key head's gradients, so more threads than those need sums of their own.
    parts = max(1, min(-(-torch.get_num_threads() // len(k)), MOST_PARTS, len(paths.chunks_C3)))
    dk_PKTD, dv_PKTD = (k.new_zeros(parts, *k.shape, dtype=torch.float32) for _ in range(2))
    given = _arguments(q, k, v, paths, window, scale)
    given.parts = parts
    for name, rows in (("g", grad), ("o", out), ("dq", dq_HTD)):
        _strides(given, name, rows)
    given.grad, given.out_given, given.lse = grad.data_ptr(), out.data_ptr(), lse_HT.data_ptr()
    given.dq, given.dk, given.dv = dq_HTD.data_ptr(), dk_PKTD.data_ptr(), dv_PKTD.data_ptr()
    _call("ossia_attention_backward", given)
    dk_KTD, dv_KTD = (x[0] if parts == 1 else x.sum(0) for x in (dk_PKTD, dv_PKTD))
    return dq_HTD, dk_KTD.to(k.dtype), dv_KTD.to(v.dtype)


def _arguments(q: Tensor, k: Tensor, v: Tensor, paths: Paths, window: int | None, scale: float) -> Attention:
    given = Attention(q=q.data_ptr(), k=k.data_ptr(), v=v.data_ptr(), window=window or 0, scale=scale)
    given.heads, given.tokens, given.key_heads = q.shape[0], q.shape[1], k.shape[0]
    given.ranges, given.paths = paths.ranges_M2.data_ptr(), paths.starts_N.data_ptr()
    given.chunks, given.chunk_count = paths.chunks_C3.data_ptr(), len(paths.chunks_C3)
    for name, rows in (("q", q), ("k", k), ("v", v)):
        _strides(given, name, rows)
    return given


def _check(q: Tensor, k: Tensor, v: Tensor, paths: Paths) -> None:
    """C believes what it is told."""
    (H, T, D), K = q.shape, len(k)
    assert k.shape == v.shape == (K, T, D) and D == HEAD and H % K == 0, (q.shape, k.shape, v.shape)
    assert q.dtype == k.dtype == v.dtype == torch.bfloat16, (q.dtype, k.dtype, v.dtype)
    assert paths.tokens == T, (paths.tokens, T)


def _strides(given: Attention, name: str, rows: Tensor) -> None:
    setattr(given, f"{name}_head", rows.stride(0))
    setattr(given, f"{name}_token", rows.stride(1))


def _by_rows(x_HTD: Tensor) -> Tensor:
    """With the last axis in one piece."""
    return x_HTD if x_HTD.stride(2) == 1 else x_HTD.contiguous()


def _call(name: str, given: Attention) -> None:
    library = native().library
    assert library is not None, "see tokens_per_chunk"
    if getattr(library, name)(ctypes.byref(given)):
        raise MemoryError("no memory for the attention kernel's scratch space")
