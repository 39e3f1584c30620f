"""Tests of atomic writing, of the leftovers of killed processes, and of the space on the disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ossia import files
from ossia.errors import DoesNotFitError

DEAD = 4194999
"""Beyond Linux's highest process number."""


def killed(code: str, *arguments: object) -> None:
    """Run a program that kills itself with `die()`, and assert that it was killed."""
    lines = "import os, signal, sys\nfrom pathlib import Path\nfrom ossia import files\n"
    lines += "def die(): os.kill(os.getpid(), signal.SIGKILL)\n"
    command = [sys.executable, "-c", lines + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.fixture
def sleeper() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.kill()
    process.wait()
    assert process.stdin is not None
    process.stdin.close()


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_atomically(path, "old ø")
    files.write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    files.write_json(path, {"a": ["ø", 1]})
    assert path.read_bytes() == '{\n  "a": [\n    "ø",\n    1\n  ]\n}\n'.encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        files.write_atomically(path, "\ud800")
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})

    def write_half() -> None:
        with files.atomic_file(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_process_killed_before_the_rename_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    killed("with files.atomic_file(Path(sys.argv[1])) as file:\n file.write_text('new')\n die()", path)
    assert path.read_text() == "old"
    (left,) = (other for other in tmp_path.iterdir() if other != path)
    assert left.match(files.TEMPORARY) and left.read_text() == "new"


def test_a_folder_appears_when_it_is_complete_and_replaces_an_older_one(tmp_path: Path) -> None:
    final = tmp_path / "above" / "made"
    for text in ("old", "new"):
        with files.atomic_folder(final) as partial:
            assert partial.parent == final.parent and not list(partial.iterdir())
            (partial / text).write_text(text)
            assert not (final / text).exists()
        assert [path.name for path in final.iterdir()] == [text]
    assert list(final.parent.iterdir()) == [final]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_folder_that_fails_leaves_the_old_one_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    final = tmp_path / "made"
    final.mkdir()
    (final / "old").touch()

    def write_half() -> None:
        with files.atomic_folder(final) as partial:
            (partial / "half").touch()
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert [path.name for path in final.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [final]


def test_a_process_killed_before_the_rename_leaves_the_old_folder_and_the_next_removes_what_it_left(
    tmp_path: Path,
) -> None:
    final = tmp_path / "made"
    final.mkdir()
    (final / "old").touch()
    killed("with files.atomic_folder(Path(sys.argv[1])) as folder:\n (folder / 'half').touch()\n die()", final)
    assert [path.name for path in final.iterdir()] == ["old"]
    assert len(list(tmp_path.iterdir())) == 2
    with files.atomic_folder(final) as partial:
        (partial / "new").touch()
    assert [path.name for path in final.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [final]


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_and_of_other_folders_stay(
    tmp_path: Path, sleeper: int
) -> None:
    final = tmp_path / "made[1]"
    gone = [f".made[1].{number}{end}" for number in (DEAD, os.getpid()) for end in (".partial", ".old.partial")]
    stay = [f".made[1].{sleeper}.partial", f".made[1].x.{DEAD}.partial", f".other.{DEAD}.partial", "a.partial"]
    for name in (*gone, *stay):
        (tmp_path / name).mkdir()
    with files.atomic_folder(final):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([final.name, *stay])


def test_of_equal_folders_the_first_one_stays(tmp_path: Path) -> None:
    final = tmp_path / "made"
    with files.atomic_folder(final, replace=False) as partial:
        (partial / "mine").touch()
        final.mkdir()  # another process is faster
        (final / "theirs").touch()
    assert [path.name for path in final.iterdir()] == ["theirs"]
    assert list(tmp_path.iterdir()) == [final]
    blocked = tmp_path / "file"
    with pytest.raises(OSError), files.atomic_folder(blocked, replace=False):
        blocked.touch()


def test_a_folder_is_written_where_others_look_for_it(tmp_path: Path) -> None:
    final, place = tmp_path / "step-1", tmp_path / "step-1.partial"
    place.mkdir()
    (place / "of an earlier attempt").touch()
    with files.atomic_folder(final, partial=place) as partial:
        assert partial == place and not list(place.iterdir())
        (place / "new").touch()
    assert [path.name for path in final.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [final]


def test_a_folder_that_cannot_take_its_place_is_an_error_and_no_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process made the folder between the check and the renaming. With `replace`, no content may be lost."""
    final = tmp_path / "made"
    final.mkdir()
    (final / "theirs").touch()
    monkeypatch.setattr(Path, "exists", lambda self: False)
    with pytest.raises(OSError), files.atomic_folder(final) as partial:
        (partial / "mine").touch()
    monkeypatch.undo()
    assert [path.name for path in final.iterdir()] == ["theirs"]
    assert list(tmp_path.iterdir()) == [final]


def test_a_process_that_may_not_be_asked_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of another user's process never count as the leftovers of a dead process."""
    import psutil

    def refuse(process: int) -> None:
        raise psutil.AccessDenied(process)

    monkeypatch.setattr(psutil, "Process", refuse)
    assert files.is_alive(1)


def test_who_is_alive(sleeper: int) -> None:
    assert files.is_alive(os.getpid()) and files.is_alive(sleeper) and files.is_alive(1)
    assert not files.is_alive(DEAD) and not files.is_alive(10**20)
    assert files.is_alive(sleeper, since=time.time() + 1)
    assert not files.is_alive(sleeper, since=time.time() - 3600)  # it has the number of an older process
    zombie = subprocess.Popen([sys.executable, "-c", "pass"], stdout=subprocess.PIPE)
    assert zombie.stdout is not None
    zombie.stdout.read()  # it has ended, and no process has waited for it
    deadline = time.monotonic() + 60
    while files.is_alive(zombie.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not files.is_alive(zombie.pid)
    zombie.wait()
    zombie.stdout.close()


def test_the_nearest_folder_that_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.nearest_existing(tmp_path) == tmp_path
    assert files.nearest_existing(tmp_path / "a" / "b" / "c") == tmp_path
    monkeypatch.chdir(tmp_path)
    assert files.nearest_existing(Path("a/b")) == tmp_path
    assert files.free_bytes(Path("a/b")) == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)


def test_a_disk_that_is_too_full_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3_000_000_000))
    files.check_disk(tmp_path / "new", 3_000_000_000, "the model")
    with pytest.raises(DoesNotFitError) as caught:
        files.check_disk(tmp_path / "new", 5_000_000_000, "the model")
    assert caught.value.what == "the model needs 5.0 GB of disk and 3.0 GB are free"
    assert caught.value.where == str(tmp_path / "new") and caught.value.do


@pytest.mark.skipif(sys.platform == "win32", reason="it has a folder of its own")
def test_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSSIA_CACHE", "~/mine")
    assert files.cache_folder() == Path.home() / "mine"
    monkeypatch.delenv("OSSIA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files.cache_folder() == tmp_path / "ossia"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert files.cache_folder() == Path.home() / ".cache" / "ossia"


def test_importing_it_loads_only_the_errors() -> None:
    code = "import sys, json, ossia.files; print(json.dumps([m for m in sys.modules if m.startswith('ossia.')]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout)) == {"ossia.files", "ossia.errors"}
