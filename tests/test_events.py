"""Tests of the event log: killed processes, the events that a resumed run supersedes, and following a job."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from ossia import events
from ossia.errors import OssiaError
from ossia.events import Checkpoint, Evaluated, EventLog, Finished, Note, Resumed, Started, Step, Validation


def started(pid: int = 1) -> Started:
    return Started(
        command="test", pid=pid, total_steps=10, examples=1, validation_examples=0, trained_tokens=5
    )  # fmt: skip


def step(number: int, loss: float = 1.0) -> Step:
    return Step(step=number, loss=loss, learning_rate=0.1, grad_norm=1.0, tokens=5, seconds=0.1)


def done(number: int = 1, status: str = "done") -> Finished:
    return Finished(status=status, reason="", step=number)


def write(folder: Path, *written: events.Event) -> None:
    for event in written:
        EventLog(folder).write(event)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = [
        started(),
        step(1),
        Validation(step=1, loss=2.0, channels={"final": 2.0}, best=True),
        events.Sample(step=1, prompt="a\nb", analysis="ü", final="\u2028", expected_final="{}"),
        events.Routing(step=1, tokens=5, load=[[0.5, 0.5]], entropy=[1.0], drift=[0.25], balance_loss=None),
        Checkpoint(step=1, path="x", best=True),
        Note(level="info", message="hello"),
        done(),
        Evaluated(path="y", summary={"a": [1]}),
        events.Exported(path="z", target="hf"),
    ]
    write(tmp_path, *written)
    assert events.read(tmp_path) == written
    lines = (tmp_path / events.FILE).read_text(encoding="utf-8").split("\n")
    assert [json.loads(line)["kind"] for line in lines if line] == [event.kind for event in written]
    assert {event.kind for event in written} | {"resumed"} == set(events.KINDS)


def test_no_file_no_events(tmp_path: Path) -> None:
    assert events.read(tmp_path) == []


def steps(folder: Path) -> list[int]:
    return [event.step for event in events.read(folder) if isinstance(event, Step)]


def test_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    """A process dies in the middle of a line, at any of its bytes. The next process continues to write."""
    write(tmp_path, step(1), step(2))
    path = tmp_path / events.FILE
    complete = path.read_bytes()
    start, end = complete.index(b"\n") + 1, len(complete)
    for cut in range(start, end):
        path.write_bytes(complete[:cut])
        whole = [1, 2] if cut == end - 1 else [1]  # if only the newline is missing, the event is complete
        assert steps(tmp_path) == whole
        write(tmp_path, step(3))
        assert steps(tmp_path) == [*whole, 3]


def test_a_line_that_is_no_event_is_damage(tmp_path: Path) -> None:
    write(tmp_path, step(1))
    for line in ('{"kind": "unheard-of"}', "[1]", '{"kind": "step", "step": 1}'):
        path = tmp_path / events.FILE
        before = path.read_bytes()
        path.write_bytes(before + line.encode() + b"\n")
        with pytest.raises(OssiaError) as error:
            events.read(tmp_path)
        assert error.value.where == f"{path}:2"
        path.write_bytes(before)


def test_fields_of_a_later_version_are_ignored(tmp_path: Path) -> None:
    (tmp_path / events.FILE).write_text('{"kind": "note", "time": 1, "level": "info", "message": "x", "colour": 3}\n')
    assert events.read(tmp_path) == [Note(time=1, level="info", message="x")]


def test_resumed_supersedes_later_steps(tmp_path: Path) -> None:
    first = [started(1), step(1), step(2), Checkpoint(step=2, path="", best=True), step(3, loss=9.0)]
    second = [started(2), Resumed(step=2), step(3, loss=3.0), step(4), done(4)]
    write(tmp_path, *first, *second)
    steps = [(event.step, event.loss) for event in events.read(tmp_path) if isinstance(event, Step)]
    assert steps == [(1, 1.0), (2, 1.0), (3, 3.0), (4, 1.0)]
    kept = events.read(tmp_path)
    assert [event.pid for event in kept if isinstance(event, Started)] == [1, 2]
    assert sum(isinstance(event, Checkpoint) for event in kept) == 1


def test_resumed_supersedes_the_end_of_a_failed_process(tmp_path: Path) -> None:
    write(tmp_path, started(), step(1), step(2), done(2, "failed"), started(), Resumed(step=1), step(2))
    assert not [event for event in events.read(tmp_path) if isinstance(event, Finished)]


def test_resumed_twice_to_an_earlier_step(tmp_path: Path) -> None:
    write(tmp_path, step(1), step(2), step(3), Resumed(step=2), step(3), Resumed(step=1), step(2, loss=5.0))
    kept = events.read(tmp_path)
    assert [(e.step, e.loss) for e in kept if isinstance(e, Step)] == [(1, 1.0), (2, 5.0)]
    assert [e.step for e in kept if isinstance(e, Resumed)] == [2, 1]


def followed(folder: Path) -> list[str]:
    return [event.kind for event in events.follow(folder, poll_seconds=0.005)]


def test_follow_sees_a_job_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    seen: list[str] = []
    thread = threading.Thread(target=lambda: seen.extend(followed(tmp_path)), daemon=True)
    thread.start()
    write(tmp_path, started(), step(1), step(2), done(2))
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert seen == ["started", "step", "step", "finished"]


def test_follow_shows_what_came_after_the_end(tmp_path: Path) -> None:
    write(tmp_path, started(), done(), Evaluated(path="", summary={}))
    assert followed(tmp_path) == ["started", "finished", "evaluated"]


def test_follow_goes_on_with_the_process_that_resumed(tmp_path: Path) -> None:
    write(tmp_path, started(), step(1), done(1, "stopped"), started(), Resumed(step=1), step(2))
    stream = events.follow(tmp_path, poll_seconds=0.005)
    assert [next(stream).kind for _ in range(6)] == ["started", "step", "finished", "started", "resumed", "step"]
    write(tmp_path, done(2))
    assert [event.kind for event in stream] == ["finished"]


def test_follow_waits_for_the_rest_of_a_line(tmp_path: Path) -> None:
    write(tmp_path, step(1), done(1))
    path = tmp_path / events.FILE
    complete = path.read_bytes()
    path.write_bytes(complete[:-10])
    stream = events.follow(tmp_path, poll_seconds=0.005)
    assert next(stream).kind == "step"
    path.write_bytes(complete)
    assert [event.kind for event in stream] == ["finished"]
