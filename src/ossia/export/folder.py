"""The export's folder: it appears when everything in it is written and verified, and not before.

An export is written beside its destination under a hidden name and renamed at the end. A killed process leaves only
such a hidden folder, which the next export to the same place removes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ossia import files
from ossia.errors import OssiaError, UserError

REPORT = "report.json"


def check_destination(out: Path, *, overwrite: bool, sources: tuple[Path, ...]) -> None:
    """Raise UserError unless `out` may become an export: it is new, empty, or an earlier export to be replaced."""
    here = out.resolve()
    for source in sources:
        if source.resolve() == here or source.resolve().is_relative_to(here):
            raise UserError("the export would replace what it is made from", where=str(out), do="choose another --out")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise UserError("there is a file of this name", where=str(out), do="choose another --out")
    if not overwrite:
        raise UserError("the folder is not empty", where=str(out), do="choose another --out, or add --overwrite")
    if not (out / REPORT).is_file():
        raise UserError(
            f"the folder holds something that is not an export of Ossia (there is no {REPORT})",
            where=str(out),
            why="--overwrite deletes the folder's whole content",
            do="choose another --out, or delete the folder yourself",
        )


@contextmanager
def export_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `out` when the block ends well, and is removed when it does not.

    Raises:
        OssiaError: the disk is full or not writable.
    """
    try:
        with files.atomic_folder(out) as partial:
            yield partial
    except OSError as error:
        raise OssiaError(
            f"the export could not be written ({error.strerror or error})",
            where=str(out),
            do="check the free space and the permissions of that folder, then run the command again",
        ) from error
