"""Finding a model: a folder, a fetched hub id, or the example model that comes with Ossia.

torch is not imported with this module.
"""

from __future__ import annotations

from pathlib import Path

from ossia.checkpoint.layout import Shape
from ossia.checkpoint.reader import read_shape, side_file, with_weights
from ossia.errors import UserError
from ossia.harmony.tokenizer.vocabulary import Vocabulary, offline_tokenizer_folder
from ossia.recipes import examples


def locate(path: str | Path) -> Path:
    """Return the folder of a checkpoint.

    Args:
        path: a folder, a hub id or an alias of a fetched model, or a compact file (`ossia.checkpoint.compact`). A
            folder holds a checkpoint, or one in the reference's layout in its `original/`. A compact file may be named
            `example:...`, and is expanded once per user.

    Raises:
        UserError: the model is not on this machine.
    """
    folder = Path(examples.resolve(str(path)))
    found = with_weights(folder)
    if found is not None:
        return found
    if folder.is_file():
        from ossia.checkpoint.compact import expand_compact

        return expand_compact(folder)
    from ossia.checkpoint import hub

    fetched = hub.local(str(path))
    if fetched is not None:
        return fetched
    if folder.is_dir():
        raise UserError("there is no config.json in this folder", where=str(folder), do="ossia fetch gpt-oss-20b")
    raise UserError(f"there is no folder {str(path)!r} and no fetched model of that name", do=f"ossia fetch {path}")


def vocabulary(model: str | Path | None) -> Vocabulary:
    """Return the vocabulary of a checkpoint, named as in `locate`; for None the published one, rebuilt offline."""
    return Vocabulary.load(None if model is None else tokenizer_folder(locate(model)))


def tokenizer_folder(checkpoint: Path) -> Path:
    """Return the folder with a checkpoint's tokenizer.json.

    It is the checkpoint's own folder, or the one above `original/`. A checkpoint of the published vocabulary without
    this file gets the folder of the published tokenizer, which is rebuilt offline.

    Raises:
        UserError: the file is missing, and the vocabulary is not the published one or cannot be rebuilt here.
    """
    file = side_file(checkpoint, "tokenizer.json")
    if file is not None:
        return file.parent
    if read_shape(checkpoint).vocabulary == Shape.GPT_OSS_20B.vocabulary:
        return offline_tokenizer_folder()
    raise UserError(
        "the checkpoint has no tokenizer.json, and its vocabulary is not the published one",
        where=str(checkpoint),
        do="copy the model's tokenizer.json and tokenizer_config.json into the folder",
    )
