"""Compiling: sources become conversations as tokens, on all cores and with a cache.

    chunk of rows -> [cache] or [worker: JSON, format, checks, tokens] -> shard -> conversations and problems, in order

Workers are separate processes. They are spawned, so that no state of the caller (such as torch's threads) is copied.
About three megabytes are compiled in this process, because starting workers would take longer.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import NamedTuple

from ossia.config import DataSection, DataSource, Sources, sources_of
from ossia.data.cache import Cache, Shard, bare, pack_shard, unpack_shard
from ossia.data.checks import Duplicates, place
from ossia.data.examples import compile_conversation
from ossia.data.load import Findings, failed, raise_if_strict, read_row
from ossia.data.rendered import Example, Rendered
from ossia.data.sources import CHUNK_BYTES, Chunk, Row, read_chunks, settings_for, total_bytes
from ossia.errors import Problem
from ossia.harmony.conversation import Conversation
from ossia.harmony.tokenizer.vocabulary import Vocabulary

SMALL = 3 * CHUNK_BYTES
"""Sources of at most this size in bytes are compiled without worker processes."""

OnBytes = Callable[[int], None]
"""A progress callback. It gets the number of bytes of rows compiled since the last call."""


@dataclass(slots=True)
class Compiled(Findings):
    """Compiled conversations in the order of their rows, with the problems and the counts of the rows."""

    conversations: list[Rendered] = field(default_factory=list)
    usable: int = 0
    """The number of conversations before the weights of the sources were applied."""
    cached: int = 0
    """The number of conversations that were read from the cache."""

    @property
    def examples(self) -> list[Example]:
        """All training examples, in the order of the conversations and their turns."""
        return [example for conversation in self.conversations for example in conversation.examples]


class Compiling(NamedTuple):
    """The result of compiling one row. If the row cannot be used, `rendered` is None and the problems say why."""

    row: Row
    problems: list[Problem]
    conversation: Conversation | None
    rendered: Rendered | None
    format: str


def compile_sources(
    sources: Sources,
    vocabulary: Vocabulary,
    settings: DataSection = DataSection(),
    *,
    workers: int = 1,
    cache: bool = True,
    seed: int = 0,
    progress: OnBytes | None = None,
) -> Compiled:
    """Return the compiled conversations of files, folders and hub data sets.

    A row with an error is left out and reported, unless `settings.strict`.

    Args:
        settings: the section `data` of a recipe. Its `train` and `validation` are ignored.
        workers: number of processes. More than one needs a main module that can be imported (see multiprocessing).
        cache: whether to read shards of earlier runs, and to write those of this run.
        seed: seed for the choice of conversations if the weight of a source is not a whole number.
        progress: a callback that gets the number of bytes compiled since its last call.

    Raises:
        UserError: a source cannot be read at all. With `settings.strict`, also the first row with an error.
    """
    compiled, duplicates, rng = Compiled(), Duplicates(), random.Random(seed)
    drawn: list[Rendered] = []
    for source in sources_of(sources):
        before = len(compiled.conversations)
        own = settings_for(source, settings)
        store = Cache(own, vocabulary.digest) if cache else None
        shards = _shards(source, vocabulary, own, workers, store, progress)
        try:
            for shard, from_cache in shards:
                missing = None if source.limit is None else source.limit - len(compiled.conversations) + before
                taken = _first(shard, missing)
                _take(taken, compiled, duplicates, settings)
                compiled.cached += from_cache * len(taken.conversations)
                if missing is not None and missing <= len(shard.conversations):
                    break
        finally:
            shards.close()
        if store is not None:
            store.trim()
        drawn += _weighted(compiled.conversations[before:], source.weight, rng)
    compiled.usable = len(compiled.conversations)
    compiled.conversations = drawn
    return compiled


def compile_row(row: Row, vocabulary: Vocabulary, settings: DataSection) -> Compiling:
    """Return one row, checked and rendered."""
    problems, conversation, format = read_row(row, settings)
    if conversation is None:
        return Compiling(row, problems, None, None, format)
    found: list[Problem] = []
    try:
        made = compile_conversation(conversation, vocabulary, settings, found.append)
    except Exception as error:
        return Compiling(row, problems + failed(row, error), None, None, format)
    made.facts = {"format": format, **_facts(conversation, made)}
    if conversation.rejected:
        what = "a preference pair: the preferred answer is trained, the rejected one is not"
        found.append(Problem("warning", "rejected", what))
    if not made.targets:
        found.append(Problem("error", "nothing-to-train", "no token of this row is trained"))
    problems += [place(problem, row.where) for problem in found]
    return Compiling(row, problems, conversation, made if made.targets else None, format)


def compile_rows(
    source: DataSource, vocabulary: Vocabulary, settings: DataSection, only: int | None = None
) -> Iterator[Compiling]:
    """Yield the compiled rows of a source, one by one, in this process. They are compiled during iteration.

    Args:
        only: the line number of the only row to compile. None: all rows.

    Raises:
        UserError: the source cannot be read.
    """
    own = settings_for(source, settings)
    for chunk in read_chunks(source):
        for _, row in chunk.rows(only) if only is None or only in chunk.numbers else ():
            yield compile_row(row, vocabulary, own)


def usable_cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compile_chunk(chunk: Chunk, vocabulary: Vocabulary, settings: DataSection) -> Shard:
    """Return the compiled rows of a chunk."""
    shard, formats = Shard(), Counter[str]()
    for index, row in chunk.rows():
        shard.rows += 1
        done = compile_row(row, vocabulary, settings)
        if done.format:
            formats[done.format] += 1
        if done.rendered is not None:
            shard.conversations.append((index, done.rendered))
        shard.problems += [(index, bare(problem)) for problem in done.problems]
    shard.formats = dict(formats)
    return shard


def _facts(conversation: Conversation, made: Rendered) -> dict[str, object]:
    """Return the facts of a row that the checks across rows and the statistics need in addition to the tokens.

    They are a digest of the content, and if known: effort, score, number of tools, calls per recipient and reasoning
    language. The values can be written as JSON.
    """
    begin = made.begin(1) if conversation.system is not None and made.kinds else 0
    content = made.tokens[begin:].tobytes() + repr(conversation.rejected).encode("utf-8", "surrogatepass")
    facts: dict[str, object] = {"digest": hashlib.blake2b(content, digest_size=16).hexdigest()}
    if conversation.system is not None:
        facts["effort"] = conversation.system.effort
    if conversation.score is not None:
        facts["score"] = conversation.score
    if conversation.tools:
        facts["tools"] = len(conversation.tools)
    if calls := [m.recipient for m in conversation.messages if m.role == "assistant" and m.recipient]:
        facts["calls"] = Counter(calls)
    if isinstance(language := conversation.extra.get("reasoning_language"), str):
        facts["reasoning_language"] = language
    return facts


def _take(shard: Shard, compiled: Compiled, duplicates: Duplicates, settings: DataSection) -> None:
    """Add a shard to the conversations compiled so far. With `settings.strict`, raise its first error."""
    compiled.rows += shard.rows
    compiled.formats.update(shard.formats)
    for _, made in shard.conversations:
        found = duplicates.check(str(made.facts["digest"]), made.source)
        compiled.problems += found
        compiled.conversations.append(made)
    problems = [problem for _, problem in shard.problems]
    compiled.problems += problems
    raise_if_strict(problems, settings)


def _first(shard: Shard, count: int | None) -> Shard:
    """Return the rows of a shard up to its conversation number `count`, or all rows for None."""
    if count is None or count >= len(shard.conversations):
        return shard
    last = shard.conversations[count - 1][0]
    kept = shard.conversations[:count]
    formats = Counter(str(made.facts["format"]) for _, made in kept)
    problems = [(index, problem) for index, problem in shard.problems if index <= last]
    bad = {index for index, problem in problems if problem.level == "error"} - {index for index, _ in kept}
    return Shard(len(kept) + len(bad), dict(formats), kept, problems)


def _weighted(conversations: list[Rendered], weight: float, rng: random.Random) -> list[Rendered]:
    """Return the conversations with repeats: each floor(weight) times, plus a random share of them.

    The share is the fractional part of the weight. A weight below 1 gives at least one conversation.
    """
    whole = int(weight)
    count = round((weight - whole) * len(conversations))
    if not whole and conversations:
        count = max(1, count)
    extra = set(rng.sample(range(len(conversations)), count))
    return [c for index, c in enumerate(conversations) for _ in range(whole + (index in extra))]


def _shards(
    source: DataSource,
    vocabulary: Vocabulary,
    settings: DataSection,
    workers: int,
    cache: Cache | None,
    progress: OnBytes | None,
) -> Generator[tuple[Shard, bool], None, None]:
    """Yield the shards of a source in order, each with whether it came from the cache."""
    able = workers > 1 and vocabulary.folder is not None
    with _Pool(workers if able else 0, vocabulary, settings, at_once=total_bytes(source) > SMALL) as pool:
        waiting: deque[tuple[Chunk, Shard | None, Future[bytes] | None]] = deque()
        chunks = read_chunks(source)
        while True:
            while len(waiting) <= pool.ahead and (chunk := next(chunks, None)) is not None:
                known = cache.read(chunk) if cache is not None else None
                waiting.append((chunk, known, None if known is not None else pool.submit(chunk)))
            if not waiting:
                return
            chunk, known, future = waiting.popleft()
            if known is None:
                packed = pool.result(chunk, future)
                if cache is not None:
                    cache.write(chunk, packed)
            if progress is not None:
                progress(len(chunk.text))
            yield (unpack_shard(packed, chunk.file, chunk.numbers), False) if known is None else (known, True)


class _Pool:
    """Processes that compile chunks. Without workers, and for the first chunks, this process compiles them.

    Args:
        at_once: whether to start the processes with the first chunk, because the source is known to be large. Otherwise
            they start after `SMALL` bytes, because the size may be unknown (such as of a hub data set).
    """

    def __init__(self, workers: int, vocabulary: Vocabulary, settings: DataSection, at_once: bool) -> None:
        self._here = (vocabulary, settings)
        self._workers, self._seen = workers, SMALL + 1 if at_once else 0
        self.ahead = 0
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, chunk: Chunk) -> Future[bytes] | None:
        self._seen += len(chunk.text)
        if self._pool is None:
            if not self._workers or self._seen <= SMALL:
                return None
            start = (str(self._here[0].folder), self._here[1])
            self._pool = ProcessPoolExecutor(self._workers, get_context("spawn"), _start_worker, start)
            self.ahead = 2 * self._workers
        try:
            return self._pool.submit(_work, chunk)
        except BrokenProcessPool:
            return None

    def result(self, chunk: Chunk, future: Future[bytes] | None) -> bytes:
        """Return the packed shard. If the worker of the chunk was killed, this process compiles the chunk."""
        if future is not None:
            try:
                return future.result()
            except BrokenProcessPool:
                self.ahead = self._workers = 0
        return pack_shard(compile_chunk(chunk, *self._here))

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


_worker: tuple[Vocabulary, DataSection] | None = None


def _start_worker(folder: str, settings: DataSection) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = Vocabulary.load(folder), settings


def _end_with_parent() -> None:
    """End this worker when its parent ends, because a killed parent cannot stop its workers."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _work(chunk: Chunk) -> bytes:
    assert _worker is not None
    return pack_shard(compile_chunk(chunk, *_worker))
