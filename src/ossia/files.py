"""Files and folders: the place of the cache, atomic writes, and free disk space.

A file or folder under its final name is always complete. It is written beside its final place under a hidden name and
renamed at the end. So readers find the old content or the new content, also after a crash. This module imports neither
torch nor other modules of Ossia except `errors`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ossia.errors import DoesNotFitError

TEMPORARY = ".*.tmp"
"""Pattern for the names of unfinished files, whose process is writing them or was killed."""
_PARTIAL = ".partial"


def cache_folder() -> Path:
    """Return the folder for files that Ossia can rebuild: $OSSIA_CACHE, or `ossia` in the user's cache folder."""
    if chosen := os.environ.get("OSSIA_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "ossia" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ossia"


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file to write, which replaces `path` if the block succeeds.

    If the block fails, the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            yield temporary
            _to_disk(temporary)
            temporary.replace(path)
            _to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give errors of the file system that name no file, as that of a full disk, the name of this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file atomically. Readers find the old or the new content, also after a crash. Text becomes UTF-8."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, with an indent of two spaces as in the hub's files."""
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def atomic_folder(final: Path, *, partial: Path | None = None, replace: bool = True) -> Iterator[Path]:
    """Yield an empty folder that becomes `final` if the block succeeds, and is removed if it fails.

    Folders that killed processes left in earlier attempts are removed first. Folders that other processes are writing
    stay.

    Args:
        final: the path of the folder when it is complete.
        partial: the path of the folder while it is written, if other code must know it. By default it is beside
            `final`, under a hidden name with the id of this process.
        replace: whether the new folder replaces an existing `final`. Otherwise the existing one stays and the new one
            is removed. So if several processes make the same folder, the first one counts.

    Raises:
        OSError: the file system refuses an operation. The caller should explain it to the user.
    """
    mine = partial or final.with_name(f".{final.name}.{os.getpid()}{_PARTIAL}")
    _remove_leftovers(final)
    shutil.rmtree(mine, ignore_errors=True)
    try:
        mine.mkdir(parents=True)
        yield mine
        for path in (*mine.rglob("*"), mine):
            _to_disk(path)
        if replace and final.exists():
            old = final.with_name(f".{final.name}.{os.getpid()}.old{_PARTIAL}")
            final.rename(old)
            mine.rename(final)
            shutil.rmtree(old, ignore_errors=True)
        else:
            try:
                mine.rename(final)
            except OSError:
                if replace or not final.is_dir():
                    raise
        _to_disk(final.parent)
    finally:
        shutil.rmtree(mine, ignore_errors=True)


def _to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk: a rename must not overtake what it names.

    File systems that cannot do that for folders (Windows, some network disks) are left to themselves.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
    finally:
        os.close(handle)


def _remove_leftovers(final: Path) -> None:
    before = f".{final.name}."
    for leftover in final.parent.glob(f".*{_PARTIAL}"):
        number = leftover.name.removeprefix(before).partition(".")[0]
        if not leftover.name.startswith(before) or not number.isdecimal():
            continue
        # A folder with the id of this process is from an earlier process, because this one has not begun to write.
        if int(number) == os.getpid() or not is_alive(int(number)):
            shutil.rmtree(leftover, ignore_errors=True)


def is_alive(process: int, since: float | None = None) -> bool:
    """Return whether a process is running.

    Args:
        process: the id of the process.
        since: a time at which it was running, in seconds since 1970. A process that began later has the same id but is
            another process.
    """
    import psutil

    try:
        found = psutil.Process(process)
        began_later = since is not None and found.create_time() > since
        return not began_later and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def files_below(folder: Path) -> dict[str, Path]:
    """Return every file below a folder by its relative name with forward slashes, in order. Links are files."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix(): path for path in paths}


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def nearest_existing(path: Path) -> Path:
    """Return the absolute path if it exists, or the nearest parent folder that exists."""
    here = path.absolute()
    while not here.exists():
        here = here.parent
    return here


def free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk where `folder` is or will be."""
    return shutil.disk_usage(nearest_existing(folder)).free


def check_disk(folder: Path, needed: int, what: str) -> None:
    """Check that the disk where `folder` is or will be has space for `needed` more bytes.

    Args:
        folder: the folder to write to.
        needed: the number of bytes.
        what: the subject of the error message, such as a file or a task.

    Raises:
        DoesNotFitError: the disk has less free space.
    """
    free = free_bytes(folder)
    if needed > free:
        raise DoesNotFitError(
            f"{what} needs {needed / 1e9:.1f} GB of disk and {free / 1e9:.1f} GB are free",
            where=str(folder),
            do="free some space, or choose a folder on another disk",
        )
