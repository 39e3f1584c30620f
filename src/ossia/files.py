"""Files and folders: where the cache is, writing that nobody sees half done, and room on the disk.

What is written under its final name is complete. It is made beside its place under a hidden name and renamed at the
end, so a reader or a crash sees the old content or the new one. No torch, and nothing of Ossia but its errors.
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
"""Pattern of the names of files that are being written, or that a killed process left."""
_PARTIAL = ".partial"


def cache_folder() -> Path:
    """Return where Ossia keeps what it can rebuild: $OSSIA_CACHE, else `ossia` in the user's cache folder."""
    if chosen := os.environ.get("OSSIA_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "ossia" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ossia"


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield the name of a file to write, which takes the place of `path` when the block ends well, and goes if not."""
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
    """Write a file so that a reader or a crash sees the old or the new content, never a part. Text becomes UTF-8."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, indented as the hub's files are."""
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def atomic_folder(final: Path, *, partial: Path | None = None, replace: bool = True) -> Iterator[Path]:
    """Yield an empty folder that becomes `final` when the block ends well, and is removed when it does not.

    What killed processes left of earlier attempts is removed first; what a living one is writing stays.

    Args:
        partial: where it is while it is written, if others must know the place; by default beside `final`, under a
            hidden name with the number of this process.
        replace: an older `final` makes place. False: it stays, and what was written is thrown away; so of several
            processes that make the same folder the first one counts.

    Raises:
        OSError: from the file system, for the caller to explain.
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
        # Our own number was another process's before: this one has not begun to write.
        if int(number) == os.getpid() or not is_alive(int(number)):
            shutil.rmtree(leftover, ignore_errors=True)


def is_alive(process: int, since: float | None = None) -> bool:
    """Return whether a process runs.

    Args:
        since: when it was known to run, in seconds since 1970. A process that began later only has its number.
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


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def nearest_existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists, absolute."""
    here = path.absolute()
    while not here.exists():
        here = here.parent
    return here


def free_bytes(folder: Path) -> int:
    """Return the bytes that are free on the disk where `folder` is or will be."""
    return shutil.disk_usage(nearest_existing(folder)).free


def check_disk(folder: Path, needed: int, what: str) -> None:
    """Raise DoesNotFitError unless the disk where `folder` is or will be has room for `needed` more bytes."""
    free = free_bytes(folder)
    if needed > free:
        raise DoesNotFitError(
            f"{what} needs {needed / 1e9:.1f} GB of disk and {free / 1e9:.1f} GB are free",
            where=str(folder),
            do="free some space, or choose a folder on another disk",
        )
