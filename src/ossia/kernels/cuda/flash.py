"""Attention of many rows of different lengths at once, by the flash kernels that come with torch for CUDA.

`aten::_flash_attention_forward` and `_backward` (FlashAttention-2, Dao 2023) take rows laid end to end, a causal or
windowed mask, and fewer key heads than query heads. They return the log-sum-exp, and the backward pass takes it as an
argument. Sinks and further keys can therefore be folded into it, as in `ossia.kernels.reference.attention`, the
reference. The operators need compute capability 8.0 and bfloat16 or float16.

These operators are not part of torch's public interface. They are therefore compared with the reference on a small
problem before their first use with a device, dtype and head size. If they fail or differ by more than rounding, they
are not used, and a warning gives the reason.

A causal or windowed row has as many queries as keys, so a kernel's alignment of the two does not matter.

Shapes: T queries of all rows, C keys of all rows, H query heads, K key/value heads, D head size, N rows.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ossia.kernels.reference import attention
from ossia.kernels.reference.attention import VarlenRows

DTYPES = (torch.bfloat16, torch.float16)
LARGEST_HEAD = 256
ROUNDINGS = 3
"""Largest relative error, in units of the dtype's epsilon, that counts as rounding."""

_FORWARD = torch.ops.aten._flash_attention_forward
_BACKWARD = torch.ops.aten._flash_attention_backward
_DEVICES = ("cuda",)


def varlen_forward(
    q_THD: Tensor, k_CKD: Tensor, v_CKD: Tensor, rows: VarlenRows, *, causal: bool, window: int | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the results of `reference.attention.varlen_forward`; the log-sum-exp is float32."""
    out_THD, lse_HT, *_ = _FORWARD(
        q_THD, k_CKD, v_CKD, *_lengths(rows), 0.0, causal and window is None, False, scale=scale,
        **_window(causal, window),
    )  # fmt: skip
    return out_THD, lse_HT


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
    """Return the results of `reference.attention.varlen_backward`."""
    state = torch.zeros(2, dtype=torch.uint64, device=q_THD.device)  # the random state of dropout, which is unused
    unused = torch.empty(0, device=q_THD.device)
    return _BACKWARD(  # type: ignore[no-any-return]
        grad_THD.contiguous(), q_THD, k_CKD, v_CKD, out_THD.contiguous(), lse_HT.contiguous(),
        *_lengths(rows), 0.0, causal and window is None, state, unused, scale=scale, **_window(causal, window),
    )  # fmt: skip


def serves(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Return whether these kernels can be used. The first call for a device, dtype and head size tests them."""
    if device.type not in _DEVICES or dtype not in DTYPES or head_dim % 8 or head_dim > LARGEST_HEAD:
        return False
    return _verdict(device, dtype, head_dim) is None


@functools.lru_cache(maxsize=64)
def _verdict(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Return the problem with the kernels on this device, or None. Warns once if there is one."""
    try:
        with torch.no_grad():
            problem = next(_differences(device, dtype, head_dim), None)
    except torch.OutOfMemoryError:
        raise  # not a problem of the kernels
    except Exception as error:
        problem = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    if problem is not None:
        name = str(dtype).removeprefix("torch.")
        warnings.warn(
            f"attention on {device} in {name} takes the plain form, which is slower: torch's flash kernels cannot "
            f"be used here ({problem})",
            RuntimeWarning,
            stacklevel=4,
        )
    return problem


def _lengths(rows: VarlenRows) -> tuple[Tensor, Tensor, int, int]:
    return rows.cu_seqlens_q, rows.cu_seqlens_k, rows.max_seqlen_q, rows.max_seqlen_k


def _window(causal: bool, window: int | None) -> dict[str, int]:
    """Return the operators' window arguments; none for no limit.

    The kernel counts the keys to the left of a query's own key. Zero keys to its right make a row causal. As in
    torch.nn.attention.varlen, a window replaces the causal flag.
    """
    assert causal or window is None, "a window is for causal rows"
    return {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}


def _differences(device: torch.device, dtype: torch.dtype, head_dim: int) -> Iterator[str]:
    """Yield the differences from the reference in float32, forward and backward, with a sink in the log-sum-exp."""
    generator = torch.Generator().manual_seed(0)
    H, K, scale, window = 4, 2, head_dim**-0.5, 16
    lengths, others = (5, 70, 1, 33), (9, 3, 40, 21)
    for name, keys, causal, limit in (
        ("causal", lengths, True, None),
        ("windowed", lengths, True, window),
        ("all keys", others, False, None),
    ):
        T, C = sum(lengths), sum(keys)
        sizes = ((T, H), (C, K), (C, K), (T, H))
        q, k, v, grad = (torch.randn(*n, head_dim, generator=generator).to(device, dtype) for n in sizes)
        sinks_H = torch.randn(H, generator=generator).to(device)
        rows = VarlenRows.of(lengths, keys, device)
        how: dict[str, Any] = {"causal": causal, "window": limit, "scale": scale}
        out, lse = varlen_forward(q, k, v, rows, **how)
        wide_q, wide_k, wide_v = q.float(), k.float(), v.float()
        true_out, true_lse = attention.varlen_forward(wide_q, wide_k, wide_v, rows, **how)
        total = torch.logaddexp(true_lse, sinks_H[:, None])
        whole = true_out * (true_lse - total).exp().T[..., None]
        grads = varlen_backward(grad, q, k, v, whole.to(dtype), total, rows, **how)
        true_grads = attention.varlen_backward(grad.float(), wide_q, wide_k, wide_v, whole, total, rows, **how)
        found, truth = (out, lse.exp(), *grads), (true_out, true_lse.exp(), *true_grads)
        for what, mine, true in zip(("output", "log-sum-exp", "dq", "dk", "dv"), found, truth, strict=True):
            error = float((mine.float() - true.float()).norm() / true.float().norm())
            if mine.shape != true.shape or not error <= ROUNDINGS * torch.finfo(dtype).eps:
                yield f"{what} of {name} rows is off by {error:.1%}"
