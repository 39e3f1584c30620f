"""The folder of an export, which appears only when everything in it is written and verified.

An export is written beside its destination under a hidden name, and renamed at the end. A killed process leaves only
the hidden folder. The next export to the same place removes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ossia import files
from ossia.errors import OssiaError, UserError
from ossia.generate.subject import REPORT

_LARGE = 100 * 10**6
"""Bytes above which a file is known again by its size alone."""


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
    if foreign := _foreign(out):
        raise UserError(
            f"the folder holds something that is not an export of Ossia: {foreign}",
            where=str(out),
            why="--overwrite deletes the folder's whole content, and only what an export wrote",
            do="choose another --out, or move your files away",
        )


def manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Return every file of an export with its bytes, and its SHA-256 unless it is large; REPORT is not among them."""
    found: dict[str, dict[str, Any]] = {}
    for name, path in files.files_below(folder).items():
        if name != REPORT:
            size = path.stat().st_size
            found[name] = {"bytes": size} | ({"sha256": files.sha256_of(path)} if size <= _LARGE else {})
    return found


def _foreign(out: Path) -> str:
    """Return in words what in a folder no export of Ossia wrote; empty if all of it is one."""
    try:
        report = json.loads((out / REPORT).read_text(encoding="utf-8"))
        is_ours = report["made_by"].startswith("ossia ")
        written: dict[str, dict[str, Any]] = dict(report["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"there is no {REPORT} of an export"
    if not is_ours:
        return f"another program made its {REPORT}"
    for name, path in files.files_below(out).items():
        if name == REPORT:
            continue
        known = written.get(name)
        if not isinstance(known, dict):
            return f"{name} is not among the files that were exported"
        is_same = path.stat().st_size == known.get("bytes")
        if not is_same or ("sha256" in known and files.sha256_of(path) != known["sha256"]):
            return f"{name} has changed since"
    return ""


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
