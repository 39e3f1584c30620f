"""What merged tensors are written as, a file each: it takes a `MergedModel` and returns what it wrote.

safetensors     a checkpoint in the published layout
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ossia.export.rounding import Survival


@dataclass
class WrittenTensors:
    """What was written.

    digests: SHA-256 of each tensor's bytes, in hexadecimal.
    copied: names of those that are the source's own bytes.
    survival: of every tensor that got an update.
    """

    digests: dict[str, str] = field(default_factory=dict)
    copied: set[str] = field(default_factory=set)
    survival: list[Survival] = field(default_factory=list)
