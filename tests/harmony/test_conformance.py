"""Tests of our renderer and parser with the tests and golden files of openai-harmony's source distribution."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ossia
from ossia.harmony import conversation as c
from ossia.harmony.render import render_messages
from ossia.harmony.tokenizer.vocabulary import Vocabulary
from support import harmony_sdist

DEPARTURES = {
    "test_keep_analysis_between_final_messages": "freezes the library's dropping of thoughts",
}


@pytest.fixture(scope="module")
def sdist() -> Path:
    try:
        return harmony_sdist.folder()
    except harmony_sdist.UnavailableError as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def outcome(
    sdist: Path, tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path
) -> tuple[dict[str, str], str]:
    """The outcome of each test of the library, and the whole report. Our code replaces its Rust extension."""
    here = Path(__file__).parents[1]
    path = tmp_path_factory.mktemp("conformance")
    (path / "openai_harmony").mkdir()
    shutil.copy(sdist / "python" / "openai_harmony" / "__init__.py", path / "openai_harmony")
    (path / "openai_harmony" / "openai_harmony.py").write_text(
        "from support.harmony_bindings import *\n", encoding="utf-8"
    )
    ours = Path(ossia.__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(path), str(here), str(ours)])}
    file = sdist / "tests" / "test_harmony.py"
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", "--rootdir", str(path)]
    command += ["-c", os.devnull, str(file)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, env=environment, cwd=path)
    found = dict(re.findall(r"::(\w+(?:\[[^\]]*\])?) (PASSED|FAILED|ERROR|SKIPPED)", done.stdout))
    assert found, done.stdout + done.stderr
    return found, done.stdout


def test_all_of_the_librarys_tests_pass_but_for_the_departures(outcome: tuple[dict[str, str], str]) -> None:
    results, report = outcome
    assert len(results) == 42
    assert {name for name, result in results.items() if result != "PASSED"} == set(DEPARTURES), report


def test_departure_thoughts_before_the_last_answer_are_dropped(sdist: Path, tokenizer_folder: Path) -> None:
    """The golden file keeps the thoughts between two answers. By OpenAI's cookbook, all of them are dropped."""
    vocabulary = Vocabulary.load(tokenizer_folder)
    golden = (sdist / "test-data" / "test_keep_analysis_between_finals.txt").read_text(encoding="utf-8").rstrip()
    first = (c.user("What is 2 + 2?"), c.thought("thinking 2+2"), c.answer("4"))
    second = (c.user("What is 3 + 5?"), c.thought("thinking 3+5"), c.answer("8"))
    ours = vocabulary.decode(render_messages(c.without_old_thoughts(first + second), vocabulary).ids)
    kept = "<|start|>assistant<|channel|>analysis<|message|>thinking 3+5<|end|>"
    assert golden.count(kept) == 1
    assert ours == golden.replace(kept, "")


def test_every_golden_file_is_used_by_a_test(sdist: Path) -> None:
    source = (sdist / "tests" / "test_harmony.py").read_text(encoding="utf-8")
    files = sorted(path.name for path in (sdist / "test-data").glob("*.txt"))
    assert len(files) == 23
    assert [name for name in files if name not in source] == []
