"""Writing safetensors checkpoints in the published layout, one tensor at a time and in bounded memory.

`ossia.checkpoint.reader` describes the file format.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from ossia.checkpoint.layout import TORCH_DTYPES, TensorSpec
from ossia.checkpoint.reader import INDEX, SINGLE
from ossia.errors import UserError
from ossia.files import check_disk, write_json

if TYPE_CHECKING:
    import torch

ByteProgress = Callable[[int, int, str], None]
"""Called with (bytes done, bytes in total, name of the file or tensor) while a checkpoint is fetched or made."""


class CheckpointWriter:
    """A writer of a checkpoint whose tensors are all known beforehand. It takes them in any order and keeps none.

    Shards are planned and their headers are written first. Each tensor, or part of one, is then written directly to its
    place in a temporary file under `folder/.partial`. `close` moves the shards into `folder` and writes the index last,
    so that an unfinished checkpoint never looks complete. Use it as a context manager:

        with CheckpointWriter(folder, tensors(shape)) as writer:
            writer.add(name, tensor)

    With `resume`, complete shards of an earlier, interrupted run with the same plan and metadata are kept (see `done`).

    Raises:
        DoesNotFitError: the disk is too full.
        UserError: `folder` already holds a different checkpoint.
    """

    def __init__(
        self,
        folder: Path | str,
        specs: Iterable[TensorSpec],
        max_shard_bytes: int = 5 * 10**9,
        metadata: Mapping[str, str] | None = None,
        resume: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.resume = resume
        self._partial = self.folder / ".partial"
        self._specs = {spec.name: spec for spec in specs}
        self._shards = _plan(list(self._specs.values()), max_shard_bytes)
        self._shard_of = {spec.name: shard for shard, group in self._shards.items() for spec in group}
        self._headers = {shard: _header(group, dict(metadata or {})) for shard, group in self._shards.items()}
        self._left = {name: spec.bytes for name, spec in self._specs.items()}
        self._open: dict[str, BinaryIO] = {}
        self._prepare()

    @property
    def done(self) -> set[str]:
        """Names of the tensors that are completely written."""
        return {name for name, left in self._left.items() if left == 0}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor. Its shape and dtype must be the planned ones."""
        spec = self._specs[name]
        assert tuple(tensor.shape) == spec.shape, f"{name}: {tuple(tensor.shape)} is not {spec.shape}"
        self.add_rows(name, 0, tensor)

    def add_rows(self, name: str, first: int, rows: torch.Tensor) -> None:
        """Write part of a tensor: `rows` begin at index `first` of its first axis. Every row must be written once."""
        import torch

        spec, shard = self._specs[name], self._shard_of[name]
        assert rows.dtype == getattr(torch, TORCH_DTYPES[spec.dtype]), f"{name}: {rows.dtype} is not {spec.dtype}"
        assert tuple(rows.shape[1:]) == spec.shape[1:], f"{name}: {tuple(rows.shape)} are not rows of {spec.shape}"
        size = rows.numel() * rows.element_size()
        assert size <= self._left[name], f"{name} was written already"
        data = rows.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        stream = self._stream(shard)
        stream.seek(self._start(name) + first * (spec.bytes // spec.shape[0]))
        stream.write(data)
        self._left[name] -= size
        if not any(self._left[other.name] for other in self._shards[shard]):
            self._open.pop(shard).close()
            (self._partial / f"{shard}.tmp").replace(self._partial / shard)

    def close(self) -> None:
        """Move the shards into place and write the index. Every tensor must have been written."""
        missing = [name for name, left in self._left.items() if left]
        assert not missing, f"{len(missing)} tensors were not written, {missing[0]} first"
        for shard in self._shards:
            if (self._partial / shard).exists():
                (self._partial / shard).replace(self.folder / shard)
        if len(self._shards) > 1:
            total = sum(spec.bytes for spec in self._specs.values())
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(self._shard_of.items()))}
            write_json(self.folder / INDEX, index)
        shutil.rmtree(self._partial, ignore_errors=True)

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is None:
            self.close()
            return
        for stream in self._open.values():
            stream.close()
        if not self.resume:
            shutil.rmtree(self._partial, ignore_errors=True)

    def _prepare(self) -> None:
        """Check the folder for shards, and the disk for room for the rest."""
        for file in sorted(self.folder.glob("model*.safetensors")):
            if not (self.resume and self._is_planned(file)):
                raise UserError(
                    f"the folder already holds a checkpoint ({file.name})",
                    where=str(self.folder),
                    do="choose another folder, or delete that checkpoint first",
                )
        if not self.resume:
            shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True, exist_ok=True)
        for shard, group in self._shards.items():
            if self._is_planned(self.folder / shard) or self._is_planned(self._partial / shard):
                self._left.update((spec.name, 0) for spec in group)
        check_disk(self.folder, sum(self._left.values()), "the checkpoint")

    def _is_planned(self, file: Path) -> bool:
        """Return whether this file is a shard with the planned header and size.

        Such a shard is complete, because a shard gets this name only after its last byte.
        """
        header = self._headers.get(file.name)
        if header is None or not file.exists():
            return False
        with file.open("rb") as stream:
            same = stream.read(len(header)) == header
        return same and file.stat().st_size == len(header) + sum(spec.bytes for spec in self._shards[file.name])

    def _stream(self, shard: str) -> BinaryIO:
        if shard not in self._open:
            self._open[shard] = (self._partial / f"{shard}.tmp").open("wb")
            self._open[shard].write(self._headers[shard])
        return self._open[shard]

    def _start(self, name: str) -> int:
        shard = self._shard_of[name]
        start = len(self._headers[shard])
        for spec in self._shards[shard]:
            if spec.name == name:
                break
            start += spec.bytes
        return start


def _plan(specs: list[TensorSpec], max_shard_bytes: int) -> dict[str, list[TensorSpec]]:
    """Return the shards' file names, each with its tensors in order. A larger tensor gets a shard of its own."""
    groups: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in specs:
        if groups[-1] and filled + spec.bytes > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(spec)
        filled += spec.bytes
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f"model-{number:05d}-of-{len(groups):05d}.safetensors": group for number, group in enumerate(groups, 1)}


def _header(specs: list[TensorSpec], metadata: dict[str, str]) -> bytes:
    """Return the header's length and JSON, padded with spaces so that data begin at a multiple of eight bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0
    for spec in specs:
        end = offset + spec.bytes
        header[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
