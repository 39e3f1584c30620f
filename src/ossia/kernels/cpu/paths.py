"""Attention of a whole flat batch along its paths, in one call of the C library (native/paths.c).

It supports bfloat16 with heads of 64 (gpt-oss) on processors with AVX-512 BF16. No mask is made and no key is copied
for a branch, so the cost of a prefix tree is the cost of its paths. The reference is the dense form in
`ossia.model.attention`.

Shapes: T tokens, H query heads, K key/value heads, D head size (64), P parts of a sum.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ossia.kernels.cpu.library import PathsArguments, loaded, native
from ossia.kernels.reference.attention import Paths

HEAD_DIM = 64
MOST_PARTS = 4
"""Largest number of partial sums of the keys' gradients. Each is as large as the keys in float32."""


def serves(device: torch.device, dtype: torch.dtype, head_dim: int, group: int) -> bool:
    """Return whether the kernel supports these inputs on this device; `group` query heads share a key head."""
    return device.type == "cpu" and dtype == torch.bfloat16 and head_dim == HEAD_DIM and tokens_per_chunk(group) > 0


def tokens_per_chunk(group: int) -> int:
    """Return how many tokens the kernel takes at a time if `group` query heads share a key head; 0: it cannot run."""
    return native().paths_rows // group


def paths_forward(
    q_HTD: Tensor, k_KTD: Tensor, v_KTD: Tensor, sinks_H: Tensor, paths: Paths, window: int | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Return (output [T, H, D], log-sum-exp with the sink [H, T] in float32). Inputs may have any strides.

    Raises:
        MemoryError: there is not enough memory for the threads' scratch space.
    """
    _check(q_HTD, k_KTD, v_KTD, paths)
    (H, T, D), q, k, v = q_HTD.shape, *map(_by_rows, (q_HTD, k_KTD, v_KTD))
    assert sinks_H.shape == (H,), sinks_H.shape
    sinks = sinks_H.float().contiguous()
    out_THD, lse_HT = q.new_empty(T, H, D), q.new_empty(H, T, dtype=torch.float32)
    given = _arguments(q, k, v, paths, window, scale)
    given.sinks, given.out, given.lse = sinks.data_ptr(), out_THD.data_ptr(), lse_HT.data_ptr()
    _call("ossia_paths_forward", given)
    return out_THD, lse_HT


def paths_backward(
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
    """Return the gradients of q, k and v, given the results of `paths_forward`.

    Raises:
        MemoryError: as in `paths_forward`.
    """
    _check(q_HTD, k_KTD, v_KTD, paths)
    grad, q, k, v, out = map(_by_rows, (grad_HTD, q_HTD, k_KTD, v_KTD, out_HTD))
    assert grad.shape == out.shape == q.shape and grad.dtype == out.dtype == q.dtype, (grad.shape, out.shape)
    lse_HT = lse_HT.contiguous()
    dq_HTD = q.new_empty(q.shape)
    # One thread sums the gradients of a key head. If there are more threads than key heads, they need separate sums.
    parts = max(1, min(-(-torch.get_num_threads() // len(k)), MOST_PARTS, len(paths.chunks_C3)))
    dk_PKTD, dv_PKTD = (k.new_zeros(parts, *k.shape, dtype=torch.float32) for _ in range(2))
    given = _arguments(q, k, v, paths, window, scale)
    given.parts = parts
    for name, rows in (("g", grad), ("o", out), ("dq", dq_HTD)):
        _strides(given, name, rows)
    given.grad, given.out_given, given.lse = grad.data_ptr(), out.data_ptr(), lse_HT.data_ptr()
    given.dq, given.dk, given.dv = dq_HTD.data_ptr(), dk_PKTD.data_ptr(), dv_PKTD.data_ptr()
    _call("ossia_paths_backward", given)
    dk_KTD, dv_KTD = (x[0] if parts == 1 else x.sum(0) for x in (dk_PKTD, dv_PKTD))
    return dq_HTD, dk_KTD.to(k.dtype), dv_KTD.to(v.dtype)


def _arguments(q: Tensor, k: Tensor, v: Tensor, paths: Paths, window: int | None, scale: float) -> PathsArguments:
    given = PathsArguments(q=q.data_ptr(), k=k.data_ptr(), v=v.data_ptr(), window=window or 0, scale=scale)
    given.heads, given.tokens, given.key_heads = q.shape[0], q.shape[1], k.shape[0]
    given.ranges, given.paths = paths.ranges_M2.data_ptr(), paths.starts_N.data_ptr()
    given.chunks, given.chunk_count = paths.chunks_C3.data_ptr(), len(paths.chunks_C3)
    for name, rows in (("q", q), ("k", k), ("v", v)):
        _strides(given, name, rows)
    return given


def _check(q: Tensor, k: Tensor, v: Tensor, paths: Paths) -> None:
    """Check shapes and dtypes, because the C code does not."""
    (H, T, D), K = q.shape, len(k)
    assert k.shape == v.shape == (K, T, D) and D == HEAD_DIM and H % K == 0, (q.shape, k.shape, v.shape)
    assert q.dtype == k.dtype == v.dtype == torch.bfloat16, (q.dtype, k.dtype, v.dtype)
    assert paths.tokens == T, (paths.tokens, T)


def _strides(given: PathsArguments, name: str, rows: Tensor) -> None:
    setattr(given, f"{name}_head", rows.stride(0))
    setattr(given, f"{name}_token", rows.stride(1))


def _by_rows(x_HTD: Tensor) -> Tensor:
    """Return x with a contiguous last axis."""
    return x_HTD if x_HTD.stride(2) == 1 else x_HTD.contiguous()


def _call(name: str, given: PathsArguments) -> None:
    if getattr(loaded(), name)(ctypes.byref(given)):
        raise MemoryError("no memory for the attention kernel's scratch space")
