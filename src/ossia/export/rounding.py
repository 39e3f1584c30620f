"""Rounding of merged weights, its measured effect on the update, and the choice of the experts' format.

Published weights lie exactly on the lattice of their format. An update smaller than half a step of the lattice is
rounded away. An update near half a step turns into noise. The files show neither, so each merge is measured. With Q the
rounding, W the base and D the update, over all weights of a tensor:

    rho   = |D| / |W|                             size of the update
    keep  = <Q(W + D) - W, D> / <D, D>            share of the update that is kept: 1 is all, 0 is none
    error = |Q(W + D) - (W + D)| / |D|            rounding noise in units of the update

The sum W + D is computed in float32 and rounded once, to bfloat16 or to MXFP4. For MXFP4, each group tries four scales
and takes the one with the least squared error (`mxfp4.quantise`). They are the published scale, the scale of the
"floor" rule, and the two beside the latter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ossia.adapters.layout import PARTS
from ossia.adapters.read import Adapter, LoraDelta
from ossia.checkpoint.reader import CheckpointReader
from ossia.config import LoraTarget
from ossia.errors import UserError
from ossia.export import ExpertsFormat, ProgressFactory, UnitsDone
from ossia.kernels.reference import mxfp4

KEEP_BETWEEN = (0.9, 1.1)
"""Bounds of `keep` in a format that is good enough.

    rho                      0.1 %  0.3 %    1 %    3 %   10 %   20 %   30 %
    MXFP4        keep         0.00   0.00   0.00   0.03   0.69   0.92   0.97
                 error        1.00   1.00   1.00   1.00   0.76   0.51   0.37
    bfloat16     keep         0.53   0.93   1.00   1.00   1.00   1.00   1.00
                 error        0.79   0.48   0.17   0.06   0.02   0.01   0.01

These are the figures of both formats for normally distributed weights and a rank of 16.
"""
MOST_ERROR = 0.5
"""Largest `error` of a format that is good enough. 0.5 is a signal-to-noise ratio of 2 in the weights."""
_SAMPLED = 2
"""Number of experts of each tensor that are measured for the choice of `auto`."""


@dataclass
class Survival:
    """The measured effect of rounding on an update, as sums over the weights of one or several tensors."""

    name: str = ""
    """The tensor, or one of `PARTS`."""
    base_squared: float = 0.0
    """<W, W>"""
    delta_squared: float = 0.0
    """<D, D>"""
    kept: float = 0.0
    """<Q(W + D) - W, D>"""
    error_squared: float = 0.0
    """Squared length of Q(W + D) - (W + D)."""
    weights: int = 0
    """Number of weights."""
    changed: int = 0
    """Number of weights whose stored value differs from the base's."""

    def add(self, base: Tensor, delta: Tensor, stored: Tensor) -> None:
        """Add one matrix to the sums. W, D and Q(W + D) are float32 and have the same shape."""
        moved = stored - base
        self.base_squared += _dot(base, base)
        self.delta_squared += _dot(delta, delta)
        self.kept += _dot(moved, delta)
        self.weights += base.numel()
        self.changed += int(torch.count_nonzero(moved))
        moved -= delta
        self.error_squared += _dot(moved, moved)

    def add_unchanged(self, base: Tensor) -> None:
        """Add a matrix without an update to the sums, such as that of an expert that was never chosen."""
        self.base_squared += _dot(base, base)
        self.weights += base.numel()

    def __iadd__(self, other: Survival) -> Survival:
        for key in ("base_squared", "delta_squared", "kept", "error_squared", "weights", "changed"):
            setattr(self, key, getattr(self, key) + getattr(other, key))
        return self

    @property
    def rho(self) -> float:
        """|D| / |W|, the size of the update; 0.0 without weights."""
        return math.sqrt(self.delta_squared / self.base_squared) if self.base_squared else 0.0

    @property
    def keep(self) -> float:
        """The share of the update that is kept; 1.0 without an update."""
        return self.kept / self.delta_squared if self.delta_squared else 1.0

    @property
    def error(self) -> float:
        """The rounding noise in units of the update; 0.0 without an update."""
        return math.sqrt(self.error_squared / self.delta_squared) if self.delta_squared else 0.0

    @property
    def is_good(self) -> bool:
        """Whether `keep` is within KEEP_BETWEEN and `error` is at most MOST_ERROR."""
        return KEEP_BETWEEN[0] <= self.keep <= KEEP_BETWEEN[1] and self.error <= MOST_ERROR

    def describe(self) -> str:
        """Return the figures in words."""
        return (
            f"the update is {self.rho:.2%} of the weights, {self.keep:.0%} of it is kept, "
            f"rounding noise is {self.error:.2f} times the update"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the figures for the report. `changed` is a share of the weights here."""
        share = self.changed / self.weights if self.weights else 0.0
        return {"rho": self.rho, "keep": self.keep, "error": self.error, "changed": share}


def total(part: LoraTarget, survivals: Sequence[Survival]) -> Survival:
    """Return the sums over all tensors of one of `PARTS`."""
    result = Survival(part)
    for survival in survivals:
        if PARTS[part] in survival.name:
            result += survival
    return result


def update_report(survivals: Sequence[Survival]) -> dict[str, Any]:
    """Return the report's section on the update: the figures of each of `PARTS` and of each tensor."""
    return {
        **{part: total(part, survivals).to_json() for part in PARTS},
        "tensors": [{"name": survival.name, **survival.to_json()} for survival in survivals],
    }


@dataclass(frozen=True)
class Rounding:
    """The choice of the experts' format, with its reason in words."""

    asked: ExpertsFormat
    """The format that the user asked for."""
    packed: bool
    """Whether the experts are written in four bits. Else they are written in bfloat16."""
    reason: str

    @property
    def layout(self) -> str:
        """The name of the format: mxfp4 or bf16."""
        return "mxfp4" if self.packed else "bf16"

    def to_json(self) -> dict[str, str]:
        """Return the choice for the report."""
        return {"asked": self.asked, "layout": self.layout, "reason": self.reason}

    def revised(self, survivals: Sequence[Survival]) -> Rounding:
        """Return the choice after all tensors were measured.

        It is bfloat16 if `auto` chose four bits because of a sample, and all tensors together are worse than allowed.
        """
        whole = total("experts", survivals)
        if not self.packed or self.asked != "auto" or whole.is_good:
            return self
        return Rounding(self.asked, False, f"four bits would lose the update: {whole.describe()}")

    def warnings(self, survivals: Sequence[Survival]) -> list[str]:
        """Return a sentence for each of `PARTS` whose update is damaged by rounding."""
        found = []
        low, high = KEEP_BETWEEN
        for name in PARTS:
            part = total(name, survivals)
            format_, remedy = "bf16", "--to adapter"
            if name == "experts" and self.packed:
                format_, remedy = self.layout, "--experts bf16, or --to adapter"
            if not part.is_good:
                found.append(
                    f"rounding to {format_} damages the {name}: {part.describe()} (good: {low:.0%} to {high:.0%} "
                    f"kept, noise at most {MOST_ERROR}). Use {remedy}"
                )
        return found


def choose_rounding(
    source: CheckpointReader, adapter: Adapter, asked: ExpertsFormat, *, device: str, progress: ProgressFactory
) -> Rounding:
    """Return the choice of the experts' format.

    Args:
        asked: the format that the user asked for. auto: four bits only if they keep the update (`Survival.is_good`).
        device: the device to measure on.
        progress: called for the measurement of `auto`, whose units are tensors.

    Raises:
        UserError: four bits are asked for, but the base's experts have no published scales. Also if the update is not
            finite.
    """
    if not source.is_mxfp4:
        if asked == "mxfp4":
            raise UserError(
                "the base model's experts are not in four bits",
                where=str(source.folder),
                do="use --experts bf16, or the published model as the base",
            )
        return Rounding(asked, False, "as in the base model")
    if asked != "auto":
        return Rounding(asked, asked == "mxfp4", "as asked for")
    count = sum(PARTS["experts"] in name for name in adapter.deltas)
    if not count:
        return Rounding(asked, True, "the adapter does not change the experts, so their published bytes are kept")
    with progress("measuring the update in four bits", count) as advance:
        whole = total("experts", sample(source, adapter, device=device, experts=_SAMPLED, advance=advance))
    verdict = "keep" if whole.is_good else "would lose"
    return Rounding(asked, whole.is_good, f"four bits {verdict} the update: {whole.describe()}")


def sample(
    source: CheckpointReader, adapter: Adapter, *, device: str, experts: int, advance: UnitsDone
) -> list[Survival]:
    """Return the effect of four bits on a few experts of each expert tensor that the adapter changes.

    Args:
        experts: how many experts of each tensor are measured. They are spread evenly over the changed experts.
        advance: called with 1 after each tensor.

    Raises:
        UserError: the update is not finite.
    """
    found = []
    for name, delta in adapter.deltas.items():
        if PARTS["experts"] not in name:
            continue
        survival = Survival(name)
        changed = [expert for expert in range(len(delta.a)) if not delta.is_zero(expert)]
        step = max(1, len(changed) // experts)
        for expert in changed[::step][:experts]:
            requantised(source, delta, expert, device, survival)
        found.append(survival)
        advance(1)
    return found


def requantised(
    source: CheckpointReader, delta: LoraDelta, expert: int, device: str, survival: Survival
) -> tuple[Tensor, Tensor]:
    """Return the blocks [outputs, G, 16] and the scales [outputs, G] of one merged expert, both uint8.

    An expert without an update keeps its bytes, the signs of zeros included. The sums of `survival` are increased.

    Raises:
        UserError: the merged weights are not finite.
    """
    blocks, scales = source.get(f"{delta.name}_blocks")[expert], source.get(f"{delta.name}_scales")[expert]
    base = mxfp4.dequantise(blocks.to(device), scales.to(device), torch.float32)
    if delta.is_zero(expert):
        survival.add_unchanged(base)
        return blocks, scales
    update = delta.matrix(expert, device)
    try:
        blocks, scales = mxfp4.quantise(base + update, "best", scales.to(device))
    except UserError as error:
        error.why = "training diverged, or the merge overflowed"
        error.do = "use an earlier checkpoint, or a lower learning rate"
        raise
    survival.add(base, update, mxfp4.dequantise(blocks, scales, torch.float32))
    return blocks, scales


def rounded(base: Tensor, update: Tensor, dtype: torch.dtype, survival: Survival) -> Tensor:
    """Return W + D of float32 matrices, rounded to `dtype`. The sums of `survival` are increased."""
    result = (base + update).to(dtype)
    survival.add(base, update, result.float())
    return result


def _dot(left: Tensor, right: Tensor) -> float:
    return float(torch.dot(left.reshape(-1), right.reshape(-1)))
