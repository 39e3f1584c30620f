"""W + scale * B A, streamed from one checkpoint to another: one tensor at a time, and of the experts one matrix.

What the adapter does not touch is copied byte for byte. The rest is added up in float32 and rounded once: to bfloat16,
or for experts that stay in four bits to MXFP4, where each group tries its published scale, the floor rule's and the two
beside that, and takes the one with the least squared error (`mxfp4.quantise`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ossia.adapters.read import Adapter, LoraDelta
from ossia.checkpoint.layout import TensorSpec, tensors
from ossia.checkpoint.reader import CheckpointReader, CheckpointWriter
from ossia.export.survival import Survival, total
from ossia.kernels.reference import mxfp4

Advance = Callable[[int], None]
"""Told how many bytes were written since the last call."""

#: What an update can be of, and what its tensors' names contain.
PARTS = {
    "attention": ".self_attn.", "experts": ".mlp.experts.", "router": ".mlp.router.", "embeddings": "embed_tokens",
    "head": "lm_head",
}  # fmt: skip
#: Weights of a matrix that are merged at a time; embeddings and head have 579 million.
_AT_A_TIME = 1 << 24


@dataclass
class Merged:
    """What was written. `digests`: SHA-256 of each tensor's bytes. `copied`: those that are the source's own bytes."""

    digests: dict[str, str] = field(default_factory=dict)
    copied: set[str] = field(default_factory=set)
    survival: list[Survival] = field(default_factory=list)

    def total(self, name: str) -> Survival:
        """The sums of all tensors that changed in one of `PARTS`."""
        return total(name, [part for part in self.survival if PARTS[name] in part.name])


def write(
    source: CheckpointReader, adapter: Adapter, folder: Path, *, packed: bool, device: str, advance: Advance
) -> Merged:
    """Write the merged checkpoint into `folder`: experts as MXFP4 (`packed`) or as bfloat16.

    Raises:
        UserError: the update is not finite.
        DoesNotFitError: the disk is too small.
    """
    assert source.is_mxfp4 or not packed, "float experts have no published scales to start from"
    specs = list(tensors(source.shape(), packed))
    merged = Merged()
    with CheckpointWriter(folder, specs) as writer:
        for spec in specs:
            _Tensor(source, adapter, writer, merged, device).write(spec)
            advance(spec.bytes)
    return merged


def sample(
    source: CheckpointReader, adapter: Adapter, *, device: str, experts: int, advance: Advance
) -> list[Survival]:
    """Measure what four bits would keep, on a few experts of each tensor that the adapter changes, spread evenly.

    `advance` is told the tensors done.
    """
    found = []
    for name, delta in adapter.deltas.items():
        if ".mlp.experts." not in name:
            continue
        survival = Survival(name)
        changed = [expert for expert in range(len(delta.a)) if not delta.is_zero(expert)]
        step = max(1, len(changed) // experts)
        for expert in changed[::step][:experts]:
            _requantised(source, delta, expert, device, survival)
        found.append(survival)
        advance(1)
    return found


@dataclass
class _Tensor:
    """Writes one tensor of the new checkpoint."""

    source: CheckpointReader
    adapter: Adapter
    writer: CheckpointWriter
    merged: Merged
    device: str

    def write(self, spec: TensorSpec) -> None:
        name = spec.name.removesuffix("_blocks").removesuffix("_scales") if spec.dtype == "U8" else spec.name
        delta = self.adapter.deltas.get(name)
        if spec.kind == "scales" and delta is not None:
            return  # written together with the blocks
        if spec.kind == "blocks" and delta is not None:
            self._experts([f"{name}_blocks", f"{name}_scales"], self._packed(delta))
        elif spec.kind == "experts" and (delta is not None or self.source.is_mxfp4):
            self._experts([name], self._floats(name, delta))
        elif delta is not None:
            self._matrix(spec.name, delta)
        else:
            self._copy(spec.name)

    def _copy(self, name: str) -> None:
        tensor = self.source.get(name)
        self.writer.add(name, tensor)
        self.merged.digests[name] = digest(tensor)
        self.merged.copied.add(name)

    def _matrix(self, name: str, delta: LoraDelta) -> None:
        if delta.is_zero():
            self._copy(name)
            return
        stored, survival, sha256 = self.source.get(name), Survival(name), hashlib.sha256()
        step = max(1, _AT_A_TIME // stored.shape[1])
        for first in range(0, len(stored), step):
            rows = slice(first, first + step)
            base, update = stored[rows].to(self.device, torch.float32), delta.matrix(device=self.device, rows=rows)
            result = (base + update).to(torch.bfloat16)
            survival.add(base, update, result.float())
            self.writer.add_rows(name, first, result)
            sha256.update(as_bytes(result))
        self.merged.survival.append(survival)
        self.merged.digests[name] = sha256.hexdigest()

    def _experts(self, names: list[str], parts: Iterator[tuple[Tensor, ...]]) -> None:
        """Write one expert after the other into the tensors of these names."""
        hashes = [hashlib.sha256() for _ in names]
        for expert, values in enumerate(parts):
            for name, sha256, value in zip(names, hashes, values, strict=True):
                stored = value.cpu().contiguous()
                self.writer.add_rows(name, expert, stored[None])
                sha256.update(as_bytes(stored))
        self.merged.digests.update((name, sha256.hexdigest()) for name, sha256 in zip(names, hashes, strict=True))

    def _packed(self, delta: LoraDelta) -> Iterator[tuple[Tensor, Tensor]]:
        survival = Survival(delta.name)
        for expert in range(len(delta.a)):
            yield _requantised(self.source, delta, expert, self.device, survival)
        self.merged.survival.append(survival)

    def _floats(self, name: str, delta: LoraDelta | None) -> Iterator[tuple[Tensor]]:
        """bfloat16 [inputs, outputs] of each expert, as transformers has it."""
        survival = Survival(name)
        for expert in range(self.source.shape().experts):
            base = _expert(self.source, name, expert, self.device)
            if delta is None or delta.is_zero(expert):
                survival.add_unchanged(base)
                yield (base.to(torch.bfloat16).T,)
                continue
            update = delta.matrix(expert, self.device)
            result = (base + update).to(torch.bfloat16)
            survival.add(base, update, result.float())
            yield (result.T,)
        if delta is not None:
            self.merged.survival.append(survival)


def _expert(source: CheckpointReader, name: str, expert: int, device: str) -> Tensor:
    """float32 [outputs, inputs] of one expert; exact, since both layouts' values fit in float32."""
    if not source.is_mxfp4:
        return source.get(name)[expert].to(device, torch.float32).T
    blocks, scales = source.get(f"{name}_blocks")[expert], source.get(f"{name}_scales")[expert]
    return mxfp4.dequantise(blocks.to(device), scales.to(device), torch.float32)


def _requantised(
    source: CheckpointReader, delta: LoraDelta, expert: int, device: str, survival: Survival
) -> tuple[Tensor, Tensor]:
    """Blocks and scales of one merged expert. One without an update keeps its bytes, the signs of zeros included."""
    blocks, scales = source.get(f"{delta.name}_blocks")[expert], source.get(f"{delta.name}_scales")[expert]
    base = mxfp4.dequantise(blocks.to(device), scales.to(device), torch.float32)
    if delta.is_zero(expert):
        survival.add_unchanged(base)
        return blocks, scales
    update = delta.matrix(expert, device)
    blocks, scales = mxfp4.quantise(base + update, "best", scales.to(device))
    survival.add(base, update, mxfp4.dequantise(blocks, scales, torch.float32))
    return blocks, scales


def as_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a CPU tensor, as they are in the file."""
    return memoryview(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes, in hexadecimal."""
    return hashlib.sha256(as_bytes(tensor)).hexdigest()
