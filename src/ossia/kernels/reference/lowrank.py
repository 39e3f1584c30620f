"""The thin products of LoRA (one side is the rank), in plain torch. Not differentiable.

Shapes: N rows, D and W sizes of the adapted matrix, R LoRA rank.
"""

from __future__ import annotations

from torch import Tensor


def narrow(x_ND: Tensor, w: Tensor, transposed: bool, scale: float) -> Tensor:
    """Return scale * x w, [N, R], in x's dtype; w is [D, R]. If `transposed`, w is [R, D] and x w^T is computed."""
    return (x_ND @ (w.T if transposed else w)).mul_(scale)


def outer(a_NR: Tensor, b_NW: Tensor, transposed: bool) -> Tensor:
    """Return a^T b, [R, W], or its transpose, in the inputs' dtype. A backend may return the more exact float32."""
    return b_NW.T @ a_NR if transposed else a_NR.T @ b_NW
