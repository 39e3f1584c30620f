"""Reading and writing safetensors checkpoints in the published layout, one tensor at a time and in bounded memory.

A safetensors file is eight bytes of header length (little endian), a JSON header that gives each tensor's dtype, shape
and byte range, then the bytes (github.com/huggingface/safetensors, "Format"). `model.safetensors.index.json` ties
several files together. Headers are read here without torch, so that checking a checkpoint is quick; torch is imported
where a tensor is handed over.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from ossia import files
from ossia.checkpoint import original
from ossia.checkpoint.layout import DTYPE_BYTES, Shape, TensorSpec, config_json, tensors
from ossia.errors import UserError

if TYPE_CHECKING:
    import torch

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
#: Files beside the weights that a checkpoint is used with; whichever exist are copied along.
SIDE_FILES = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "chat_template.jinja", "LICENSE", "USAGE_POLICY"),
)
_HEADER_LIMIT = 100 * 2**20  # the format's own limit
_TORCH_DTYPES = {"U8": "uint8", "BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: bytes `start` to `end` of `file`, counted from the beginning of the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class CheckpointReader:
    """The tensors of a checkpoint folder, known by their headers and loaded on demand, always by their published names.

    A folder in the layout of OpenAI's reference code (`ossia.checkpoint.original`) reads like any other.

    Raises UserError when the folder holds no checkpoint, a file is missing, truncated or not safetensors, or tensors of
    the reference's layout are not those of its config.json.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.stored: dict[str, Stored] = {}
        self._maps: dict[Path, torch.Tensor] = {}
        for file in _shard_files(self.folder):
            for name, stored in read_header(file).items():
                if name in self.stored:
                    raise UserError(
                        f"tensor {name} is in both {self.stored[name].file.name} and {file.name}",
                        where=str(self.folder),
                        do="remove the files that belong to another checkpoint",
                    )
                self.stored[name] = stored
        self.is_original = original.holds(self.stored)
        if self.is_original:
            shape = self.shape()
            _require(self.stored, original.specs(shape), str(self.folder))
            self.stored = original.published(self.stored, shape)

    def names(self) -> list[str]:
        return list(self.stored)

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(stored.end - stored.start for stored in self.stored.values())

    def config(self) -> dict[str, Any]:
        """config.json as published; made from the reference's where the folder has that one."""
        config = read_json(self.folder / "config.json")
        return config_json(self.shape()) if original.is_config(config) else config

    def shape(self) -> Shape:
        """The architecture's figures, from config.json."""
        return read_shape(self.folder)

    @property
    def is_mxfp4(self) -> bool:
        """Whether the experts are packed (`*_blocks` in U8, `*_scales`), as published."""
        return any(name.endswith("_blocks") and stored.dtype == "U8" for name, stored in self.stored.items())

    def check(self, shape: Shape | None = None, mxfp4: bool = True) -> None:
        """Compare every tensor with the layout, by default config.json's own with packed experts.

        Raises UserError that names missing and unexpected tensors and wrong shapes and dtypes.
        """
        if mxfp4 and not self.is_mxfp4:
            raise not_mxfp4(str(self.folder))
        _require(self.stored, tensors(shape or self.shape(), mxfp4), str(self.folder))

    def get(self, name: str) -> torch.Tensor:
        """The tensor, mapped from the file: it costs no memory until it is read, and writing to it changes no file.

        Raises UserError for an unknown name.
        """
        import torch

        stored = self.stored.get(name)
        if stored is None:
            raise UserError(f"the checkpoint has no tensor {name}", where=str(self.folder))
        if stored.dtype not in _TORCH_DTYPES:
            raise UserError(f"tensor {name} has the unknown dtype {stored.dtype}", where=str(stored.file))
        if stored.file not in self._maps:
            size = stored.file.stat().st_size
            storage = torch.UntypedStorage.from_file(str(stored.file), shared=False, nbytes=size)
            self._maps[stored.file] = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (size,))
        dtype: torch.dtype = getattr(torch, _TORCH_DTYPES[stored.dtype])
        raw = self._maps[stored.file][stored.start : stored.end]
        if stored.start % dtype.itemsize:
            raw = raw.clone()  # the format allows unaligned tensors, torch does not
        return raw.view(dtype).view(stored.shape)


def _require(found: Mapping[str, Stored], specs: Iterable[TensorSpec], where: str) -> None:
    """Raise UserError that names what is missing, left over, misshapen or of another dtype."""
    wanted = {spec.name: spec for spec in specs}
    problems = _listed("missing", [name for name in wanted if name not in found])
    problems += _listed("unexpected", [name for name in found if name not in wanted])
    for name, spec in wanted.items():
        stored = found.get(name)
        if stored and (stored.shape, stored.dtype) != (spec.shape, spec.dtype):
            is_ = f"{stored.dtype} {list(stored.shape)} in {stored.file.name}"
            problems.append(f"{name} is {is_}, not {spec.dtype} {list(spec.shape)}")
    if problems:
        more = f" (and {len(problems) - 6} more problems)" if len(problems) > 6 else ""
        raise UserError(
            "the weights do not match the configuration: " + "; ".join(problems[:6]) + more,
            where=where,
            do="download or export the model again, or correct config.json",
        )


def not_mxfp4(where: str) -> UserError:
    """The refusal of a checkpoint whose experts are in another format."""
    return UserError(
        "the experts of this checkpoint are not packed MXFP4",
        where=where,
        why="Ossia trains and serves the published four-bit weights; this model was saved in another format",
        do="use openai/gpt-oss-20b or openai/gpt-oss-120b",
    )


def read_shape(folder: Path) -> Shape:
    """The architecture's figures from a folder's config.json. Raises UserError when it is missing or not gpt-oss's."""
    config, where = read_json(folder / "config.json"), str(folder / "config.json")
    return original.shape_of(config, where) if original.is_config(config) else Shape.from_config(config, where)


def with_weights(folder: Path) -> Path | None:
    """The folder to read of a repository: itself, or its `original/` if only that has weights; None: neither."""
    return original.with_weights(folder, (INDEX, SINGLE))


def side_file(folder: Path, name: str) -> Path | None:
    """A file beside the weights. The tokenizer and the licence of an `original/` folder lie in the folder above it."""
    below = folder.absolute().name == original.FOLDER and name != "config.json"
    places = [folder, folder.absolute().parent] if below else [folder]
    return next((place / name for place in places if (place / name).is_file()), None)


def read_header(file: Path) -> dict[str, Stored]:
    """The tensors of one safetensors file. Raises UserError when it is truncated or damaged."""
    damaged = {"where": str(file), "do": "download or export this file again"}
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, _HEADER_LIMIT):
                raise UserError("this is not a safetensors file, or its beginning is cut off", **damaged)
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        found = {}
        for name, entry in header.items():
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            found[name] = Stored(file, entry["dtype"], tuple(entry["shape"]), start, end)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(file)) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError("the safetensors header is damaged", **damaged) from error
    needed = max((stored.end for stored in found.values()), default=8 + length)
    if needed > size:
        raise UserError(
            f"the file is cut off: it should have {needed:,} bytes and has {size:,}",
            why="a download or a copy was interrupted",
            **damaged,
        )
    for name, stored in found.items():
        if stored.end - stored.start != prod(stored.shape) * DTYPE_BYTES.get(stored.dtype, 0) > 0 or stored.start < 8:
            raise UserError(f"the byte range of {name} does not fit its shape", **damaged)
    return found


class CheckpointWriter:
    """Writes a checkpoint whose tensors are all known beforehand, in any order, holding none of them in memory.

    Shards are planned and their headers written first; each tensor, or part of one, then goes straight to its place in
    a temporary file under `folder/.partial`. `close` moves the shards into `folder` and writes the index last, so an
    unfinished checkpoint never looks like a finished one. Use it as a context manager:

        with CheckpointWriter(folder, tensors(shape)) as writer:
            writer.add(name, tensor)

    With `resume` complete shards of an earlier, interrupted run with the same plan and metadata are kept: see `done`.

    Raises DoesNotFitError when the disk is too full, UserError when `folder` already holds a different checkpoint.
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
        """Write part of a tensor: `rows` belong at index `first` of its first axis. Every row is to be written once."""
        import torch

        spec, shard = self._specs[name], self._shard_of[name]
        assert rows.dtype == getattr(torch, _TORCH_DTYPES[spec.dtype]), f"{name}: {rows.dtype} is not {spec.dtype}"
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
            files.write_json(self.folder / INDEX, index)
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
        """Look at what is in the folder already, and whether the rest has room."""
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
        files.check_disk(self.folder, sum(self._left.values()), "the checkpoint")

    def _is_planned(self, file: Path) -> bool:
        """Whether this is a shard with the planned header and size, and so, being renamed last, a complete one."""
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


def check_disk(folder: Path, needed: int, what: str) -> None:
    """Raise DoesNotFitError unless the disk that holds `folder` has room for `needed` more bytes."""
    files.check_disk(folder, needed, what)


def weights_digest(folder: Path) -> str:
    """Return a hash that changes when a checkpoint's weights do: of each file's size, first and last megabyte."""
    digest = hashlib.sha256()
    for file in _shard_files(folder):
        size = file.stat().st_size
        digest.update(f"{file.name} {size};".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(1 << 20))
            stream.seek(max(0, size - (1 << 20)))
            digest.update(stream.read())
    return digest.hexdigest()


def copy_side_files(source: Path, target: Path) -> list[str]:
    """Copy the tokenizer, the chat template and the configurations; return the names that existed."""
    target.mkdir(parents=True, exist_ok=True)
    present = {name: file for name in SIDE_FILES if (file := side_file(source, name))}
    for name, file in present.items():
        with files.atomic_file(target / name) as temporary:
            shutil.copyfile(file, temporary)
    return list(present)


def write_json(file: Path, content: Any) -> None:
    """Write JSON atomically, indented as the hub's files are."""
    files.write_json(file, content)


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object. Raises UserError when the file is missing or damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        do = "give the folder of a model, or a name such as openai/gpt-oss-20b"
        raise UserError(f"cannot be read: {error.strerror}", where=str(file), do=do) from error
    except ValueError as error:
        raise UserError(f"this is not valid JSON: {error}", where=str(file), do="fetch the file again") from error
    if not isinstance(content, dict):
        raise UserError("this is not a JSON object", where=str(file), do="fetch the file again")
    return content


def _shard_files(folder: Path) -> list[Path]:
    if (folder / INDEX).exists():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError("the index has no weight_map", where=str(folder / INDEX), do="fetch the file again")
        return [folder / name for name in sorted(set(weight_map.values()))]
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    if (folder / "config.json").exists() and original.is_config(read_json(folder / "config.json")):
        shards = sorted(folder.glob("*.safetensors"))
        if shards:
            return shards
    raise UserError(
        f"no checkpoint here: neither {INDEX} nor {SINGLE} exists",
        where=str(folder),
        do="give the folder of a model, or a name such as openai/gpt-oss-20b",
    )


def _listed(word: str, names: list[str]) -> list[str]:
    return [f"{len(names)} {word}, such as {names[0]}"] if names else []


def _plan(specs: list[TensorSpec], max_shard_bytes: int) -> dict[str, list[TensorSpec]]:
    """Shard file names, each with its tensors in order. A tensor larger than a shard gets one of its own."""
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
    """Length and JSON, padded with spaces so that the data begin at a multiple of eight bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0
    for spec in specs:
        end = offset + spec.bytes
        header[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
