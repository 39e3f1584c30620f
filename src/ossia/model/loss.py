"""Cross-entropy from hidden states, in chunks, never as full logits.

With 201,088 words in the vocabulary the logits of 4,096 tokens take 3.3 GB in float32, and two or three times that
with their gradient. Here a chunk of supervised rows goes through the head at a time, and the gradient of the hidden
states is made in the same pass, so a chunk's logits are gone before the next one starts.

Shapes: S supervised rows, D hidden size, V rows of the head, C rows of one chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK_LOGITS = 1 << 25
"""Most logits at a time (128 MB in float32)."""


@dataclass(frozen=True)
class Head:
    """The output layer: weight_VD, and for each row the number of vocabulary entries that share it.

    A freshly made model has thousands of vocabulary rows that are equal to each other (words it never saw). Equal rows
    have equal logits, so the softmax over n of them is one logit plus log n. `of` finds such rows; the loss over the
    full vocabulary stays exact and costs what the distinct rows cost.
    """

    weight_VD: Tensor
    log_count_V: Tensor | None = None
    """float32; None: every row stands for itself."""
    row_of_token: Tensor | None = None
    """int64 [vocabulary]; None: the identity."""

    @staticmethod
    def of(weight_VD: Tensor) -> Head:
        """Group the rows that equal the last one, if they are the majority. Looks at one column first: it is cheap."""
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
        targets_S: int64 token ids. weights_S: float32.

    Returns:
        The weighted sum as a float32 scalar (float64 for float64 inputs) that can be differentiated with respect to the
        hidden states and the head's weight, and the rows' negative log-likelihoods, detached.
    """
    rows_S = targets_S if head.row_of_token is None else head.row_of_token[targets_S]
    return _LinearCrossEntropy.apply(hidden_SD, head.weight_VD, rows_S, weights_S, head.log_count_V)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_SD: Tensor, weight_VD: Tensor, rows_S: Tensor, weights_S: Tensor, log_count_V: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        kind = torch.promote_types(hidden_SD.dtype, torch.float32)
        nll_S = torch.empty(len(rows_S), dtype=kind, device=hidden_SD.device)
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden_SD) if need_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=kind) if need_weight else None
        step = max(1, CHUNK_LOGITS // len(weight_VD))
        for start in range(0, len(rows_S), step):
            part = slice(start, start + step)
            h_CD, rows_C = hidden_SD[part], rows_S[part]
            logits_CV = (h_CD @ weight_VD.T).to(kind)
            if log_count_V is not None:
                logits_CV += log_count_V
            total_C = logits_CV.logsumexp(-1)
            chosen_C = logits_CV.gather(1, rows_C[:, None])[:, 0]
            nll_S[part] = total_C - chosen_C + (0 if log_count_V is None else log_count_V[rows_C])
            if grad_hidden is None and grad_weight is None:
                continue
            grad_CV = logits_CV.sub_(total_C[:, None]).exp_()
            grad_CV[torch.arange(len(rows_C), device=rows_C.device), rows_C] -= 1
            grad_CV *= weights_S[part, None]
            if grad_hidden is not None:
                grad_hidden[part] = (grad_CV.to(weight_VD.dtype) @ weight_VD).to(grad_hidden.dtype)
            if grad_weight is not None:
                grad_weight += grad_CV.T @ h_CD.to(kind)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight_VD.dtype
        ctx.mark_non_differentiable(nll_S)
        return (nll_S * weights_S).sum(), nll_S

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:  # type: ignore[override]
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * grad.to(grad_hidden.dtype),
            None if grad_weight is None else (grad_weight * grad).to(ctx.weight_dtype),
            None,
            None,
            None,
        )
