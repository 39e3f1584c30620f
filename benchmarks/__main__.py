"""python -m benchmarks [--cuda] [name ...]"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from ossia import files, hardware, runs

NAMES = {"startup": False, "harmony": False, "kernels": False, "train_step": True, "trees": True}
"""For each benchmark, whether it can run on a GPU."""
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run the benchmarks given on the command line, or all of them, and write their JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], help="default: all")
    parser.add_argument("--cuda", action="store_true", help="run on a GPU the benchmarks that can")
    wanted = parser.parse_args()
    gpus = hardware.gpus()
    if wanted.cuda and not gpus.value:
        sys.exit(f"no GPU to measure: {gpus.reason}")
    for name in wanted.names or [name for name, gpu in NAMES.items() if gpu or not wanted.cuda]:
        print(f"{name} ...", file=sys.stderr, flush=True)
        result = importlib.import_module(f"benchmarks.{name}").run(cuda=wanted.cuda)
        machine = {
            "processor": f"{hardware.cpu().value}, {hardware.cpu().reason}",
            "memory": hardware.total_memory(),
            "gpus": [gpu.name for gpu in gpus.value],
            **runs.environment(f"python -m benchmarks {name}"),
        }
        RESULTS.mkdir(exist_ok=True)
        file = RESULTS / f"{name}{'-cuda' if wanted.cuda else ''}.json"
        files.write_json(file, {"benchmark": name, "machine": machine, **result})
        print(file.read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
