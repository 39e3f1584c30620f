"""Where a model is: a folder, a fetched hub id, or the example model that comes with Ossia. No torch at import."""

from __future__ import annotations

from pathlib import Path

from ossia.errors import UserError
from ossia.harmony.vocabulary import Vocabulary
from ossia.recipes import examples


def locate(path: str | Path) -> Path:
    """Return the folder of a checkpoint.

    Args:
        path: a folder; a hub id or alias among the fetched models; or a compact file (`ossia.model.compact`), possibly
            named `example:...`, which is expanded once per user.

    Raises:
        UserError: there is no such model here.
    """
    folder = Path(examples.resolve(str(path)))
    if (folder / "config.json").is_file():
        return folder
    if folder.is_file():
        from ossia.model.compact import expand

        return expand(folder)
    from ossia.model import hub

    fetched = hub.local(str(path))
    if fetched is not None:
        return fetched
    if folder.is_dir():
        raise UserError("there is no config.json in this folder", where=str(folder), do="ossia fetch gpt-oss-20b")
    raise UserError(f"there is no folder {str(path)!r} and no fetched model of that name", do=f"ossia fetch {path}")


def vocabulary(model: str | Path | None) -> Vocabulary:
    """The vocabulary of a checkpoint named as in `locate`; for None the published one, rebuilt offline."""
    return Vocabulary.load(None if model is None else locate(model))
