"""Tests of the whole command line: exit codes, help, the use of stdout and stderr, and no tracebacks."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from ossia import recipes
from ossia.checkpoint.layout import Shape, bytes_of
from ossia.checkpoint.tiny import MICRO, write_tiny
from ossia.cli import output
from ossia.cli.app import COMMANDS, build
from ossia.errors import OssiaError


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in an empty folder, with a terminal so wide that the expected lines are not wrapped."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("OSSIA_RUNS", str(tmp_path / "runs"))
    return tmp_path


def ossia(*arguments: str) -> Result:
    """Run a command in this process. An OssiaError is in `result.exception`, as `main` would catch it."""
    return CliRunner().invoke(FakeTyper(), list(arguments))


class FakeTyper:
    """A stand-in for the Typer app that CliRunner requires. `build` returns a click command already."""

    def _get_command(self) -> Any:
        return build()


@pytest.fixture(autouse=True)
def runner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.testing._get_command", lambda app: app._get_command())


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program in a new process, as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "ossia", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
        timeout=120,
    )


# Help


def commands() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = [()]
    for name in COMMANDS:
        app = importlib.import_module(f"ossia.cli.{name}_").app
        found.append((name,))
        if len(app.registered_commands) > 1 or app.registered_callback:
            found += [(name, c.name or c.callback.__name__.rstrip("_")) for c in app.registered_commands]
    return found


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_explains_itself(command: tuple[str, ...]) -> None:
    for flag in ("--help", "-h"):
        result = ossia(*command, flag)
        assert result.exit_code == 0
        assert "Usage" in result.stdout
    assert re.search(r"\n +[A-Z]", result.stdout), "a sentence says what it does"


def test_the_table_of_commands_says_what_the_commands_say() -> None:
    text = ossia("--help").stdout
    for name, sentence in COMMANDS.items():
        assert f"{name} " in text
        assert sentence[:40] in text


# Exit codes


def test_exit_0_and_version() -> None:
    done = process("--version")
    assert done.returncode == 0
    assert re.fullmatch(r"ossia \d+\.\d+\.\d+\n", done.stdout)
    assert done.stderr == ""


def test_exit_2_wrong_input_without_a_traceback() -> None:
    done = process("plan", "tiny-demo", "--set", "train.learning_rte=1e-5")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: --set train.learning_rte=1e-5: train.learning_rte is not a setting\n")
    assert "  try: did you mean learning_rate?" in done.stderr
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback() -> None:
    done = process("recipes", "show", "nonsense", OSSIA_DEBUG="1")
    assert "Traceback" in done.stderr
    assert done.returncode != 0


def test_exit_3_does_not_fit(place: Path) -> None:
    # A step of two million tokens without recompute on a CPU: its attention scores fit on no machine of today.
    wide = [
        "data.max_tokens=131072",
        "train.tokens_per_micro_batch=2097152",
        "train.recompute=false",
        "model.device=cpu",
    ]
    sets = [part for value in wide for part in ("--set", value)]
    done = process("plan", "gpt-oss-120b-lora", "--no-time", *sets)
    assert done.returncode == 3
    assert "total at the peak" in done.stdout
    assert "does not fit" in done.stdout
    assert "error: the recipe gpt-oss-120b-lora does not fit" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("recipes", "nonsense"),
        ("plan",),
        ("plan", "tiny-demo", "--nonsense"),
        ("recipes", "show", "nonsense"),
        ("recipes", "check", "missing.yaml"),
        ("runs", "show", "nonsense"),
        ("make", "synthetic", "gpt-oss-21b", "x"),
        ("fetch", "no such model"),
        ("fetch", "openai/gpt-oss-20b", "--offline"),
    ],
    ids=" ".join,
)
def test_wrong_input_is_2(arguments: tuple[str, ...]) -> None:
    result = ossia(*arguments)
    if isinstance(result.exception, OssiaError):
        assert result.exception.exit_code == 2
        assert result.exception.do or result.exception.why
    else:
        assert result.exit_code == 2


def test_unknown_command_suggests_one() -> None:
    error = ossia("plam", "x").exception
    assert isinstance(error, OssiaError)
    assert error.do == "ossia plan"


def test_interrupt_is_130_and_a_closed_pipe_is_no_error() -> None:
    code = (
        "import ossia.__main__ as m, ossia.cli.app as app, sys\n"
        "def stop(*a, **k): raise KeyboardInterrupt\n"
        "sys.argv = ['ossia', 'recipes', 'ls']\n"
        "import ossia.recipes; ossia.recipes.available = stop\n"
        "m.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    command = f"{sys.executable} -m ossia recipes schema | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout == "{\n0\n"
    assert done.stderr == ""


# The commands recipes, plan, doctor, make and fetch


def test_recipes() -> None:
    listed = json.loads(ossia("recipes", "ls", "--json").stdout)
    assert {row["name"] for row in listed} == set(recipes.available())
    text = recipes.recipe_file("gpt-oss-20b-lora").read_text()
    assert ossia("recipes", "show", "gpt-oss-20b-lora").stdout == text
    changed = ossia("recipes", "show", "gpt-oss-20b-lora", "--set", "lora.rank=4", "--json")
    assert json.loads(changed.stdout)["lora"]["rank"] == 4
    assert json.loads(ossia("recipes", "schema").stdout) == recipes.recipe_schema()
    fields = json.loads(ossia("recipes", "fields", "--json").stdout)
    assert {"name": "lora.rank", "default": 16}.items() <= next(f for f in fields if f["name"] == "lora.rank").items()
    assert "lora.rank" in ossia("recipes", "fields").stdout


def test_recipes_cp_and_check(place: Path) -> None:
    result = ossia("recipes", "cp", "gpt-oss-20b-lora", "mine.yaml")
    assert result.exit_code == 0
    assert "ossia plan mine.yaml" in result.stderr
    assert ossia("recipes", "check", "mine.yaml").exit_code == 0
    assert isinstance(ossia("recipes", "cp", "gpt-oss-20b-lora", "mine.yaml").exception, OssiaError)
    (place / "mine.yaml").write_text("train:\n  stepz: 3\n")
    error = ossia("recipes", "check", "mine.yaml").exception
    assert isinstance(error, OssiaError)
    assert error.where == "mine.yaml:2"


@pytest.fixture
def data_file(place: Path) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": f"What is {n} + 1?"}, {"role": "assistant", "content": str(n + 1)}]}
        for n in range(20)
    ]
    (place / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return place / "data.jsonl"


def test_plan_counts_the_data(data_file: Path) -> None:
    result = ossia("plan", "tiny-demo", "--no-time", "--json", "--set", f"data.train={data_file}")
    plan = json.loads(result.stdout)
    assert plan["examples"]["source"].startswith("counted: 19 examples, 1 for validation")
    assert plan["examples"]["longest"] < 200
    assert plan["verdict"] == "fits"
    assert plan["recipe"]["data"]["train"] == [str(data_file)]
    assert "ossia train tiny-demo" in result.stderr


def test_plan_assumes_and_says_so() -> None:
    result = ossia("plan", "gpt-oss-20b-lora", "--no-time", "--set", "model.device=cpu")
    assert "assumed, because no data are given" in result.stdout
    assert "96,436,224 trained parameters" in result.stdout
    assert not re.search(r"^time ", result.stdout, re.MULTILINE)


def test_plan_measures_time_and_calls_it_an_estimate(data_file: Path) -> None:
    text = ossia("plan", "tiny-demo", "--set", f"data.train={data_file}").stdout
    assert re.search(r"time +about .+ to .+: an estimate", text)


def test_plan_of_a_missing_file_is_wrong_input() -> None:
    error = ossia("plan", "tiny-demo", "--no-time", "--set", "data.train=missing.jsonl").exception
    assert isinstance(error, OssiaError)
    assert error.exit_code == 2


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    result = ossia("doctor", "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == (1 if report["fail"] else 0)
    assert report["ok"] + report["warn"] + report["fail"] == len(report["checks"])
    from ossia.plan import doctor

    bad = doctor.Check("torch", "fail", "not installed", "pip install torch")
    monkeypatch.setattr(doctor, "examine", lambda: iter([bad]))
    result = ossia("doctor")
    assert result.exit_code == 1
    assert "fail torch: not installed" in result.stdout
    assert "try: pip install torch" in result.stdout


def test_make_tiny(place: Path) -> None:
    result = ossia("make", "tiny", "tiny", "--json")
    made = json.loads(result.stdout)
    assert made["folder"] == "tiny"
    assert made["bytes"] > 10**6
    again = ossia("make", "tiny", "tiny").exception
    assert isinstance(again, OssiaError)


def test_make_synthetic(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ossia.plan import inputs

    monkeypatch.setitem(inputs.PUBLISHED_SHAPES, "gpt-oss-20b", MICRO)
    result = ossia("make", "synthetic", "gpt-oss-20b", "out", "--json")
    assert json.loads(result.stdout) == {"folder": "out", "bytes": bytes_of(MICRO)}


def test_fetch_finds_what_is_here(place: Path) -> None:
    write_tiny(place / "here", MICRO)
    result = ossia("fetch", "openai/gpt-oss-20b", "--to", "here", "--offline", "--json")
    assert json.loads(result.stdout)["bytes"] == bytes_of(MICRO)


# Printing


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59.6, "1 min 00 s"),
        (539.9, "9 min 00 s"),
        (3599.7, "1 h 00 min"),
        (7320, "2 h 02 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert output.duration(seconds) == text


def test_sizes() -> None:
    assert [output.size(n) for n in (0, 999, 1500, 13_761_264_896)] == ["0 B", "999 B", "1.5 kB", "13.8 GB"]
    assert output.size(bytes_of(Shape.GPT_OSS_120B)) == "65.2 GB"


def test_pieces_of_work_of_one_name_have_their_own_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    from io import StringIO

    from rich.console import Console

    from ossia.events import counting

    monkeypatch.setattr(output, "err", lambda: Console(file=StringIO(), force_terminal=True, width=100))
    totals = []
    with output.watching() as watch:
        for total in (3.0, 5.0):
            with counting(watch, "compiling", total, "MB") as advance:
                advance(1.5)
                bars = watch.__self__._bars  # type: ignore[attr-defined]
                totals += [(task.description, task.completed, task.total) for task in bars.tasks if task.visible]
    assert totals == [("compiling (MB)", 1.5, 3.0), ("compiling (MB)", 1.5, 5.0)]
