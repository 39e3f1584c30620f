"""Full-size gpt-oss checkpoints: random values under the published names, in the published shapes and dtypes.

They have exactly the size of the real weights, and replace them where only size and format matter: memory, speed,
loading, exporting, serving. The answers are noise. Every tensor depends only on the seed and its own name, so an
interrupted run continues where it stopped and gives the same files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from ossia.checkpoint.layout import DTYPE_BYTES, Shape, TensorSpec, bytes_of, tensors
from ossia.checkpoint.tiny import write_side_files
from ossia.checkpoint.writer import ByteProgress, CheckpointWriter

#: Smallest and largest scale byte: the factors 2^-9 and 2^-3.
SCALES = (118, 124)
_PART_BYTES = 16 * 2**20


def write_synthetic(
    folder: Path | str,
    shape: Shape = Shape.GPT_OSS_20B,
    seed: int = 0,
    progress: ByteProgress | None = None,
    tokenizer_folder: Path | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> Path:
    """Write a synthetic checkpoint in bounded memory (about 0.1 GB beyond torch itself) and return its folder.

    Complete shards of an interrupted run with the same shape and seed are kept.

    Args:
        folder: created if necessary; must not hold another checkpoint.
        shape: 13.8 GB for the 20b, 65.2 GB for the 120b.
        seed: the seed of all values.
        progress: called with (bytes done, bytes in total, tensor name).
        tokenizer_folder: as in `write_tiny`.
        max_shard_bytes: the largest size of one file.

    Raises:
        DoesNotFitError: the disk is too small.
        UserError: the folder holds a different checkpoint.
    """
    folder = Path(folder)
    done, total = 0, bytes_of(shape)
    metadata = {"ossia.synthetic_seed": str(seed)}
    with CheckpointWriter(folder, tensors(shape), max_shard_bytes, metadata, resume=True) as writer:
        kept = writer.done
        for spec in tensors(shape):
            if spec.name not in kept:
                for first, part in _parts(spec, seed):
                    writer.add_rows(spec.name, first, part)
            done += spec.bytes
            if progress is not None:
                progress(done, total, spec.name)
    write_side_files(folder, shape, tokenizer_folder)
    return folder


def synthetic_tensors(shape: Shape, seed: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) as `write_synthetic` writes them, in the layout's order, without using the disk."""
    for spec in tensors(shape):
        yield spec.name, torch.cat([part for _, part in _parts(spec, seed)])


def _parts(spec: TensorSpec, seed: int) -> Iterator[tuple[int, Tensor]]:
    """Yield the tensor in parts of about 16 MB along its first axis: (index of the first row, rows)."""
    row_bytes = prod(spec.shape[1:]) * DTYPE_BYTES[spec.dtype]
    step = max(1, _PART_BYTES // row_bytes)
    for first in range(0, spec.shape[0], step):
        rows = min(step, spec.shape[0] - first)
        digest = hashlib.sha256(f"{seed}:{spec.name}:{first}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        yield first, _random(spec, (rows, *spec.shape[1:]), generator)


def _random(spec: TensorSpec, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if spec.kind == "blocks":
        # Drawing eight random bytes at a time is eight times as fast as drawing one. The size is a multiple of 16.
        words = torch.randint(-(2**63), 2**63 - 1, (prod(shape) // 8,), dtype=torch.int64, generator=generator)
        return words.view(torch.uint8).view(shape)
    if spec.kind == "scales":
        return torch.randint(SCALES[0], SCALES[1] + 1, shape, dtype=torch.uint8, generator=generator)
    noise = torch.randn(shape, generator=generator)
    if spec.kind != "sinks":
        noise.mul_(0.02)
    return (noise.add_(1) if spec.kind == "norm" else noise).to(torch.bfloat16)
