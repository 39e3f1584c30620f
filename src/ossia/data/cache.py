"""Compiled chunks on disk, named by the hash of everything that decides what they hold.

That is the rows' bytes, the settings, the vocabulary and the compiler's own source text, so nothing has to be cleared
by hand after a change of any of them. Rows that were added to a file leave the chunks before them as they were.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ossia.config import DataSection
from ossia.data.shard import Shard, unpack_shard
from ossia.data.sources import Chunk
from ossia.harmony.tokenizer.files import cache_folder
from ossia.runs import write_atomically

_WITHOUT_EFFECT = {"train", "validation", "validation_share", "strict", "cache"}
"""Settings that decide which rows are compiled and what becomes of them then, but not what a row compiles to."""
MOST_BYTES = 4 << 30
"""Beyond this the chunks that were not used for longest are removed."""


class Cache:
    """Packed shards by chunk, for one way of compiling."""

    def __init__(self, settings: DataSection, vocabulary_digest: str, folder: Path | None = None) -> None:
        choices = json.dumps(settings.model_dump(exclude=_WITHOUT_EFFECT), sort_keys=True)
        self._salt = hashlib.blake2b(f"{choices}|{vocabulary_digest}|{compiler_digest()}".encode()).digest()
        self._folder = folder or cache_folder() / "compiled"

    def read(self, chunk: Chunk) -> Shard | None:
        """The shard of a chunk; None if it is not there or damaged."""
        path = self._path(chunk)
        try:
            shard = unpack_shard(path.read_bytes(), chunk.file, chunk.numbers)
            os.utime(path)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return shard

    def write(self, chunk: Chunk, data: bytes) -> None:
        """Keep a packed shard. A full disk or a folder without write permission is no reason to stop."""
        path = self._path(chunk)
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data)

    def trim(self, most: int = MOST_BYTES) -> None:
        """Remove the shards that were not used for longest until the rest has at most `most` bytes."""
        with suppress(OSError):
            found = sorted(self._entries(), reverse=True)
            total = 0
            for _, size, path in found:
                total += size
                if total > most:
                    path.unlink(missing_ok=True)

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        for path in self._folder.glob("??/*"):
            status = path.stat()
            yield status.st_mtime, status.st_size, path

    def _path(self, chunk: Chunk) -> Path:
        digest = hashlib.blake2b(chunk.text, key=self._salt, digest_size=20)
        digest.update(json.dumps(sorted(chunk.errors.items())).encode())
        name = digest.hexdigest()
        return self._folder / name[:2] / name[2:]


@functools.lru_cache(maxsize=1)
def compiler_digest() -> str:
    """A hash of the source text that turns rows into tokens."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for folder in (here.parent / "harmony", here):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
