"""The export's folder: it appears when everything in it is written and verified, and not before.

An export is written beside its destination under a hidden name and renamed at the end. A killed process leaves only
such a hidden folder, which the next export to the same place removes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ossia.errors import OssiaError, UserError

REPORT = "report.json"
_PARTIAL = ".partial"


def check(out: Path, *, overwrite: bool, sources: tuple[Path, ...]) -> None:
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
def writing(out: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `out` when the block ends well, and is removed when it does not.

    Raises:
        OssiaError: the disk is full or not writable.
    """
    partial = out.with_name(f".{out.name}.{os.getpid()}{_PARTIAL}")
    try:
        _remove_leftovers(out)
        partial.mkdir(parents=True)
        yield partial
        _replace(partial, out)
    except OSError as error:
        raise OssiaError(
            f"the export could not be written ({error.strerror or error})",
            where=str(out),
            do="check the free space and the permissions of that folder, then run the command again",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(partial: Path, out: Path) -> None:
    if not out.exists():
        partial.rename(out)
        return
    old = out.with_name(f".{out.name}.{os.getpid()}.old{_PARTIAL}")
    out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _remove_leftovers(out: Path) -> None:
    """Remove what killed processes left; what a living one is writing stays."""
    for leftover in out.parent.glob(f".{out.name}.*{_PARTIAL}"):
        process = leftover.name.removeprefix(f".{out.name}.").split(".")[0]
        if process.isdigit() and not _is_alive(int(process)):
            shutil.rmtree(leftover, ignore_errors=True)


def _is_alive(process: int) -> bool:
    if process == os.getpid():
        return False  # a number used again: this process has not begun to write yet
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
