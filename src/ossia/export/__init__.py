"""Stage 5: writes a tuned model in the formats of other programs, verifies it and reports the effects of rounding.

    job         an export from beginning to end
    source      the source of an export: a run's checkpoint, or an adapter folder with its base
    targets/    the formats that can be written, one module each
    merged      base + adapter as an iterator over tensors, for every writer
    rounding    rounding of merged weights, its effect on the update, and the experts' format
    writers/    file formats of merged tensors, one module each
    verify      checks of the written bytes and of the merged model's predictions
    card        the model card: README.md of an export
    folder      the folder of an export, which appears only when it is complete

Importing this package does not import torch, so `ossia export --help` is fast.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal

ExpertsFormat = Literal["auto", "bf16", "mxfp4"]
"""The format of a merged model's experts. auto: four bits if they keep the fine-tune, else bfloat16."""
UnitsDone = Callable[[int], None]
"""A function that is called with the number of bytes, or other units, done since its last call."""
ProgressFactory = Callable[[str, int], AbstractContextManager[UnitsDone]]
"""A function that takes a title and a total, and returns a context manager whose value is a `UnitsDone`."""
