"""The hot loops in plain torch: the truth that every other device's kernels are checked against."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class LowRank(NamedTuple):
    """A LoRA update of every expert's projection: scale * (x A^T) B^T. a_ERI: [E, R, in], b_EOR: [E, out, R]."""

    a_ERI: Tensor
    b_EOR: Tensor
    scale: float
