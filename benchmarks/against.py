"""Compare the speed of this tree with the speed of another revision.

    python -m benchmarks.against REVISION [name ...] [--pairs 7]

The script shows whether a refactor costs time. It checks out the other revision into a temporary folder and builds the
C library there. Each measurement runs in its own process, with the code of its side. The two sides alternate in pairs,
so a change in the machine's speed affects both. The ratio of a pair is this tree's rate divided by the other tree's
rate. The result of a benchmark is the median over its pairs. JSON goes to benchmarks/results/against.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ossia import hardware, runs

HERE = Path(__file__).resolve().parents[1]
RESULTS = HERE / "benchmarks" / "results"

HARMONY = """
import json, os, random, sys, tempfile
from pathlib import Path
from benchmarks import harmony as h
from ossia.data.compile import usable_cores
with tempfile.TemporaryDirectory() as folder:
    os.environ["OSSIA_CACHE"] = folder
    seed = int(sys.argv[1])
    file = h._write(Path(folder) / "rows.jsonl", random.Random(seed))
    rates = h._round(file, VOCABULARY.load(), h.Library(), usable_cores())
print(json.dumps({name: rate for name, rate in rates.items() if "harmony" not in name}))
"""
"""One round of benchmarks/harmony.py. `_measured` adds the import of `VOCABULARY`, whose module differs by revision."""

TRAIN = """
import json, sys
from pathlib import Path
from benchmarks import train_step as t
found = t._measure("ossia", sys.argv[1], Path(sys.argv[2]), "cpu")
print(json.dumps({"tokens per second": found["tokens_per_second"]}))
"""


def main() -> None:
    """Compare the benchmarks given on the command line, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", help="the git revision of the other tree, such as HEAD~3")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(COMPARED)}; default: all")
    parser.add_argument("--pairs", type=int, default=7, help="measurements of each side (default 7)")
    asked = parser.parse_args()
    if unknown := set(asked.names) - COMPARED.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    with other_tree(asked.revision) as other:
        found = {name: COMPARED[name](other, asked.pairs) for name in asked.names or COMPARED}
    commits = {"this": _git("rev-parse", "HEAD"), "other": _git("rev-parse", asked.revision)}
    machine = {"processor": hardware.cpu().value, **runs.environment(f"against {asked.revision}")}
    text = json.dumps({"benchmark": "against", "machine": machine, "commits": commits, **found}, indent=2)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "against.json").write_text(text + "\n", encoding="utf-8")
    print(text)


@contextmanager
def other_tree(revision: str) -> Iterator[Path]:
    """Yield a folder with the tree of a revision and its C library, built."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "tree"
        _git("worktree", "add", "--detach", str(folder), revision)
        try:
            build = next(folder.glob("src/ossia/kernels/**/build.py"))
            subprocess.run([sys.executable, str(build)], check=True, stdout=subprocess.DEVNULL)
            yield folder
        finally:
            _git("worktree", "remove", "--force", str(folder))


def harmony(other: Path, pairs: int) -> dict[str, Any]:
    """Return the ratios of the compiler, the renderer and the parser. Each pair has new chats."""
    return _paired(other, pairs, lambda number: [HARMONY, str(number)])


def train_step(other: Path, pairs: int) -> dict[str, Any]:
    """Return the ratios of a LoRA step on attention and experts, with the slice of benchmarks/train_step.py."""
    from ossia.checkpoint.layout import Shape
    from ossia.checkpoint.synthetic import write_synthetic

    with tempfile.TemporaryDirectory() as folder:
        path = write_synthetic(Path(folder) / "slice", Shape(layers=2, vocabulary=16_768))
        return _paired(other, pairs, lambda _: [TRAIN, "attention and experts", str(path)])


COMPARED: dict[str, Callable[[Path, int], dict[str, Any]]] = {"harmony": harmony, "train_step": train_step}


def _paired(other: Path, pairs: int, program: Callable[[int], list[str]]) -> dict[str, Any]:
    rates: dict[str, list[tuple[float, float]]] = {}
    for number in range(pairs):
        sides = {side: _measured(side, program(number)) for side in ((HERE, other) if number % 2 else (other, HERE))}
        for name, rate in sides[HERE].items():
            if name in sides[other]:
                rates.setdefault(name, []).append((rate, sides[other][name]))
        latest = {name: round(found[-1][0] / found[-1][1], 3) for name, found in rates.items()}
        print(f"pair {number + 1} of {pairs}: {latest}", file=sys.stderr, flush=True)
    return {
        name: {
            "median ratio": round(statistics.median(mine / theirs for mine, theirs in found), 3),
            "ratios": [round(mine / theirs, 3) for mine, theirs in found],
            "this": round(statistics.median(mine for mine, _ in found)),
            "other": round(statistics.median(theirs for _, theirs in found)),
        }
        for name, found in rates.items()
    }


def _measured(tree: Path, program: list[str]) -> dict[str, float]:
    code, *arguments = program
    at = "harmony.tokenizer.vocabulary" if (tree / "src/ossia/harmony/tokenizer").is_dir() else "harmony.vocabulary"
    code = f"from ossia.{at} import Vocabulary as VOCABULARY\n{code}" if "VOCABULARY" in code else code
    environment = {**os.environ, "PYTHONPATH": f"{tree / 'src'}{os.pathsep}{tree}"}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=HERE, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
