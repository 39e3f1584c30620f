"""Cross-entropy from hidden states, computed in chunks, so that the logits of all rows never exist at once.

With a vocabulary of 201,088, the logits of 4,096 tokens take 3.3 GB in float32, and two or three times that with their
gradient. Here one chunk of supervised rows goes through the head at a time. The gradient of the hidden states is
computed in the same pass, so a chunk's logits are freed before the next chunk starts.

A LoRA update of the head (W + scale * B A) is added to each chunk's logits as scale * (h A^T) B^T. Its gradients are
computed in the same pass. The product of B and A is never formed.

Shapes: S supervised rows, D hidden size, V rows of the head, C rows of one chunk, R LoRA rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK_LOGITS = 1 << 25
"""Largest number of logits at a time (128 MB in float32)."""


class HeadUpdate(NamedTuple):
    """A LoRA update of the head: scale * b_VR a_RD."""

    a_RD: Tensor
    b_VR: Tensor
    scale: float


@dataclass(frozen=True)
class Head:
    """The output layer: weight_VD, and the number of vocabulary entries that share each row.

    A new model has thousands of equal vocabulary rows, for words that it never saw. Equal rows have equal logits, so n
    of them count in the softmax as one logit plus log n. `of` groups the rows that equal the last one. The loss over
    the full vocabulary stays exact, at the cost of the remaining rows.
    """

    weight_VD: Tensor
    log_count_V: Tensor | None = None
    """float32: log of the number of vocabulary entries of each row. None: every row has one."""
    row_of_token: Tensor | None = None
    """int64 [vocabulary]: the row of each token. None: the identity."""
    update: HeadUpdate | None = None
    """Only for a head whose rows are not grouped, because the update differs between equal rows."""

    @staticmethod
    def of(weight_VD: Tensor) -> Head:
        """Return the head with the rows that equal the last one grouped, if they are the majority.

        One column is compared first, because that is cheap.
        """
        if weight_VD.is_meta or weight_VD.requires_grad:
            return Head(weight_VD)
        same_V = weight_VD[:, 0] == weight_VD[-1, 0]
        if int(same_V.sum()) * 2 < len(same_V):
            return Head(weight_VD)
        candidates = same_V.nonzero()[:, 0]
        same_V[candidates] = (weight_VD[candidates] == weight_VD[-1]).all(1)
        shared = int(same_V.sum())
        if shared * 2 < len(same_V):
            return Head(weight_VD)
        own = (~same_V).nonzero()[:, 0]
        rows = torch.full_like(same_V, len(own), dtype=torch.int64)
        rows[own] = torch.arange(len(own), device=own.device)
        log_count = torch.zeros(len(own) + 1, device=own.device)
        log_count[-1] = torch.tensor(float(shared)).log()
        return Head(torch.cat([weight_VD[own], weight_VD[-1:]]), log_count, rows)


def linear_cross_entropy(hidden_SD: Tensor, head: Head, targets_S: Tensor, weights_S: Tensor) -> tuple[Tensor, Tensor]:
    """Return (sum of weight * -log p(target), -log p(target) of each row).

    Args:
        hidden_SD: inputs of the head, one row per supervised triple.
        targets_S: int64 token ids.
        weights_S: float32.

    Returns:
        The weighted sum as a scalar and the rows' negative log-likelihoods, detached. Both are float32, or float64 for
        float64 inputs. The sum is differentiable in the hidden states, the head's weight and its update.
    """
    assert head.update is None or head.row_of_token is None, "the rows of a head with an update cannot be grouped"
    rows_S = targets_S if head.row_of_token is None else head.row_of_token[targets_S]
    a_RD, b_VR, scale = head.update or (None, None, 0.0)
    return _LinearCrossEntropy.apply(hidden_SD, head.weight_VD, a_RD, b_VR, scale, rows_S, weights_S, head.log_count_V)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_SD: Tensor,
        weight_VD: Tensor,
        a_RD: Tensor | None,
        b_VR: Tensor | None,
        scale: float,
        rows_S: Tensor,
        weights_S: Tensor,
        log_count_V: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(hidden_SD.dtype, torch.float32)
        nll_S = torch.empty(len(rows_S), dtype=dtype, device=hidden_SD.device)
        update = None if a_RD is None or b_VR is None else HeadUpdate(a_RD.to(dtype), b_VR.to(dtype), scale)
        grads = _Gradients.of(ctx.needs_input_grad, hidden_SD, weight_VD, update)
        step = max(1, CHUNK_LOGITS // len(weight_VD))
        for start in range(0, len(rows_S), step):
            part = slice(start, start + step)
            h_CD, rows_C = hidden_SD[part], rows_S[part]
            logits_CV = (h_CD @ weight_VD.T).to(dtype)
            if update is not None:
                logits_CV.addmm_(h_CD.to(dtype) @ update.a_RD.T, update.b_VR.T, alpha=scale)
            if log_count_V is not None:
                logits_CV += log_count_V
            chosen_C = logits_CV.gather(1, rows_C[:, None])[:, 0]
            top_C = logits_CV.amax(-1)
            # In place, because memory traffic costs more here than the arithmetic.
            odds_CV = logits_CV.sub_(top_C[:, None]).exp_()
            sum_C = odds_CV.sum(-1)
            nll_S[part] = top_C + sum_C.log() - chosen_C + (0 if log_count_V is None else log_count_V[rows_C])
            if not any(ctx.needs_input_grad):
                continue
            grad_CV = odds_CV.mul_((weights_S[part] / sum_C)[:, None])
            grad_CV[torch.arange(len(rows_C), device=rows_C.device), rows_C] -= weights_S[part].to(dtype)
            grads.add(part, h_CD, grad_CV, weight_VD, update)
        ctx.save_for_backward(grads.hidden_SD, grads.weight_VD, grads.a_RD, grads.b_VR)
        ctx.dtypes = [None if source is None else source.dtype for source in (hidden_SD, weight_VD, a_RD, b_VR)]
        ctx.mark_non_differentiable(nll_S)
        return (nll_S * weights_S).sum(), nll_S

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad_hidden, *others = ctx.saved_tensors
        scaled = [None if grad_hidden is None else grad_hidden * grad.to(grad_hidden.dtype)]
        scaled += [None if g is None else (g * grad).to(dtype) for g, dtype in zip(others, ctx.dtypes[1:], strict=True)]
        return (*scaled, None, None, None, None)


@dataclass(frozen=True)
class _Gradients:
    """Gradients of the weighted sum, added up chunk by chunk; None for those that are not needed."""

    hidden_SD: Tensor | None
    weight_VD: Tensor | None
    a_RD: Tensor | None
    b_VR: Tensor | None

    @staticmethod
    def of(needed: tuple[bool, ...], hidden_SD: Tensor, weight_VD: Tensor, update: HeadUpdate | None) -> _Gradients:
        dtype = torch.promote_types(hidden_SD.dtype, torch.float32)
        need_hidden, need_weight, need_a, need_b = needed[:4]
        return _Gradients(
            torch.empty_like(hidden_SD) if need_hidden else None,
            torch.zeros_like(weight_VD, dtype=dtype) if need_weight else None,
            torch.zeros_like(update.a_RD) if update is not None and need_a else None,
            torch.zeros_like(update.b_VR) if update is not None and need_b else None,
        )

    def add(self, part: slice, h_CD: Tensor, grad_CV: Tensor, weight_VD: Tensor, update: HeadUpdate | None) -> None:
        dtype = grad_CV.dtype
        grad_CR = None if update is None else grad_CV @ update.b_VR * update.scale
        if self.hidden_SD is not None:
            grad_CD = (grad_CV.to(weight_VD.dtype) @ weight_VD).to(dtype)
            if update is not None and grad_CR is not None:
                grad_CD.addmm_(grad_CR, update.a_RD)
            self.hidden_SD[part] = grad_CD.to(self.hidden_SD.dtype)
        if self.weight_VD is not None:
            self.weight_VD.addmm_(grad_CV.T, h_CD.to(dtype))
        if self.a_RD is not None and grad_CR is not None:
            self.a_RD.addmm_(grad_CR.T, h_CD.to(dtype))
        if self.b_VR is not None and update is not None:
            self.b_VR.addmm_(grad_CV.T, h_CD.to(dtype) @ update.a_RD.T, alpha=update.scale)
