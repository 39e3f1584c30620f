"""The merged model W + scale * B A (base and adapter) as an iterator over tensors, in bounded memory.

Tensors that the adapter does not change are the source's bytes. The others are added up in float32 and rounded once
(`ossia.export.rounding`). That is done for some thousand rows or for one expert at a time. This module does not write
files. A writer (`ossia.export.writers`) takes the parts one by one.
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

#: Largest number of weights of a matrix that are merged at once. Embeddings and head have 579 million each.
_AT_A_TIME = 1 << 24


class TensorPart(NamedTuple):
    """Consecutive rows or experts of a `MergedTensor`."""

    first: int
    """Index of the first row or expert on the first axis of the tensor."""
    values: tuple[Tensor, ...]
    """One tensor for each of `MergedTensor.specs`."""


@dataclass(frozen=True)
class MergedTensor:
    """One tensor of the merged model, or the two tensors of packed experts."""

    specs: tuple[TensorSpec, ...]
    """The tensor's name, shape and dtype. Packed experts have two specs, blocks and scales, with parts in common."""
    parts: Iterator[TensorPart]
    """The values, from the first row or expert to the last. They can be iterated over once."""
    copied: bool = False
    """Whether the values are the source's bytes."""
    survival: Survival | None = None
    """The measured effect of rounding on the update, complete after `parts`. None: there is no update."""


@dataclass(frozen=True)
class MergedModel:
    """The tensors of base + adapter as an iterable, in the layout's order.

    Each iteration computes the tensors again, one by one.

    Raises:
        UserError: the update is not finite. Iterating raises it.
    """

    source: CheckpointReader
    """The base."""
    adapter: Adapter
    packed: bool
    """Whether experts are MXFP4: uint8 `*_blocks` [E, outputs, G, 16] and `*_scales` [E, outputs, G]. Else they are
    floats [E, inputs, outputs] with the names of transformers' dequantised experts."""
    device: str = "cpu"
    """The device to compute on."""
    dtype: torch.dtype = torch.bfloat16
    """The dtype of changed tensors that are not packed: bfloat16, or float32 for a writer that rounds them itself."""

    def __post_init__(self) -> None:
        assert self.source.is_mxfp4 or not self.packed, "float experts have no published scales to start from"

    @property
    def specs(self) -> list[TensorSpec]:
        """The names, shapes and dtypes of the tensors in order, if `dtype` is bfloat16."""
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
        """Yield the weights of each expert in transformers' layout, [1, inputs, outputs]."""
        for expert in range(self.source.shape().experts):
            base = self._expert(name, expert)
            if delta is None or delta.is_zero(expert):
                survival.add_unchanged(base)
                result = base.to(self.dtype)
            else:
                result = rounded(base, delta.matrix(expert, self.device), self.dtype, survival)
            yield TensorPart(expert, (result.T[None],))

    def _expert(self, name: str, expert: int) -> Tensor:
        """Return the weights of one expert, float32 [outputs, inputs]. The conversion to float32 is exact."""
        if not self.source.is_mxfp4:
            return self.source.get(name)[expert].to(self.device, torch.float32).T
        blocks, scales = self.source.get(f"{name}_blocks")[expert], self.source.get(f"{name}_scales")[expert]
        return mxfp4.dequantise(blocks.to(self.device), scales.to(self.device), torch.float32)


def _slices(shape: Sequence[int]) -> Iterator[slice]:
    """Return slices of the first axis. Each has at most `_AT_A_TIME` weights, but at least one index."""
    step = max(1, _AT_A_TIME // prod(shape[1:]))
    return (slice(first, first + step) for first in range(0, shape[0], step))
