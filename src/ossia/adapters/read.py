"""A LoRA adapter in PEFT's layout (`ossia.adapters.layout`), read as one update per tensor of the checkpoint.

Shapes: E experts, R LoRA rank, I input and O output size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ossia.adapters.config import WEIGHTS_FILE, AdapterConfig
from ossia.adapters.layout import EMBEDDINGS, StoredUpdate, read_layout
from ossia.checkpoint.layout import Shape
from ossia.errors import UserError


@dataclass(frozen=True)
class LoraDelta:
    """The update of one matrix, or of one matrix in every expert: scale * B A, [outputs, inputs] as in the checkpoint.

    Attributes:
        name: the matrix's name in a checkpoint with float tensors.
        a: [R, I] or [E, R, I], in the dtype of the file and mapped from it.
        b: [O, R] or [E, O, R], likewise.
    """

    name: str
    a: Tensor
    b: Tensor
    scale: float

    def matrix(self, expert: int | None = None, device: str = "cpu", rows: slice = slice(None)) -> Tensor:
        """Return the update, float32 [O, I], or some of its rows.

        Raises:
            UserError: it is not finite.
        """
        a, b = (self.a, self.b[rows]) if expert is None else (self.a[expert], self.b[expert][rows])
        a, b = a.to(device, torch.float32), b.to(device, torch.float32)
        if not bool(torch.isfinite(a).all() & torch.isfinite(b).all()):
            raise UserError(
                f"the update of {self.name} holds NaN or infinite values",
                why="training diverged",
                do="export an earlier checkpoint (--checkpoint STEP)",
            )
        return (self.scale * b) @ a

    def is_zero(self, expert: int | None = None) -> bool:
        """Return whether this update changes nothing, as for an expert to which no training token was routed."""
        a, b = (self.a, self.b) if expert is None else (self.a[expert], self.b[expert])
        return self.scale == 0 or not bool(a.any()) or not bool(b.any())


@dataclass(frozen=True)
class Adapter:
    """An adapter with its tensors.

    Attributes:
        deltas: name of the layout's float tensor (`...q_proj.weight`, `...experts.down_proj`) -> its update.
        copies: names and values of embeddings and head in the adapter's file. They must equal those of the base.
    """

    folder: Path
    config: AdapterConfig
    deltas: dict[str, LoraDelta]
    copies: tuple[tuple[str, Tensor], ...] = ()

    def check_copies(self, base: Callable[[str], Tensor]) -> None:
        """Check that the embeddings and the head in the file, if any, equal those of the base.

        Args:
            base: returns the base model's tensor of a name.

        Raises:
            UserError: one of them differs.
        """
        for name, copy in self.copies:
            original = base(name)
            wider = torch.promote_types(copy.dtype, original.dtype)
            if not torch.equal(copy.to(original.device, wider), original.to(wider)):
                raise UserError(
                    f"the adapter holds a {name} that is not this base model's",
                    where=str(self.folder / WEIGHTS_FILE),
                    why="it was trained on another base model, or beside fully trained embeddings",
                    do=self.config.remedy,
                )


def read_adapter(folder: Path, shape: Shape) -> Adapter:
    """Return an adapter for a model of this shape. Every tensor of the file is part of one update, or a copy.

    Raises:
        UserError: see `read_layout`.
    """
    found = read_layout(folder, shape)
    stored = load_file(folder / WEIGHTS_FILE)
    deltas = {update.weight.name: _delta(update, stored[update.a], stored[update.b]) for update in found.updates}
    copies = tuple((name, stored[key]) for key, name in found.copies.items())
    return Adapter(folder, found.config, deltas, copies)


def _delta(update: StoredUpdate, a: Tensor, b: Tensor) -> LoraDelta:
    """Return the update with A and B as [R, I] and [O, R], or as [E, R, I] and [E, O, R]."""
    if update.weight.experts:
        a = a.reshape(update.weight.experts, update.rank, -1)
        b = b.reshape(len(b), update.rank, update.weight.experts).permute(2, 0, 1)
    if update.swapped:
        a, b = b.mT, a.mT
    return LoraDelta(update.weight.name, a, b, update.scale)


def stored_pair(name: str, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return A and B of a `LoraDelta` of this name as they are stored, experts by the convention (experts, in, out)."""
    if a.ndim == 3:
        E, R, _ = a.shape
        return a.reshape(E * R, -1), b.permute(1, 2, 0).reshape(-1, R * E)
    return (b.mT, a.mT) if name == EMBEDDINGS else (a, b)
