"""The identity of a base model: the SHA-256 of every tensor, whatever files and layout hold them.

Two folders hold the same base if all tensors and the architecture's figures are equal. The published layout, the
layout of OpenAI's reference code and other divisions into files therefore have one identity. Digests are computed once
for a file and kept in the cache, by path, size, inode and times of change. No torch is imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import mmap
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from ossia.checkpoint.layout import Shape
from ossia.checkpoint.reader import CheckpointReader, Stored
from ossia.files import cache_folder, write_json

Range = tuple[int, int]

_SETTLED_SECONDS = 2.0
"""A file that changed less than this ago is hashed and not remembered: a second change may bear the same time."""
_CHUNK = 1 << 24
_LITTLE = 500 * 10**6
"""Bytes that are hashed in a fraction of a second, without a report."""


@dataclass(frozen=True)
class BaseIdentity:
    """What a base model consists of.

    `tensors` maps the published name of each tensor to "DTYPE [shape] SHA-256 of its bytes". `shape` holds the
    architecture's figures, which no tensor shows (rope, sliding window, limits).
    """

    tensors: dict[str, str]
    shape: dict[str, Any]

    @property
    def sha256(self) -> str:
        """One hash of everything, hexadecimal."""
        text = json.dumps([self.tensors, self.shape], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def difference(self, other: BaseIdentity) -> str:
        """Return in words where two bases differ; empty if they are equal."""
        figures = [name for name in {*self.shape, *other.shape} if self.shape.get(name) != other.shape.get(name)]
        if figures:
            name = min(figures)
            return f"config.json: {name} is {other.shape.get(name)} and was {self.shape.get(name)}"
        names = sorted({*self.tensors, *other.tensors})
        changed = [name for name in names if self.tensors.get(name) != other.tensors.get(name)]
        return f"{len(changed)} of {len(names)} tensors differ, such as {changed[0]}" if changed else ""

    def to_json(self) -> dict[str, Any]:
        """Return the form that is stored in a run."""
        return {"sha256": self.sha256, "shape": self.shape, "tensors": self.tensors}


def base_identity(folder: Path, progress: Callable[[int, int, str], None] | None = None) -> BaseIdentity:
    """Return the identity of a checkpoint folder.

    Args:
        folder: as `ossia.checkpoint.locate.locate` returns it.
        progress: called with (bytes done, bytes in total, file name) where much has to be hashed.

    Raises:
        UserError: the folder holds no readable checkpoint.
    """
    reader = CheckpointReader(folder)
    shape = reader.shape()
    by_file: dict[Path, list[Stored]] = {}
    for stored in reader.stored.values():
        by_file.setdefault(stored.file, []).append(stored)
    digests: dict[tuple[Path, Range], str] = {}
    done, total = 0, reader.bytes
    is_quick = total < _LITTLE or all(_remembered(_memory(file), _stamp(file)) for file in by_file)
    for file, held in by_file.items():
        if progress is not None and not is_quick:
            progress(done, total, file.name)
        ranges = [(stored.start, stored.end) for stored in held]
        digests |= {(file, place): digest for place, digest in range_digests(file, ranges).items()}
        done += sum(end - start for start, end in ranges)
    described = {
        name: f"{stored.dtype} {list(stored.shape)} {digests[stored.file, (stored.start, stored.end)]}"
        for name, stored in sorted(reader.stored.items())
    }
    return BaseIdentity(described, _figures(shape))


def range_digests(file: Path, ranges: Iterable[Range]) -> dict[Range, str]:
    """Return the SHA-256 of each byte range of a file, from the cache where the file has not changed since.

    Raises:
        OSError: the file cannot be read.
    """
    wanted, memory = list(ranges), _memory(file)
    with _alone(memory):
        stamp = _stamp(file)
        known = _remembered(memory, stamp)
        missing = [place for place in wanted if place not in known]
        if missing:
            known |= _hashed(file, missing)
            changed_at = max(stamp[2], stamp[3]) / 1e9
            if _stamp(file) == stamp and time.time() - changed_at > _SETTLED_SECONDS:
                rows = [[start, end, digest] for (start, end), digest in sorted(known.items())]
                with contextlib.suppress(OSError):  # a cache that cannot be written costs time and nothing else
                    write_json(memory, {"file": str(file.resolve()), "stamp": stamp, "ranges": rows})
    return {place: known[place] for place in wanted}


@contextlib.contextmanager
def _alone(memory: Path) -> Iterator[None]:
    """Of the processes of a job one hashes a file, and the others then find its digests in the cache."""
    lock = FileLock(memory.with_suffix(".lock"))
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError:  # the cache cannot be written
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _figures(shape: Shape) -> dict[str, Any]:
    """The figures in one spelling: a whole number and the same as a fraction are equal."""
    kinds = {field.name: field.type for field in dataclasses.fields(shape)}
    return {
        name: float(value) if kinds[name] == "float" else value for name, value in dataclasses.asdict(shape).items()
    }


def _hashed(file: Path, ranges: list[Range]) -> dict[Range, str]:
    """Hash on all cores: hashlib works outside the interpreter's lock."""
    with file.open("rb") as stream, contextlib.ExitStack() as stack:
        if not file.stat().st_size:
            return dict.fromkeys(ranges, hashlib.sha256().hexdigest())
        view = memoryview(stack.enter_context(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)))
        stack.callback(view.release)

        def digest(place: Range) -> str:
            made = hashlib.sha256()
            for start in range(place[0], place[1], _CHUNK):
                with view[start : min(start + _CHUNK, place[1])] as part:
                    made.update(part)
            return made.hexdigest()

        with ThreadPoolExecutor() as pool:
            return dict(zip(ranges, pool.map(digest, ranges), strict=True))


def _stamp(file: Path) -> list[int]:
    """What changes when the file's content may have: size, inode, times of modification and of change (ns)."""
    status = file.stat()
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _memory(file: Path) -> Path:
    name = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:32]
    return cache_folder() / "digests" / f"{name}.json"


def _remembered(memory: Path, stamp: list[int]) -> dict[Range, str]:
    """The digests of an earlier call; none if the file has changed or the memory cannot be read."""
    try:
        content = json.loads(memory.read_bytes())
        if content["stamp"] != stamp:
            return {}
        return {(int(start), int(end)): str(digest) for start, end, digest in content["ranges"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
