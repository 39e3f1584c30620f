"""Compiled rows of one chunk as bytes, which a worker hands back, and the folder that keeps them for the next time.

Layout of a shard: eight bytes (big-endian) with the length n of the JSON; n bytes of JSON; then, per conversation, its
tokens and its bounds as 32-bit integers of the machine, followed by those of its alternatives. Nothing in it names the
file: the same rows elsewhere are the same shard.

In the cache its name is the hash of everything that decides what it holds: the rows' bytes, the settings, the
vocabulary and the compiler's own source text. So nothing has to be cleared by hand after a change of any of them. Rows
that were added to a file leave the chunks before them as they were.
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
"""Settings that decide which rows are compiled and what becomes of them then, but not what a row compiles to."""
MOST_BYTES = 4 << 30
"""Beyond this the chunks that were not used for longest are removed."""

_PROBLEM = ("level", "code", "what", "do", "path")


@dataclass(slots=True)
class Shard:
    """What became of a chunk's rows. They are named by their index in the chunk: a cached shard fits anywhere."""

    rows: int = 0
    formats: dict[str, int] = field(default_factory=dict)
    conversations: list[tuple[int, Rendered]] = field(default_factory=list)
    problems: list[tuple[int, Problem]] = field(default_factory=list)


def pack_shard(shard: Shard) -> bytes:
    """A shard as bytes."""
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
    """What the JSON says of some messages; `_Arrays.rendered` takes it back."""
    return made.kinds, made.labels, _unless_plain(made), len(made.tokens)


def _alternative_head(one: Alternative) -> tuple[object, ...]:
    return one.role, one.begin, _head(one.messages), one.target, one.score


def unpack_shard(data: bytes, file: str = "", numbers: Sequence[int] = ()) -> Shard:
    """The shard in `data`, its rows named by `file` and the number of each row in it.

    Raises:
        ValueError: the bytes are not those of a whole shard of this machine.
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
    """Reads the arrays behind a shard's JSON, one after the other."""

    def __init__(self, data: bytes, place: int) -> None:
        self._view, self._place = memoryview(data), place

    def rendered(self, kinds: str, labels: list[str], weights: list[float] | None, count: int) -> Rendered:
        """The next messages: `count` tokens, and what the JSON says of them."""
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
    """A problem without its place in a file."""
    return dataclasses.replace(problem, file="", line=0)


def _plain(kinds: str) -> list[float]:
    """The weights of messages that nobody has weighted."""
    return [1.0 if kind in ASSISTANT else 0.0 for kind in kinds]


def _unless_plain(made: Rendered) -> list[float] | None:
    return None if made.weights == _plain(made.kinds) else made.weights


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
    """A hash of the source text that turns rows into tokens and problems."""
    digest = hashlib.sha256()
    ossia = Path(__file__).parent.parent
    files = (path for folder in ("harmony", "data") for path in sorted((ossia / folder).rglob("*.py")))
    for path in (ossia / "config.py", ossia / "errors.py", *files):
        digest.update(path.read_bytes())
    return digest.hexdigest()
