"""The writer of merged tensors as a safetensors checkpoint in the published layout."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from ossia.checkpoint.writer import CheckpointWriter
from ossia.export import UnitsDone
from ossia.export.merged import MergedModel
from ossia.export.writers import WrittenTensors


def write_safetensors(merged: MergedModel, folder: Path, advance: UnitsDone) -> WrittenTensors:
    """Write the merged weights to `folder`, and return the record of them.

    Args:
        advance: called with the bytes of each tensor.

    Raises:
        UserError: the update is not finite.
        DoesNotFitError: the disk is too small.
    """
    written = WrittenTensors()
    with CheckpointWriter(folder, merged.specs) as writer:
        for tensor in merged:
            hashes = {spec.name: hashlib.sha256() for spec in tensor.specs}
            for first, values in tensor.parts:
                for (name, sha256), value in zip(hashes.items(), values, strict=True):
                    stored = value.cpu().contiguous()
                    writer.add_rows(name, first, stored)
                    sha256.update(as_bytes(stored))
            written.digests |= {name: sha256.hexdigest() for name, sha256 in hashes.items()}
            written.copied |= hashes.keys() if tensor.copied else set()
            written.survival += [tensor.survival] if tensor.survival else []
            advance(sum(spec.bytes for spec in tensor.specs))
    return written


def as_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor as they are in the file."""
    return memoryview(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())


def digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's bytes in hexadecimal."""
    return hashlib.sha256(as_bytes(tensor)).hexdigest()
