"""Room on the disk of a run: training waits for it rather than lose what it has learnt.

A full disk stops neither the event log nor a checkpoint for good. Training says which file needs how much, waits until
somebody makes room, and goes on. With `train.spare_folder` a checkpoint goes there instead, and training ends.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path

from ossia import events, files
from ossia.errors import OssiaError

_FULL = (errno.ENOSPC, errno.EDQUOT)
#: What torch's and safetensors' own exceptions say of a full disk; they carry no number.
_WORDS = ("no space left", "os error 28", "disk quota", "os error 122", "inline_container", "file write failed")


def is_full(error: BaseException) -> bool:
    """Return whether an exception of the file system, torch or safetensors means that a disk is full."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return any(word in str(error).lower() for word in _WORDS)


class Room:
    """Waits for room on a disk, and tells a person about it."""

    poll_seconds = 5.0

    def __init__(self, say: Callable[[events.Event], None], stop: Callable[[], bool]) -> None:
        """
        Args:
            say: is given a note when waiting begins. It must not write to the full disk.
            stop: whether somebody has asked training to end; waiting ends then too.
        """
        self.say, self.stop = say, stop
        self._said: set[Path] = set()

    def wait(self, path: Path, needed: int) -> None:
        """Return when the disk of a file seems to have room for `needed` more bytes; the caller tries again then.

        Raises:
            OssiaError: somebody asked training to end.
        """
        if path not in self._said:
            self._said.add(path)
            free = files.free_bytes(path.parent)
            message = (
                f"the disk is full: {path} needs {needed / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free. Training "
                "waits until there is room. Ctrl-C ends it. train.spare_folder would name a folder on another disk"
            )
            self.say(events.Note(level="warning", message=message))
        while True:
            if self.stop():
                raise OssiaError(
                    "training was ended while it waited for room on the disk",
                    where=str(path),
                    why=f"{needed / 1e6:,.1f} MB are needed there",
                    do="free disk space, then resume from the newest checkpoint",
                )
            time.sleep(self.poll_seconds)
            if files.free_bytes(path.parent) >= needed:
                return
