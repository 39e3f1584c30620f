"""Stand-ins for torch's CUDA flash operators. With them, the code around the operators runs on a CPU.

They have the arguments and results of `aten::_flash_attention_forward` and `_backward`. Every call is checked against
the registered schema. They use one dense float matrix per row and autograd, and no code of Ossia.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SCHEMAS = {
    "forward": torch.ops.aten._flash_attention_forward.default._schema,
    "backward": torch.ops.aten._flash_attention_backward.default._schema,
}


def bound(which: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the call's arguments by name. Assert that they fit the operator's schema."""
    arguments = SCHEMAS[which].arguments
    positional = [argument.name for argument in arguments if not argument.kwarg_only]
    assert len(args) <= len(positional), f"{len(args)} positional arguments, {which} takes {len(positional)}"
    named = dict(zip(positional, args, strict=False))
    for name in kwargs:
        assert name in {argument.name for argument in arguments}, f"{which} has no argument {name}"
        assert name not in named, f"{name} is given twice"
    named |= kwargs
    missing = [a.name for a in arguments if a.name not in named and not a.has_default_value()]
    assert not missing, f"{which} lacks {missing}"
    return named


class Flash:
    """Both operators. `wrong` names a mistake that a kernel could make (see `_heads`, `_logits` and `backward`)."""

    def __init__(self, wrong: str = "") -> None:
        self.wrong = wrong
        self.calls: list[dict[str, Any]] = []

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        call = bound("forward", args, kwargs)
        self._check(call)
        q, k, v = call["query"], call["key"], call["value"]
        out, lse = torch.empty_like(q), q.new_empty(q.shape[1], len(q), dtype=_wide(q))
        for rows, keys in self._rows(call):
            logits = self._logits(call, q[rows], k[keys])
            lse[:, rows] = logits.logsumexp(-1)
            out[rows] = torch.einsum("hqc,chd->qhd", logits.softmax(-1), self._heads(v[keys], q)).to(q.dtype)
        nothing = torch.empty(0)
        return out, lse, torch.zeros(2, dtype=torch.uint64), torch.empty((), dtype=torch.uint64), nothing

    def backward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
        call = bound("backward", args, kwargs)
        self._check(call)
        q, k, v, out, grad = (call[name] for name in ("query", "key", "value", "out", "grad_out"))
        assert out.is_contiguous() and grad.is_contiguous() and call["logsumexp"].is_contiguous()
        assert call["logsumexp"].shape == (q.shape[1], len(q)) and call["logsumexp"].dtype == _wide(q)
        dq, dk, dv = (torch.zeros_like(x, dtype=_wide(x)) for x in (q, k, v))
        for rows, keys in self._rows(call):
            with torch.enable_grad():
                parts = [x.detach().to(_wide(x)).requires_grad_() for x in (q[rows], k[keys], v[keys])]
                logits = self._logits(call, *parts[:2])
                lse = logits.logsumexp(-1) if self.wrong == "own lse" else call["logsumexp"][:, rows]
                # Like a flash kernel: exp(logit - lse) with a fixed lse, and its derivative p (dp - out . grad).
                weights = (logits - lse.detach()[..., None]).exp()
                g = grad[rows].to(_wide(grad))
                delta = (out[rows].to(g.dtype) * g).sum(-1).T[..., None]
                values = torch.einsum("hqc,chd->qhd", weights, self._heads(parts[2], q))
                loss = (values * g).sum() - (weights * delta).sum()
                for into, where, part in zip((dq, dk, dv), (rows, keys, keys), parts, strict=True):
                    into[where] += torch.autograd.grad(loss, part, retain_graph=True)[0]
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)

    def _check(self, call: dict[str, Any]) -> None:
        self.calls.append(call)
        q, k = call["query"], call["key"]
        assert q.dim() == k.dim() == 3 and q.stride(-1) == k.stride(-1) == 1
        assert q.shape[1] % k.shape[1] == 0 and k.shape == call["value"].shape
        assert call["dropout_p"] == 0.0
        for side, tensor in (("q", q), ("k", k)):
            starts = call[f"cum_seq_{side}"]
            assert starts.dtype == torch.int32 and starts.is_contiguous()
            lengths = starts.diff()
            assert starts[0] == 0 and starts[-1] == len(tensor) and (lengths > 0).all()
            assert lengths.max() == call[f"max_{side}"]

    def _rows(self, call: dict[str, Any]) -> list[tuple[slice, slice]]:
        starts = [[int(x) for x in call[f"cum_seq_{side}"]] for side in "qk"]
        cuts = [list(map(slice, x[:-1], x[1:])) for x in starts]
        return list(zip(*cuts, strict=True))

    def _heads(self, x_CKD: Tensor, like: Tensor) -> Tensor:
        groups = like.shape[1] // x_CKD.shape[1]
        x = x_CKD.to(_wide(x_CKD))
        return x.repeat(1, groups, 1) if self.wrong == "heads" else x.repeat_interleave(groups, 1)

    def _logits(self, call: dict[str, Any], q: Tensor, k: Tensor) -> Tensor:
        logits = torch.einsum("qhd,chd->hqc", q.to(_wide(q)), self._heads(k, call["query"])) * call["scale"]
        left, right = call.get("window_size_left"), call.get("window_size_right")
        if not call["is_causal"] and left is None:
            return logits
        # FlashAttention-2 counts from the ends of queries and keys. The assertion requires equal lengths.
        assert len(q) == len(k), "how a kernel aligns rows of different lengths must not matter"
        distance = torch.arange(len(q))[:, None] - torch.arange(len(k))
        seen = distance >= -(right or 0)
        if left is not None and self.wrong != "no window":
            seen &= distance <= left + (self.wrong == "wide window") - (self.wrong == "narrow window")
        return logits.masked_fill(~seen, -torch.inf)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
