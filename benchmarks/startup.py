"""The time of `ossia --help` beside the time of a bare Python: medians of eleven processes each."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time


def run(cuda: bool) -> dict[str, object]:
    """Return the two medians in seconds, and whether building the command line imported torch."""
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, ossia, ossia.cli.app as a; a.build(); print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {
        "unit": "seconds",
        "ossia --help": _median([sys.executable, "-m", "ossia", "--help"]),
        "bare python": _median([sys.executable, "-c", "pass"]),
        "torch imported": loaded.stdout.strip() == "True",
    }


def _median(command: list[str]) -> float:
    seconds = []
    for _ in range(11):
        began = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        seconds.append(time.perf_counter() - began)
    return round(statistics.median(seconds), 4)
