"""Reading safetensors checkpoints, their configuration and the files beside the weights, in bounded memory.

A safetensors file (github.com/huggingface/safetensors, "Format") begins with the header's length in eight bytes, little
endian. A JSON header with each tensor's dtype, shape and byte range follows, then the bytes of the tensors. Where a
checkpoint has several files, `model.safetensors.index.json` lists the file of each tensor. Headers are read without
torch, so that checking a checkpoint is quick. torch is imported only to return a tensor.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ossia import files
from ossia.checkpoint import original
from ossia.checkpoint.layout import DTYPE_BYTES, TORCH_DTYPES, Shape, TensorSpec, config_json, tensors
from ossia.errors import UserError

if TYPE_CHECKING:
    import torch

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
#: The files beside the weights that belong to a checkpoint. Those that exist are copied with it.
SIDE_FILES = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "chat_template.jinja", "LICENSE", "USAGE_POLICY"),
)
_HEADER_LIMIT = 100 * 2**20  # the format's own limit


@dataclass(frozen=True)
class Stored:
    """The place of a tensor: bytes `start` to `end` of `file`, counted from the beginning of the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class CheckpointReader:
    """The tensors of a checkpoint folder, under their published names. Headers are read at once, tensors on demand.

    A folder in the layout of OpenAI's reference code (`ossia.checkpoint.original`) is read like any other.

    Raises:
        UserError: the folder holds no checkpoint, or a file is missing, truncated or not safetensors. Also if tensors
            of the reference's layout do not match its config.json.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.stored: dict[str, Stored] = {}
        self._maps: dict[Path, torch.Tensor] = {}
        for file in _shard_files(self.folder):
            for name, stored in stored_tensors(file).items():
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
            self.stored = original.as_published(self.stored, shape)

    def names(self) -> list[str]:
        """Return the published names of all tensors."""
        return list(self.stored)

    @property
    def bytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(stored.end - stored.start for stored in self.stored.values())

    def config(self) -> dict[str, Any]:
        """Return config.json as published. It is converted if the folder has the reference's."""
        config = read_json(self.folder / "config.json")
        return config_json(self.shape()) if original.is_config(config) else config

    def shape(self) -> Shape:
        """Return the architecture's hyperparameters, from config.json."""
        return read_shape(self.folder)

    @property
    def is_mxfp4(self) -> bool:
        """Whether the experts are packed (`*_blocks` in U8, `*_scales`), as published."""
        return any(name.endswith("_blocks") and stored.dtype == "U8" for name, stored in self.stored.items())

    def check(self, shape: Shape | None = None, mxfp4: bool = True) -> None:
        """Compare every tensor with the layout, by default that of config.json with packed experts.

        Raises:
            UserError: the message names missing and unexpected tensors, and wrong shapes and dtypes.
        """
        if mxfp4 and not self.is_mxfp4:
            raise not_mxfp4(str(self.folder))
        _require(self.stored, tensors(shape or self.shape(), mxfp4), str(self.folder))

    def get(self, name: str) -> torch.Tensor:
        """Return a tensor, mapped from the file. It takes no memory until it is read, and writes do not reach the file.

        Raises:
            UserError: the checkpoint has no tensor of this name, or the tensor has an unknown dtype.
        """
        import torch

        stored = self.stored.get(name)
        if stored is None:
            raise UserError(f"the checkpoint has no tensor {name}", where=str(self.folder))
        if stored.dtype not in TORCH_DTYPES:
            raise UserError(f"tensor {name} has the unknown dtype {stored.dtype}", where=str(stored.file))
        if stored.file not in self._maps:
            size = stored.file.stat().st_size
            storage = torch.UntypedStorage.from_file(str(stored.file), shared=False, nbytes=size)
            self._maps[stored.file] = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (size,))
        dtype: torch.dtype = getattr(torch, TORCH_DTYPES[stored.dtype])
        raw = self._maps[stored.file][stored.start : stored.end]
        if stored.start % dtype.itemsize:
            raw = raw.clone()  # the format allows unaligned tensors, torch does not
        return raw.view(dtype).view(stored.shape)


def _require(found: Mapping[str, Stored], specs: Iterable[TensorSpec], where: str) -> None:
    """Raise UserError that names missing and unexpected tensors, and wrong shapes and dtypes."""
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
    """Return the error for a checkpoint whose experts are in another format."""
    return UserError(
        "the experts of this checkpoint are not packed MXFP4",
        where=where,
        why="Ossia trains and serves the published four-bit weights; this model was saved in another format",
        do="use openai/gpt-oss-20b or openai/gpt-oss-120b",
    )


def read_shape(folder: Path) -> Shape:
    """Return the architecture's hyperparameters from a folder's config.json.

    Raises:
        UserError: the file is missing or not gpt-oss's.
    """
    config, where = read_json(folder / "config.json"), str(folder / "config.json")
    return original.shape_from_config(config, where) if original.is_config(config) else Shape.from_config(config, where)


def with_weights(folder: Path) -> Path | None:
    """Return the folder of a repository to read: itself, or its `original/` if it has no weights of its own.

    Return None if neither has a config.json.
    """
    below = folder / original.SUBFOLDER
    if not any((folder / name).is_file() for name in (INDEX, SINGLE)) and (below / "config.json").is_file():
        return below
    return folder if (folder / "config.json").is_file() else None


def side_file(folder: Path, name: str) -> Path | None:
    """Return a file beside the weights, or None.

    The tokenizer and the licence of an `original/` folder lie in the folder above it.
    """
    below = folder.absolute().name == original.SUBFOLDER and name != "config.json"
    places = [folder, folder.absolute().parent] if below else [folder]
    return next((place / name for place in places if (place / name).is_file()), None)


def stored_tensors(file: Path) -> dict[str, Stored]:
    """Return the tensors of one safetensors file by name.

    Raises:
        UserError: the file cannot be read, is truncated or is damaged.
    """
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
            shape = tuple(entry["shape"])
            if any(type(size) is not int or size < 0 for size in shape) or not isinstance(entry["dtype"], str):
                raise TypeError(name)
            found[name] = Stored(file, entry["dtype"], shape, start, end)
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


def copy_side_files(source: Path, target: Path) -> list[str]:
    """Copy the files of `SIDE_FILES` that exist in `source` (tokenizer, configurations, ...). Return their names."""
    target.mkdir(parents=True, exist_ok=True)
    present = {name: file for name in SIDE_FILES if (file := side_file(source, name))}
    for name, file in present.items():
        with files.atomic_file(target / name) as temporary:
            shutil.copyfile(file, temporary)
    return list(present)


def read_json(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        UserError: the file is missing or damaged.
    """
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
        for name in weight_map.values():
            if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name or "\\" in name:
                raise UserError(
                    f"the index names {str(name)[:60]!r}, which is not a file of this folder",
                    where=str(folder / INDEX),
                    why="a checkpoint consists of files in its own folder",
                    do="fetch the file again",
                )
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
