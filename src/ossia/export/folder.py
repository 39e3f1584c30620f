"""The folder of an export, which appears only when everything in it is written and verified.

An export is written beside its destination under a hidden name, and renamed at the end. A killed process leaves only
the hidden folder. The next export to the same place removes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ossia import files
from ossia.errors import OssiaError, UserError

REPORT = "report.json"


def check_destination(out: Path, *, overwrite: bool, sources: tuple[Path, ...]) -> None:
    """Check that an export may be written to `out`: it is new, empty, or an earlier export that may be replaced.

    Args:
        overwrite: whether an earlier export may be replaced.
        sources: folders that the export reads. None of them may be in `out`.

    Raises:
        UserError: `out` may not become an export.
    """
    here = out.resolve()
    for source in sources:
        if source.resolve() == here or source.resolve().is_relative_to(here):
            raise UserError(
                "the export would replace the folder that it is made from", where=str(out), do="choose another --out"
            )
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise UserError("there is a file of this name", where=str(out), do="choose another --out")
    if not overwrite:
        raise UserError("the folder is not empty", where=str(out), do="choose another --out, or add --overwrite")
    if not (out / REPORT).is_file():
        raise UserError(
            f"the folder is not an export of Ossia (there is no {REPORT})",
            where=str(out),
            why="--overwrite deletes the folder's whole content",
            do="choose another --out, or delete the folder yourself",
        )


@contextmanager
def export_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `out` when the block ends without an exception. Else it is removed.

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
