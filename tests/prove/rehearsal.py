"""The proof of memory: real training steps on a gpt-oss-20b of full size with random weights, beside the plan."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

CHUNKS = 1
PROCESSES = 1
MOST_ANONYMOUS = 4.5e9
"""Bytes of main memory beside the mapped file. 3.7 GB were measured. A floating-point copy of a layer has 1.6 GB."""


def run_chunk(number: int) -> dict[str, Any]:
    """Run `ossia rehearse gpt-oss-20b` and return its JSON without the steps."""
    command = [sys.executable, "-m", "ossia", "rehearse", "gpt-oss-20b", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return {"rehearsal": {key: value for key, value in found.items() if key != "steps"}}


def verdict(totals: dict[str, Any]) -> dict[str, Any]:
    """Return the totals. The proof passes if the training took at most `MOST_ANONYMOUS` bytes."""
    anonymous = totals["rehearsal"]["memory"]["anonymous"]
    return {"passed": anonymous <= MOST_ANONYMOUS, "anonymous_bytes": anonymous, **totals}
