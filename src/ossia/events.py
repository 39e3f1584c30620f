"""The events of a run: one JSON object per line in the run's events.jsonl.

This file is the only channel from a running job to its watchers (a terminal, the studio, a script). A line has `time`
(seconds since 1970), `kind` and the fields of the event of that kind. Lines are only appended.

A resumed run repeats steps that an earlier, killed process has already reported. A `Resumed` event supersedes all
earlier events with a later step than its own. `read` leaves the superseded events out.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

from ossia.errors import OssiaError
from ossia.files import naming

FILE = "events.jsonl"


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base class of all events."""

    kind: ClassVar[str] = ""
    time: float = field(default_factory=time.time)
    """Time at which the event was made, in seconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """A process has begun to work on the run."""

    kind: ClassVar[str] = "started"
    command: str
    pid: int
    total_steps: int
    examples: int
    validation_examples: int
    trained_tokens: int
    """Number of supervised tokens in all training examples."""


@dataclass(frozen=True, kw_only=True)
class Resumed(Event):
    """Work continues from the checkpoint of `step`. Earlier events of later steps are superseded."""

    kind: ClassVar[str] = "resumed"
    step: int


@dataclass(frozen=True, kw_only=True)
class Step(Event):
    """One optimiser step."""

    kind: ClassVar[str] = "step"
    step: int
    loss: float
    """Mean negative log-likelihood of the step's supervised tokens, in nats, weighted by `train.loss_weighting`."""
    learning_rate: float
    grad_norm: float
    tokens: int
    """Number of tokens processed in the step, over all devices."""
    seconds: float
    example_tokens: int = 0
    """Sum of the lengths of the step's examples, in tokens; more than `tokens` if prefixes are shared. 0: an older
    version wrote the event."""
    repeated_tokens: int = 0
    """Number of tokens of shared prefixes among `tokens` that were computed again in another micro-batch."""


@dataclass(frozen=True, kw_only=True)
class Validation(Event):
    """The loss on the held-back data. For a supervised run it is over all supervised tokens."""

    kind: ClassVar[str] = "validation"
    step: int
    loss: float
    channels: dict[str, float]
    """Channel -> loss over its supervised tokens."""
    best: bool
    """Whether this is the lowest validation loss so far."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Further measurements of the run's objective."""


@dataclass(frozen=True, kw_only=True)
class Sample(Event):
    """The model's answer to a validation prompt at this step."""

    kind: ClassVar[str] = "sample"
    step: int
    prompt: str
    analysis: str
    final: str
    expected_final: str


@dataclass(frozen=True, kw_only=True)
class Routing(Event):
    """Statistics of the routers. Lists have one entry per layer."""

    kind: ClassVar[str] = "routing"
    step: int
    tokens: int
    """Number of training tokens in `load`: those since the previous event of this kind, over all devices."""
    load: list[list[float]]
    """Each expert's share of the layer's (token, choice) pairs."""
    entropy: list[float]
    """Entropy of the load divided by the logarithm of the number of experts. 1: even load. 0: a single expert."""
    drift: list[float]
    """Share of the base's choices, on a few fixed examples, that the tuned model does not make."""
    balance_loss: float | None = None
    """Mean load-balancing loss over layers and tokens; with even load, the number of choices. None: not trained."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Event):
    """A checkpoint is complete on disk."""

    kind: ClassVar[str] = "checkpoint"
    step: int
    path: str
    best: bool


@dataclass(frozen=True, kw_only=True)
class Note(Event):
    """A message for the user."""

    kind: ClassVar[str] = "note"
    level: str
    """info or warning."""
    message: str


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """The process has ended by itself and was not killed."""

    kind: ClassVar[str] = "finished"
    status: str
    """done, stopped (by a person or by early stopping) or failed."""
    reason: str
    step: int


@dataclass(frozen=True, kw_only=True)
class Evaluated(Event):
    """An evaluation is complete in the run folder."""

    kind: ClassVar[str] = "evaluated"
    path: str
    summary: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Exported(Event):
    """An export is complete on disk."""

    kind: ClassVar[str] = "exported"
    path: str
    target: str


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """The progress of a task. It is for callbacks and is not written to a run's events."""

    kind: ClassVar[str] = "progress"
    title: str
    """Name of the task, the same in all of its events."""
    done: float
    """Amount of finished work, in `unit`."""
    total: float | None = None
    """Amount of all work, in `unit`. None: not known."""
    unit: str = ""
    """Unit of the amounts, such as MB; empty for plain counts."""
    finished: bool = False
    """Whether this is the last event of the task."""


OnEvent = Callable[[Event], None]
"""A callback for each event as it happens."""


def ignore(event: Event) -> None:
    """Do nothing with an event."""


KINDS: dict[str, type[Event]] = {
    cls.kind: cls
    for cls in (Started, Resumed, Step, Validation, Sample, Routing, Checkpoint, Note, Finished, Evaluated, Exported)
}


@contextmanager
def counting(
    on_event: OnEvent, title: str, total: float | None = None, unit: str = ""
) -> Iterator[Callable[[float], None]]:
    """Yield a function that reports progress. Its argument is the amount of work since its last call.

    It calls `on_event` with a `Progress` that has the sum. The end of the block reports the last `Progress`.

    Args:
        on_event: the callback.
        title: the name of the task.
        total: the amount of all work, or None if it is not known.
        unit: the unit of the amounts; empty for plain counts.
    """
    done = 0.0

    def advance(units: float) -> None:
        nonlocal done
        done += units
        on_event(Progress(title=title, done=done, total=total, unit=unit))

    on_event(Progress(title=title, done=0, total=total, unit=unit))
    try:
        yield advance
    finally:
        on_event(Progress(title=title, done=done, total=total, unit=unit, finished=True))


@contextmanager
def transferring(on_event: OnEvent, title: str) -> Iterator[Callable[[int, int, str], None]]:
    """Yield a function that reports the progress of a transfer. Its arguments are bytes done, all bytes, and a name.

    It calls `on_event` with a `Progress` in megabytes. The end of the block reports the last `Progress`, if there was
    any.
    """
    last: Progress | None = None

    def report(done: int, total: int, _name: str) -> None:
        nonlocal last
        last = Progress(title=title, done=done / 10**6, total=max(1, total // 10**6), unit="MB")
        on_event(last)

    try:
        yield report
    finally:
        if last is not None:
            on_event(dataclasses.replace(last, finished=True))


class EventLog:
    """A writer that appends events to a run's events.jsonl.

    The file is closed after each line, so that a killed process loses at most one line.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def write(self, event: Event) -> None:
        """Append one event. NaN and infinite numbers are written as null."""
        line = json.dumps({"kind": event.kind, **_finite(dataclasses.asdict(event))}, ensure_ascii=False)
        with naming(self.path), self.path.open("ab+") as file:
            # A killed process may have left half a line; a newline turns it into one that readers skip.
            if file.tell() and not _ends_with_newline(file):
                file.write(b"\n")
            file.write(line.encode() + b"\n")


def read(folder: Path) -> list[Event]:
    """Return the run's events in order, without superseded ones. Incomplete lines are skipped.

    Raises:
        OssiaError: a line is valid JSON but not an event, which a killed process cannot cause.
    """
    path = folder / FILE
    events: list[Event] = []
    if not path.is_file():
        return events
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        event = _parse(line, f"{path}:{number}") if line.strip() else None
        if isinstance(event, Resumed):
            events = [old for old in events if getattr(old, "step", 0) <= event.step or isinstance(old, Resumed)]
        if event is not None:
            events.append(event)
    return events


def follow(folder: Path, *, poll_seconds: float = 0.5) -> Iterator[Event]:
    """Yield the run's events, from the first on, as they are written, until the newest process has finished.

    Superseded events are included.

    Args:
        folder: the run folder.
        poll_seconds: the time between two readings of the file.

    Raises:
        OssiaError: as `read`.
    """
    path, offset, finished = folder / FILE, 0, False
    while True:
        data = b""
        if path.is_file():
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read()
        complete = data[: data.rfind(b"\n") + 1]
        offset += len(complete)
        for line in complete.split(b"\n"):
            event = _parse(line, str(path)) if line.strip() else None
            if event is not None:
                finished = isinstance(event, Finished) or (finished and not isinstance(event, Started | Resumed))
                yield event
        # The end counts only after the whole file was read, because a later process may have continued after it.
        if finished and len(complete) == len(data):
            return
        time.sleep(poll_seconds)


def _finite(value: Any) -> Any:
    """Return the value with None in place of NaN and infinities, for which JSON has no numbers."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, 2)
    return bool(file.read(1) == b"\n")


def _parse(line: bytes, where: str) -> Event | None:
    try:
        values = json.loads(line)
    except ValueError:
        return None  # a line that a killed process has left incomplete
    cls = KINDS.get(values.pop("kind", "")) if isinstance(values, dict) else None
    if cls is None:
        raise OssiaError("not an event", where=where, do="restore the file, or move it away to start a new log")
    known = _hints(cls)  # type: ignore[arg-type]
    kept = {key: value for key, value in values.items() if key in known}
    remedy = "restore the file, or move it away to start a new log"
    for key, value in kept.items():
        if not _fits(value, known[key]):
            shown = repr(value)[:40]
            raise OssiaError(f"{key} of an event of kind {cls.kind} is {shown}", where=where, do=remedy)
    try:
        return cls(**kept)
    except TypeError as error:
        raise OssiaError(f"an event with missing fields ({error})", where=where, do=remedy) from None


@functools.cache
def _hints(cls: type[Event]) -> dict[str, Any]:
    return {name: hint for name, hint in get_type_hints(cls).items() if name != "kind"}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of JSON is what a field of this type holds. A number that was not finite is null."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is UnionType:
        return any(_fits(value, one) for one in inner)
    if origin is list:
        return isinstance(value, list) and all(_fits(part, inner[0]) for part in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(part, inner[1]) for part in value.values())
    if hint is float:
        return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
