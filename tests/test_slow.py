"""Tests of the list of slow tests: every line names a test, and a run without them gives their number."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def named() -> list[str]:
    lines = (TESTS / "slow.txt").read_text(encoding="utf-8").splitlines()
    return [line.split()[0] for line in lines if line and not line.startswith("#")]


def test_every_line_names_a_test_that_is_there() -> None:
    functions: dict[str, set[str]] = {}
    for line in named():
        file, _, test = line.partition("::")
        if file not in functions:
            tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
            functions[file] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert not test or test in functions[file], line
    assert len(named()) == len(set(named())) > 0


@pytest.mark.parametrize("processes", [0, 1])
def test_a_run_without_slow_tests_says_how_many_it_left_out(tmp_path: Path, processes: int) -> None:
    """The tests run in a folder with the same conftest, without and with pytest-xdist."""
    (tmp_path / "conftest.py").write_bytes((TESTS / "conftest.py").read_bytes())
    (tmp_path / "slow.txt").write_text("# comment\ntest_a.py  # 9 s\ntest_b.py::test_slow  # 7 s\n")
    (tmp_path / "test_a.py").write_text("def test_one(): pass\n")
    (tmp_path / "test_b.py").write_text(
        "import pytest\n\n\n@pytest.mark.parametrize('n', [1, 2, 3])\ndef test_slow(n): pass\n\n\n"
        "def test_quick(): pass\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow: x\n    cuda: x\n")

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", str(processes), *arguments]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    fast = run("-m", "not slow")
    assert "4 slow tests were left out (tests/slow.txt): make test runs all tests" in fast
    assert "1 passed" in fast
    assert "left out" not in run("-k", "quick")
    whole = run()
    assert "left out" not in whole
    assert "5 passed" in whole
