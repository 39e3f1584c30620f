"""Compiled rows of one chunk as bytes (a shard), and the folder that keeps shards for later runs.

Worker processes return shards. A shard has eight bytes (big-endian) with the length n of the JSON, then n bytes of
JSON, then the arrays. Each conversation has its tokens and its bounds as 32-bit integers in the byte order of the
machine, followed by those of its alternatives. A shard does not contain the name of the file. Equal rows of different
files have equal shards.

The name of a shard in the cache is a hash. It covers the bytes of the rows, the settings, the vocabulary and the source
text of the compiler. So a change of one of these needs no manual clearing of the cache. Rows that are appended to a
file do not change the chunks before them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import sys
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ossia.config import DataSection
from ossia.data.kinds import ASSISTANT
from ossia.data.rendered import Alternative, Rendered, TargetTurn
from ossia.data.sources import Chunk
from ossia.errors import Problem
from ossia.files import cache_folder, write_atomically

_WITHOUT_EFFECT = {"train", "validation", "validation_share", "strict", "cache"}
"""Settings that do not change the compiled form of a row. They select the rows, or apply after compiling."""
MOST_BYTES = 4 << 30
"""The largest size of the cache in bytes. Above it the least recently used shards are removed."""

_PROBLEM = ("level", "code", "what", "do", "path")


@dataclass(slots=True)
class Shard:
    """The results of a chunk's rows.

    A row is identified by its index in the chunk. So a cached shard is valid at any place in any file.
    """

    rows: int = 0
    formats: dict[str, int] = field(default_factory=dict)
    """Format -> rows."""
    conversations: list[tuple[int, Rendered]] = field(default_factory=list)
    """Index of the row, and its usable conversation."""
    problems: list[tuple[int, Problem]] = field(default_factory=list)
    """Index of the row, and a problem without its file and line."""


def pack_shard(shard: Shard) -> bytes:
    """Return a shard as bytes, in the layout of the module's docstring."""
    head = {
        "order": sys.byteorder,
        "rows": shard.rows,
        "formats": shard.formats,
        "problems": [(index, *(getattr(problem, key) for key in _PROBLEM)) for index, problem in shard.problems],
        "conversations": [
            (index, *_head(made), made.targets, made.facts, [_alternative_head(one) for one in made.alternatives])
            for index, made in shard.conversations
        ],
    }
    text = json.dumps(head, separators=(",", ":")).encode("ascii")
    arrays: list[array[int]] = []
    for _, made in shard.conversations:
        arrays += (made.tokens, made.bounds)
        for one in made.alternatives:
            arrays += (one.messages.tokens, one.messages.bounds)
    return b"".join([len(text).to_bytes(8, "big"), text, *(part.tobytes() for part in arrays)])


def _head(made: Rendered) -> tuple[object, ...]:
    """Return the part of some messages that is stored in the JSON. `_Arrays.rendered` reads it."""
    return made.kinds, made.labels, _unless_plain(made), len(made.tokens)


def _alternative_head(one: Alternative) -> tuple[object, ...]:
    return one.role, one.begin, _head(one.messages), one.target, one.score


def unpack_shard(data: bytes, file: str = "", numbers: Sequence[int] = ()) -> Shard:
    """Return the shard in `data`.

    Args:
        file: the file of the rows, for the places of conversations and problems.
        numbers: the number of each row of the chunk in that file.

    Raises:
        ValueError: the bytes are not a complete shard, or were written on a machine with another byte order.
    """
    size = int.from_bytes(data[:8], "big")
    head = json.loads(data[8 : 8 + size])
    if head["order"] != sys.byteorder:
        raise ValueError("written on a machine with another byte order")
    shard, arrays = Shard(head["rows"], head["formats"]), _Arrays(data, 8 + size)

    def number(index: int) -> int:
        return numbers[index] if index < len(numbers) else 0

    for index, kinds, labels, weights, count, targets, facts, alternatives in head["conversations"]:
        made = arrays.rendered(kinds, labels, weights, count)
        made.source, made.facts = f"{file}:{number(index)}", facts
        made.targets = [TargetTurn(*target) for target in targets]
        for role, begin, own, target, score in alternatives:
            made.alternatives.append(Alternative(role, begin, arrays.rendered(*own), TargetTurn(*target), score))
        shard.conversations.append((index, made))
    for index, *values in head["problems"]:
        fields: dict[str, Any] = dict(zip(_PROBLEM, values, strict=True))
        shard.problems.append((index, Problem(**fields, file=file, line=number(index))))
    return shard


class _Arrays:
    """A reader of the arrays that follow a shard's JSON. Each call reads the next ones."""

    def __init__(self, data: bytes, place: int) -> None:
        self._view, self._place = memoryview(data), place

    def rendered(self, kinds: str, labels: list[str], weights: list[float] | None, count: int) -> Rendered:
        """Return the next messages, from `count` tokens, their bounds and their values in the JSON."""
        tokens, bounds = self._next(count), self._next(4 * len(kinds))
        weights = weights if weights is not None else _plain(kinds)
        return Rendered("", kinds, tokens, bounds, list(map(sys.intern, labels)), weights)

    def _next(self, length: int) -> array[int]:
        part = array("i")
        end = self._place + length * part.itemsize
        if end > len(self._view):
            raise ValueError("the shard is cut off")
        part.frombytes(self._view[self._place : end])
        self._place = end
        return part


def bare(problem: Problem) -> Problem:
    """Return the problem without its file and line."""
    return dataclasses.replace(problem, file="", line=0)


def _plain(kinds: str) -> list[float]:
    """Return the default weights: 1 for messages of the assistant, 0 for others."""
    return [1.0 if kind in ASSISTANT else 0.0 for kind in kinds]


def _unless_plain(made: Rendered) -> list[float] | None:
    return None if made.weights == _plain(made.kinds) else made.weights


class Cache:
    """The packed shards of chunks, for one combination of settings and vocabulary."""

    def __init__(self, settings: DataSection, vocabulary_digest: str, folder: Path | None = None) -> None:
        choices = json.dumps(settings.model_dump(exclude=_WITHOUT_EFFECT), sort_keys=True)
        self._salt = hashlib.blake2b(f"{choices}|{vocabulary_digest}|{compiler_digest()}".encode()).digest()
        self._folder = folder or cache_folder() / "compiled"

    def read(self, chunk: Chunk) -> Shard | None:
        """Return the shard of a chunk, or None if it is missing or damaged."""
        path = self._path(chunk)
        try:
            shard = unpack_shard(path.read_bytes(), chunk.file, chunk.numbers)
            os.utime(path)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return shard

    def write(self, chunk: Chunk, data: bytes) -> None:
        """Write a packed shard. OS errors are ignored, such as a full disk or a folder without write permission."""
        path = self._path(chunk)
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data)

    def trim(self, most: int = MOST_BYTES) -> None:
        """Remove the least recently used shards, so that the rest has at most `most` bytes. OS errors are ignored."""
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
    """Return a hash of the source text that determines the tokens and problems of a row."""
    digest = hashlib.sha256()
    ossia = Path(__file__).parent.parent
    files = (path for folder in ("harmony", "data") for path in sorted((ossia / folder).rglob("*.py")))
    for path in (ossia / "config.py", ossia / "errors.py", *files):
        digest.update(path.read_bytes())
    return digest.hexdigest()
