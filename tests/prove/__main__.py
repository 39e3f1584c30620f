"""python -m prove NAME [--chunks N] [--processes P] [--again]"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from ossia import hardware, runs

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
NAMES = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))


def main() -> None:
    """Run or continue one proof and write its JSON. The exit code is 1 if the proof fails."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=f"proofs: {', '.join(NAMES)}")
    parser.add_argument("name", choices=NAMES, metavar="NAME")
    parser.add_argument("--chunks", type=int, help="the number of chunks (default: the full proof)")
    parser.add_argument("--processes", type=int, default=hardware.cores().value, help="default: one per core")
    parser.add_argument("--again", action="store_true", help="do not continue an earlier, stopped run")
    asked = parser.parse_args()
    proof = importlib.import_module(f"prove.{asked.name}")
    chunks = asked.chunks or proof.CHUNKS
    state = State(asked.name, again=asked.again)
    began = time.monotonic()
    missing = [number for number in range(chunks) if number not in state.done]
    for number, counts in _counted(asked.name, missing, min(asked.processes, getattr(proof, "PROCESSES", 64))):
        state.add(number, counts)
        print(f"{asked.name}: {len(state.done)} of {chunks} chunks", file=sys.stderr, flush=True)
    result = proof.verdict(total(state.done[number] for number in range(chunks)))
    record = {
        "proof": asked.name,
        "chunks": chunks,
        "seconds_of_the_last_run": round(time.monotonic() - began, 1),
        "machine": {"processor": hardware.cpu().value, **runs.environment(f"make prove {asked.name}")},
        **result,
    }
    text = json.dumps(record, indent=2, ensure_ascii=False)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"prove-{asked.name}.json").write_text(text + "\n", encoding="utf-8")
    print(text)
    sys.exit(0 if result["passed"] else 1)


class State:
    """The counts of finished chunks. They are kept in a file on disk whose name has the digest of the source."""

    def __init__(self, name: str, *, again: bool = False, folder: Path = RESULTS / "local") -> None:
        self.path = folder / f"prove-{name}-{source_digest()}.json"
        self.done: dict[int, dict[str, Any]] = {}
        if self.path.is_file() and not again:
            self.done = {int(number): counts for number, counts in json.loads(self.path.read_text()).items()}

    def add(self, number: int, counts: dict[str, Any]) -> None:
        """Write the counts of a chunk to disk, atomically."""
        self.done[number] = counts
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.done, ensure_ascii=False))
        temporary.replace(self.path)


def source_digest() -> str:
    """Return a hash of the package's source and of the proofs."""
    digest = hashlib.sha256()
    for folder in (ROOT / "src", Path(__file__).parent):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def total(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sums of the counts. Lists keep their first three entries. Other values are those of the last part."""
    sums: dict[str, Any] = {}
    for key, value in (pair for part in parts for pair in part.items()):
        if isinstance(value, list):
            sums[key] = [*sums.get(key, []), *value][:3]
        else:
            sums[key] = sums.get(key, 0) + value if isinstance(value, int | float) else value
    return sums


def _counted(name: str, numbers: list[int], processes: int) -> Iterator[tuple[int, dict[str, Any]]]:
    if processes < 2 or len(numbers) < 2:
        run_chunk = importlib.import_module(f"prove.{name}").run_chunk
        yield from ((number, run_chunk(number)) for number in numbers)
        return
    with ProcessPoolExecutor(processes) as pool:
        futures = {pool.submit(_chunk, name, number): number for number in numbers}
        yield from ((futures[future], future.result()) for future in as_completed(futures))


def _chunk(name: str, number: int) -> dict[str, Any]:
    os.nice(5)
    counts: dict[str, Any] = importlib.import_module(f"prove.{name}").run_chunk(number)
    return counts


if __name__ == "__main__":
    main()
