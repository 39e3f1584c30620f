"""The thin products of LoRA, in which one side is the rank, in plain torch. Not differentiable.

Shapes: N rows, D and W sizes of what is adapted, R LoRA rank.
"""

from __future__ import annotations

from torch import Tensor


def narrow(x_ND: Tensor, w: Tensor, transposed: bool, scale: float) -> Tensor:
    """Return scale * x w, [N, R], in x's dtype. w is [D, R] or, transposed, [R, D]."""
    return (x_ND @ (w.T if transposed else w)).mul_(scale)


def outer(a_NR: Tensor, b_NW: Tensor, transposed: bool) -> Tensor:
    """Return a^T b, [R, W], or its transpose, in their dtype. A backend may return float32, which is more exact."""
    return b_NW.T @ a_NR if transposed else a_NR.T @ b_NW
