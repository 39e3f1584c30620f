"""How much of an update is left once the merged weights are rounded to what the file can hold.

Published weights lie exactly on the lattice of their format. An update smaller than half a step of it rounds back to
nothing, and one near half a step turns into noise; neither shows in the files. So each merge is measured, with Q the
rounding, W the base and D the update, over all weights of a tensor:

    rho   = |D| / |W|                             size of the update
    keep  = <Q(W + D) - W, D> / <D, D>            1: all of it arrived, 0: none
    error = |Q(W + D) - (W + D)| / |D|            rounding noise in units of the update
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: A format is good enough when it keeps this share of the update and adds at most this much noise (half the update's
#: size is a signal-to-noise ratio of 2 in the weights). For normally distributed weights and a rank of 16:
#:
#:     rho                      0.1 %  0.3 %    1 %    3 %   10 %   20 %   30 %
#:     MXFP4        keep         0.00   0.00   0.00   0.03   0.69   0.92   0.97
#:                  error        1.00   1.00   1.00   1.00   0.76   0.51   0.37
#:     bfloat16     keep         0.53   0.93   1.00   1.00   1.00   1.00   1.00
#:                  error        0.79   0.48   0.17   0.06   0.02   0.01   0.01
KEEP_BETWEEN = (0.9, 1.1)
MOST_ERROR = 0.5


@dataclass
class Survival:
    """Sums over the weights of one tensor, or of several."""

    name: str = ""
    base_squared: float = 0.0
    delta_squared: float = 0.0
    kept: float = 0.0
    error_squared: float = 0.0
    weights: int = 0
    changed: int = 0

    def add(self, base: Tensor, delta: Tensor, stored: Tensor) -> None:
        """Count one matrix: float32 W, D and Q(W + D), all of one shape."""
        moved = stored - base
        self.base_squared += _dot(base, base)
        self.delta_squared += _dot(delta, delta)
        self.kept += _dot(moved, delta)
        self.weights += base.numel()
        self.changed += int(torch.count_nonzero(moved))
        moved -= delta
        self.error_squared += _dot(moved, moved)

    def add_unchanged(self, base: Tensor) -> None:
        """Count a matrix without an update, as of an expert that was never chosen."""
        self.base_squared += _dot(base, base)
        self.weights += base.numel()

    def __iadd__(self, other: Survival) -> Survival:
        for key in ("base_squared", "delta_squared", "kept", "error_squared", "weights", "changed"):
            setattr(self, key, getattr(self, key) + getattr(other, key))
        return self

    @property
    def rho(self) -> float:
        return math.sqrt(self.delta_squared / self.base_squared) if self.base_squared else 0.0

    @property
    def keep(self) -> float:
        return self.kept / self.delta_squared if self.delta_squared else 1.0

    @property
    def error(self) -> float:
        return math.sqrt(self.error_squared / self.delta_squared) if self.delta_squared else 0.0

    @property
    def is_good(self) -> bool:
        return KEEP_BETWEEN[0] <= self.keep <= KEEP_BETWEEN[1] and self.error <= MOST_ERROR

    def describe(self) -> str:
        return (
            f"the update is {self.rho:.2%} of the weights, {self.keep:.0%} of it is kept, "
            f"rounding noise is {self.error:.2f} times the update"
        )

    def to_json(self) -> dict[str, Any]:
        """The figures of the report; `changed` is the share of weights whose stored value is not the base's."""
        share = self.changed / self.weights if self.weights else 0.0
        return {"rho": self.rho, "keep": self.keep, "error": self.error, "changed": share}


def total(name: str, parts: list[Survival]) -> Survival:
    """The sums of several tensors together."""
    result = Survival(name)
    for part in parts:
        result += part
    return result


def _dot(left: Tensor, right: Tensor) -> float:
    return float(torch.dot(left.reshape(-1), right.reshape(-1)))
