"""Stage 5: a tuned model that other programs load, and a report of what the writing did to it.

job         an export from beginning to end
source      what is exported: a run's checkpoint, or an adapter folder with its base
targets/    what can be made of it, a file each
merged      base + adapter as an iterator over tensors, for every writer
rounding    how merged weights are rounded, what is left of the update, the experts' format
writers/    what merged tensors are written as, a file each
verify      whether the written bytes and the merged model are the intended ones
card        README.md of an export
folder      where an export may go, and that it appears there complete

No torch is imported here, so that asking for help costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal

ExpertsFormat = Literal["auto", "bf16", "mxfp4"]
"""How the experts of a merged model are stored. auto: in four bits where they hold the fine-tune, else in bfloat16."""
UnitsDone = Callable[[int], None]
"""Told how many bytes, or other units, were done since the last call."""
ProgressFactory = Callable[[str, int], AbstractContextManager[UnitsDone]]
"""Called with a title and a total, gives a context whose value is told the units done."""
