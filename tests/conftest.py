"""Shared fixtures and the choice of slow tests. All tests of a session share one cache folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

# These are set before transformers or huggingface_hub is imported, here and in the processes that tests start.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OSSIA_CACHE", str(Path(tempfile.gettempdir()) / f"ossia-test-cache-{os.getuid()}"))

SLOW = Path(__file__).parent / "slow.txt"
"""The slow tests. A line names a file, or a test with all its parameters, and its seconds of processor time."""
_LEFT_OUT = pytest.StashKey[int]()


@pytest.fixture(scope="session")
def tokenizer_folder() -> Path:
    """The folder of the offline tokenizer files, built once per session (about ten seconds when the cache is cold)."""
    from ossia.harmony.tokenizer.vocabulary import offline_tokenizer_folder

    return offline_tokenizer_folder()


def slow_tests() -> set[str]:
    """Return the names in `slow.txt`: `train/test_x.py`, or `train/test_x.py::test_y`."""
    lines = (line.partition("#")[0].split() for line in SLOW.read_text(encoding="utf-8").splitlines())
    return {words[0] for words in lines if words}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests of `slow.txt` the marker `slow`, before `-m` selects tests by it."""
    slow = slow_tests()
    for item in items:
        file = item.path.relative_to(SLOW.parent).as_posix() if item.path.is_relative_to(SLOW.parent) else ""
        if file in slow or f"{file}::{getattr(item, 'originalname', item.name)}" in slow:
            item.add_marker("slow")


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    left_out = sum(1 for item in items if item.get_closest_marker("slow") and not item.get_closest_marker("cuda"))
    if left_out:
        config = items[0].config
        config.stash[_LEFT_OUT] = left_out
        if hasattr(config, "workeroutput"):  # a worker of pytest-xdist, which does not print
            config.workeroutput["left_out"] = left_out


class _Workers:
    """Receives the number of slow tests that the workers of pytest-xdist left out. All workers leave out the same."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        self.config.stash[_LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Workers(config))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    left_out = config.stash.get(_LEFT_OUT, 0)
    if left_out and "slow" in config.option.markexpr:  # not if -k or a path selected the tests
        terminalreporter.write_line(f"{left_out} slow tests were left out (tests/slow.txt): make test runs all tests")
