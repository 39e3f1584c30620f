"""A tiny checkpoint in one small file: the format of the demo's embedded base model.

A model of width 128 is small, but its vocabulary of 201,088 is not. Embedding and head take 103 MB of its checkpoint.
Nearly all of their rows are equal, because the model never saw those words. The file holds the row of those words once.
Its other tensors are the checkpoint's own bytes. Expanding it gives a checkpoint in the published layout, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ossia import files
from ossia.checkpoint.layout import Shape, tensors
from ossia.checkpoint.reader import CheckpointReader
from ossia.checkpoint.tiny import write_side_files
from ossia.checkpoint.writer import CheckpointWriter
from ossia.errors import UserError

_TABLES = ("model.embed_tokens.weight", "lm_head.weight")
IDS = "vocabulary_ids"
"""Name of the tensor int32 [U] with the token of each row.

The last row of embedding and head, number U, belongs to all other tokens.
"""


def compress(folder: Path, file: Path) -> None:
    """Write the checkpoint of a folder to one file. Rows of embedding and head that equal the last are stored once."""
    reader = CheckpointReader(folder)
    kept = {name: reader.get(name) for name in reader.names()}
    own = torch.zeros(len(kept[_TABLES[0]]), dtype=torch.bool)
    for name in _TABLES:
        own |= (kept[name] != kept[name][-1]).any(1)
    ids = own.nonzero()[:, 0]
    for name in _TABLES:
        kept[name] = torch.cat([kept[name][ids], kept[name][-1:]])
    kept[IDS] = ids.to(torch.int32)
    save_file(
        {name: tensor.contiguous() for name, tensor in kept.items()}, file, {"config": json.dumps(reader.config())}
    )


def expand_compact(file: Path) -> Path:
    """Return the folder of the expanded checkpoint in a file made by `compress`.

    The folder lies in the user's cache. It is made at the first call and kept.

    Raises:
        UserError: the file is not a compact checkpoint.
    """
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    folder = files.cache_folder() / "models" / f"{file.stem}-{digest}"
    if (folder / "config.json").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)  # incomplete
    kept, config = _read(file)
    shape = Shape.from_config(config, where=str(file))
    with files.atomic_folder(folder, replace=False) as made:
        with CheckpointWriter(made, tensors(shape)) as writer:
            for spec in tensors(shape):
                tensor = kept[spec.name]
                writer.add(spec.name, _full(tensor, kept[IDS], shape.vocabulary) if spec.name in _TABLES else tensor)
        write_side_files(made, shape)
    return folder


def _full(rows: Tensor, ids: Tensor, vocabulary: int) -> Tensor:
    full = rows[-1].expand(vocabulary, -1).clone()
    full[ids.long()] = rows[:-1]
    return full


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(file, framework="pt") as stored:
            names = stored.keys()
            return {name: stored.get_tensor(name) for name in names}, json.loads(stored.metadata()["config"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"not a compact checkpoint ({error})", where=str(file)) from None
