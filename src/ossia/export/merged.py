"""W + scale * B A: base and adapter as an iterator over the tensors of the merged model, in bounded memory.

What the adapter does not touch is the source's own bytes. The rest is added up in float32, some thousand rows or one
expert at a time, and rounded once (`ossia.export.rounding`). Nothing here knows of files: a writer
(`ossia.export.writers`) takes the parts as they come.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from ossia.adapters.read import Adapter, LoraDelta
from ossia.checkpoint.layout import TensorSpec, tensors
from ossia.checkpoint.reader import CheckpointReader
from ossia.export.rounding import Survival, requantised, rounded
from ossia.kernels.reference import mxfp4

#: Weights of a matrix that are merged at a time; embeddings and head have 579 million.
_AT_A_TIME = 1 << 24


class TensorPart(NamedTuple):
    """Consecutive rows or experts: `values[i]` belong at index `first` of the first axis of the tensor `specs[i]`."""

    first: int
    values: tuple[Tensor, ...]


@dataclass(frozen=True)
class MergedTensor:
    """One tensor of the merged model, or the two of packed experts.

    specs: what it is; for packed experts blocks and scales, whose parts come together.
    parts: its values, from the first row or expert to the last; to be taken once.
    copied: whether they are the source's own bytes.
    survival: of an update, complete when the parts were taken; None where there was none.
    """

    specs: tuple[TensorSpec, ...]
    parts: Iterator[TensorPart]
    copied: bool = False
    survival: Survival | None = None


@dataclass(frozen=True)
class MergedModel:
    """The tensors of base + adapter in the layout's order. They are computed when they are asked for, and every time.

    packed: experts as MXFP4, U8 `*_blocks` [E, outputs, G, 16] and `*_scales` [E, outputs, G]. Otherwise as
        transformers names the dequantised ones, [E, inputs, outputs].
    dtype: of what the adapter changes and is not packed: bfloat16, or float32 for a writer that rounds it further.

    Iterating raises UserError when the update is not finite.
    """

    source: CheckpointReader
    adapter: Adapter
    packed: bool
    device: str = "cpu"
    dtype: torch.dtype = torch.bfloat16

    def __post_init__(self) -> None:
        assert self.source.is_mxfp4 or not self.packed, "float experts have no published scales to start from"

    @property
    def specs(self) -> list[TensorSpec]:
        """The layout of what comes, if `dtype` is bfloat16."""
        return list(tensors(self.source.shape(), self.packed))

    def __iter__(self) -> Iterator[MergedTensor]:
        specs = iter(self.specs)
        for spec in specs:
            if spec.kind == "blocks":
                yield self._packed_experts(spec, next(specs))
                continue
            delta = self.adapter.deltas.get(spec.name)
            if spec.kind == "experts" and (delta is not None or self.source.is_mxfp4):
                survival = Survival(spec.name)
                parts = self._floats(spec.name, delta, survival)
                yield MergedTensor((spec,), parts, survival=survival if delta is not None else None)
            elif delta is not None and not delta.is_zero():
                survival = Survival(spec.name)
                yield MergedTensor((spec,), self._rows(delta, survival), survival=survival)
            else:
                yield self._copied(spec)

    def _packed_experts(self, blocks: TensorSpec, scales: TensorSpec) -> MergedTensor:
        assert scales.kind == "scales", f"{scales.name} follows {blocks.name}"
        delta = self.adapter.deltas.get(blocks.name.removesuffix("_blocks"))
        if delta is None:
            return self._copied(blocks, scales)
        survival = Survival(delta.name)
        return MergedTensor((blocks, scales), self._codes(delta, survival), survival=survival)

    def _copied(self, *specs: TensorSpec) -> MergedTensor:
        stored = [self.source.get(spec.name) for spec in specs]
        parts = (TensorPart(rows.start, tuple(tensor[rows] for tensor in stored)) for rows in _slices(specs[0].shape))
        return MergedTensor(specs, parts, copied=True)

    def _rows(self, delta: LoraDelta, survival: Survival) -> Iterator[TensorPart]:
        stored = self.source.get(delta.name)
        for rows in _slices(stored.shape):
            base, update = stored[rows].to(self.device, torch.float32), delta.matrix(device=self.device, rows=rows)
            yield TensorPart(rows.start, (rounded(base, update, self.dtype, survival),))

    def _codes(self, delta: LoraDelta, survival: Survival) -> Iterator[TensorPart]:
        for expert in range(len(delta.a)):
            blocks, scales = requantised(self.source, delta, expert, self.device, survival)
            yield TensorPart(expert, (blocks[None], scales[None]))

    def _floats(self, name: str, delta: LoraDelta | None, survival: Survival) -> Iterator[TensorPart]:
        """[1, inputs, outputs] of each expert, as transformers has it."""
        for expert in range(self.source.shape().experts):
            base = self._expert(name, expert)
            if delta is None or delta.is_zero(expert):
                survival.add_unchanged(base)
                result = base.to(self.dtype)
            else:
                result = rounded(base, delta.matrix(expert, self.device), self.dtype, survival)
            yield TensorPart(expert, (result.T[None],))

    def _expert(self, name: str, expert: int) -> Tensor:
        """float32 [outputs, inputs] of one expert; exact, since both layouts' values fit in float32."""
        if not self.source.is_mxfp4:
            return self.source.get(name)[expert].to(self.device, torch.float32).T
        blocks, scales = self.source.get(f"{name}_blocks")[expert], self.source.get(f"{name}_scales")[expert]
        return mxfp4.dequantise(blocks.to(self.device), scales.to(self.device), torch.float32)


def _slices(shape: Sequence[int]) -> Iterator[slice]:
    """The first axis in runs of at most `_AT_A_TIME` weights, but of one index at least."""
    step = max(1, _AT_A_TIME // prod(shape[1:]))
    return (slice(first, first + step) for first in range(0, shape[0], step))
