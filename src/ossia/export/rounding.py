"""How merged weights are rounded, how much of an update is left then, and which format the experts get.

Published weights lie exactly on the lattice of their format. An update smaller than half a step of it rounds back to
nothing, and one near half a step turns into noise; neither shows in the files. So each merge is measured, with Q the
rounding, W the base and D the update, over all weights of a tensor:

    rho   = |D| / |W|                             size of the update
    keep  = <Q(W + D) - W, D> / <D, D>            1: all of it arrived, 0: none
    error = |Q(W + D) - (W + D)| / |D|            rounding noise in units of the update

What is added up in float32 is rounded once: to bfloat16, or for experts that stay in four bits to MXFP4, where each
group tries its published scale, the floor rule's and the two beside that, and takes the one with the least squared
error (`mxfp4.quantise`).
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
#: Experts of each tensor that `auto` measures before it decides.
_SAMPLED = 2


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


def total(part: LoraTarget, survivals: Sequence[Survival]) -> Survival:
    """The sums of all tensors of one of `PARTS`."""
    result = Survival(part)
    for survival in survivals:
        if PARTS[part] in survival.name:
            result += survival
    return result


def update_report(survivals: Sequence[Survival]) -> dict[str, Any]:
    """What the report says about the update: the figures of each of `PARTS` and of each tensor."""
    return {
        **{part: total(part, survivals).to_json() for part in PARTS},
        "tensors": [{"name": survival.name, **survival.to_json()} for survival in survivals],
    }


@dataclass(frozen=True)
class Rounding:
    """How the experts are written, in four bits (`packed`) or in bfloat16, and why. `asked`: what the user wanted."""

    asked: ExpertsFormat
    packed: bool
    reason: str

    @property
    def layout(self) -> str:
        return "mxfp4" if self.packed else "bf16"

    def to_json(self) -> dict[str, str]:
        return {"asked": self.asked, "layout": self.layout, "reason": self.reason}

    def revised(self, survivals: Sequence[Survival]) -> Rounding:
        """The rounding after all tensors were measured: bfloat16 where a sample was too kind to four bits."""
        whole = total("experts", survivals)
        if not self.packed or self.asked != "auto" or whole.is_good:
            return self
        return Rounding(self.asked, False, f"four bits would lose the update: {whole.describe()}")

    def warnings(self, survivals: Sequence[Survival]) -> list[str]:
        """A sentence for each of `PARTS` whose update the rounding damages."""
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
    """Decide the experts' format. `auto`: four bits only where they hold the update (`Survival.is_good`).

    Raises:
        UserError: four bits are asked for, and the base's experts have no published scales to start from.
    """
    if not source.is_mxfp4:
        if asked == "mxfp4":
            raise UserError(
                "the base model's experts are not in four bits",
                where=str(source.folder),
                do="use --experts bf16, or the published model as the base",
            )
        return Rounding(asked, False, "as the base model has them")
    if asked != "auto":
        return Rounding(asked, asked == "mxfp4", "as asked for")
    count = sum(PARTS["experts"] in name for name in adapter.deltas)
    if not count:
        return Rounding(asked, True, "the adapter does not change the experts, so their published bytes are kept")
    with progress("measuring what four bits keep", count) as advance:
        whole = total("experts", sample(source, adapter, device=device, experts=_SAMPLED, advance=advance))
    verdict = "hold" if whole.is_good else "would lose"
    return Rounding(asked, whole.is_good, f"four bits {verdict} the update: {whole.describe()}")


def sample(
    source: CheckpointReader, adapter: Adapter, *, device: str, experts: int, advance: UnitsDone
) -> list[Survival]:
    """Measure what four bits would keep, on a few experts of each tensor that the adapter changes, spread evenly.

    `advance` is told the tensors done.
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
    """Blocks and scales of one merged expert. One without an update keeps its bytes, the signs of zeros included."""
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
    """W + D of float32 matrices in `dtype`."""
    result = (base + update).to(dtype)
    survival.add(base, update, result.float())
    return result


def _dot(left: Tensor, right: Tensor) -> float:
    return float(torch.dot(left.reshape(-1), right.reshape(-1)))
