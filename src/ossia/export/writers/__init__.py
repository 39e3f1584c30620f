"""File formats of merged tensors, one module each.

    safetensors    a checkpoint in the published layout

A writer takes a `MergedModel` and returns `WrittenTensors`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ossia.export.rounding import Survival


@dataclass
class WrittenTensors:
    """The record of the tensors that a writer wrote."""

    digests: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the bytes of each tensor in hexadecimal, by name."""
    copied: set[str] = field(default_factory=set)
    """Names of the tensors that are the source's bytes."""
    survival: list[Survival] = field(default_factory=list)
    """The effect of rounding on every tensor with an update."""
