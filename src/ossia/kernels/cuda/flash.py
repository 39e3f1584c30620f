"""Attention of many rows of different lengths at once, by the flash kernels that come with torch for CUDA.

`aten::_flash_attention_forward` and `_backward` (FlashAttention-2, Dao 2023) take rows laid end to end, a causal or
windowed mask, and fewer key heads than query heads. They return the log-sum-exp, and the backward pass takes it as an
argument, so that sinks and further keys fold into it as in `ossia.kernels.attention`. They need compute capability 8.0
and bfloat16 or float16; anything else stays with the plain form.

These operators are not torch's public interface. So the first use on a device, in a type and head size, is compared
with the plain form on a small problem. If they fail or differ by more than rounding, the plain form is used, and a
warning says why.

A causal or windowed row has as many queries as keys, so it never matters how a kernel aligns the two.

Shapes: T queries of all rows, C keys of all rows, H query heads, K key/value heads, D head size, N rows.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ossia.kernels import attention

TYPES = (torch.bfloat16, torch.float16)
LARGEST_HEAD = 256
ROUNDINGS = 3
"""Relative error, in units of the type's epsilon, up to which a result differs by rounding only."""

_FORWARD = torch.ops.aten._flash_attention_forward
_BACKWARD = torch.ops.aten._flash_attention_backward
_DEVICES = ("cuda",)


@dataclass(frozen=True)
class Rows:
    """Where rows begin among queries and among keys, int32 [N + 1] on the device, and the longest of each."""

    queries: Tensor
    keys: Tensor
    longest_queries: int
    longest_keys: int

    @staticmethod
    def of(queries: Sequence[int], keys: Sequence[int], device: torch.device | str) -> Rows:
        """Rows of these lengths."""

        def starts(lengths: Sequence[int]) -> Tensor:
            return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)

        return Rows(starts(queries), starts(keys), max(queries), max(keys))


def forward(
    q_THD: Tensor, k_CKD: Tensor, v_CKD: Tensor, rows: Rows, *, causal: bool, window: int | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Return (output [T, H, D] in q's type, log-sum-exp of the scaled logits [H, T] in float32).

    Args:
        causal: query i of a row sees the row's keys 0 to i, of which it has as many as queries; else all of its keys.
        window: only the last so many of them. Needs `causal`.
    """
    out_THD, lse_HT, *_ = _FORWARD(
        q_THD, k_CKD, v_CKD, *_lengths(rows), 0.0, causal and window is None, False, scale=scale,
        **_window(causal, window),
    )  # fmt: skip
    return out_THD, lse_HT


def backward(
    grad_THD: Tensor,
    q_THD: Tensor,
    k_CKD: Tensor,
    v_CKD: Tensor,
    out_THD: Tensor,
    lse_HT: Tensor,
    rows: Rows,
    *,
    causal: bool,
    window: int | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v. Output and log-sum-exp are those of the whole attention."""
    state = torch.zeros(2, dtype=torch.uint64, device=q_THD.device)  # of random numbers; there is no dropout
    unused = torch.empty(0, device=q_THD.device)
    return _BACKWARD(  # type: ignore[no-any-return]
        grad_THD.contiguous(), q_THD, k_CKD, v_CKD, out_THD.contiguous(), lse_HT.contiguous(),
        *_lengths(rows), 0.0, causal and window is None, state, unused, scale=scale, **_window(causal, window),
    )  # fmt: skip


def usable(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether these kernels serve here. The first question for each device, type and head size tries them out."""
    if device.type not in _DEVICES or dtype not in TYPES or head_dim % 8 or head_dim > LARGEST_HEAD:
        return False
    return _verdict(device, dtype, head_dim) is None


@functools.lru_cache(maxsize=64)
def _verdict(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """What is wrong with the kernels here; None: nothing. Warns once."""
    try:
        with torch.no_grad():
            problem = next(_differences(device, dtype, head_dim), None)
    except torch.OutOfMemoryError:
        raise  # says nothing about the kernels
    except Exception as error:
        problem = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    if problem is not None:
        name = str(dtype).removeprefix("torch.")
        warnings.warn(
            f"attention on {device} in {name} takes the plain form, which is slower: torch's flash kernels do not "
            f"serve here ({problem})",
            RuntimeWarning,
            stacklevel=3,
        )
    return problem


def _lengths(rows: Rows) -> tuple[Tensor, Tensor, int, int]:
    return rows.queries, rows.keys, rows.longest_queries, rows.longest_keys


def _window(causal: bool, window: int | None) -> dict[str, int]:
    """The kernel counts the keys left of a query's own; none to its right makes it causal. No argument: no limit.

    As in torch.nn.attention.varlen, a window replaces the causal flag.
    """
    assert causal or window is None, "a window is for causal rows"
    return {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}


def _differences(device: torch.device, dtype: torch.dtype, head_dim: int) -> Iterator[str]:
    """Compare with the plain form in float32, with a sink in the log-sum-exp, forward and backward."""
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
        rows = Rows.of(lengths, keys, device)
        out, lse = forward(q, k, v, rows, causal=causal, window=limit, scale=scale)
        true_out, true_lse = _plain(q, k, v, lengths, keys, causal, limit, scale)
        total = torch.logaddexp(true_lse, sinks_H[:, None])
        share = (true_lse - total).exp().T[..., None]
        found = [out, lse.exp(), *backward(grad, q, k, v, (true_out * share).to(dtype), total, rows,
                                           causal=causal, window=limit, scale=scale)]  # fmt: skip
        truth = [true_out, true_lse.exp(), *_plain_backward(grad, q, k, v, true_out * share, total, lengths, keys,
                                                            causal, limit, scale)]  # fmt: skip
        for what, mine, true in zip(("output", "log-sum-exp", "dq", "dk", "dv"), found, truth, strict=True):
            error = float((mine.float() - true.float()).norm() / true.float().norm())
            if mine.shape != true.shape or not error <= ROUNDINGS * torch.finfo(dtype).eps:
                yield f"{what} of {name} rows is off by {error:.1%}"


def _plain(
    q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], keys: Sequence[int],
    causal: bool, window: int | None, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`forward` in float32 by the plain form, a row at a time."""
    outs, lses = [], []
    for own, seen in _cut(lengths, keys, causal, window, q.device):
        rows = (_row(q, own[0]), _row(k, own[1]), _row(v, own[1]))
        out, lse = attention.plain_forward(*rows, seen, False, scale)
        outs.append(out[0].transpose(0, 1))
        lses.append(lse[0])
    return torch.cat(outs), torch.cat(lses, 1)


def _plain_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    lengths: Sequence[int], keys: Sequence[int], causal: bool, window: int | None, scale: float,
) -> list[Tensor]:  # fmt: skip
    """`backward` in float32 by the plain form, a row at a time."""
    parts = []
    for own, seen in _cut(lengths, keys, causal, window, q.device):
        rows = (_row(grad, own[0]), _row(q, own[0]), _row(k, own[1]), _row(v, own[1]), _row(out, own[0]))
        grads = attention.plain_backward(*rows, lse[None, :, own[0]], seen, False, scale)
        parts.append([part[0].transpose(0, 1) for part in grads])
    return [torch.cat(part) for part in zip(*parts, strict=True)]


def _cut(
    lengths: Sequence[int], keys: Sequence[int], causal: bool, window: int | None, device: torch.device
) -> Iterator[tuple[tuple[slice, slice], Tensor | None]]:
    """Each row's queries and keys, and which of them see which, [1, 1, Q, C]."""
    at, key_at = 0, 0
    for length, count in zip(lengths, keys, strict=True):
        seen = None
        if causal:
            distance_QC = torch.arange(length)[:, None] - torch.arange(count)
            seen = ((distance_QC >= 0) & (distance_QC < (window or count))).to(device)[None, None]
        yield (slice(at, at + length), slice(key_at, key_at + count)), seen
        at, key_at = at + length, key_at + count


def _row(x_THD: Tensor, part: slice) -> Tensor:
    """[T, H, D] -> [1, H, Q, D] in float32."""
    return x_THD[part].transpose(0, 1)[None].float()
