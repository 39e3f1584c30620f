"""Products with a matrix that stays in MXFP4, in plain torch: dequantise, then torch's own product.

A layer needs x W^T in its forward pass and x W in its backward pass. The functions are not differentiable.

Shapes: N rows, I inputs and O outputs of the matrix, C columns of the result (O or I), R LoRA rank, T tokens.
"""

from __future__ import annotations

from torch import Tensor

from ossia.kernels.reference import Into, Packed, Update
from ossia.kernels.reference.mxfp4 import dequantise


def product(
    x: Tensor,
    matrix: Packed,
    transposed: bool,
    *,
    bias: Tensor | None = None,
    update: Update | None = None,
    into: Into | None = None,
) -> Tensor | None:
    """Return x W^T + bias + update [N, O] if transposed, else x W + update [N, I], in x's dtype.

    With `into`, the result is added there instead, and None is returned.

    Args:
        x: [N, I] if transposed, else [N, O].
        bias: [O], in x's dtype; only if transposed.
    """
    return dense_product(x, dequantise(*matrix, x.dtype), transposed, bias=bias, update=update, into=into)


def dense_product(
    x: Tensor,
    w_OI: Tensor,
    transposed: bool,
    *,
    bias: Tensor | None = None,
    update: Update | None = None,
    into: Into | None = None,
) -> Tensor | None:
    """Return the result of `product` for a matrix that is already dequantised to x's dtype."""
    return completed(x @ w_OI.T if transposed else x @ w_OI, transposed, bias, update, into)


def completed(
    y_NC: Tensor, transposed: bool, bias: Tensor | None, update: Update | None, into: Into | None
) -> Tensor | None:
    """Return the result of `product`, given x W^T or x W. `y_NC` is overwritten."""
    if bias is not None:
        y_NC = y_NC.add_(bias)
    if update is not None:
        y_NC = y_NC.addmm_(update.x_NR, update.w.T if transposed else update.w)
    if into is None:
        return y_NC
    y_NC = y_NC.to(into.total_TC.dtype)
    if into.factors_N is not None:
        y_NC = y_NC * into.factors_N[:, None]
    into.total_TC.index_add_(0, into.places_N, y_NC)
    return None
