"""The figures of the model that a recipe names, whether its weights are here or not."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from ossia.adapters.layout import lora_targets
from ossia.checkpoint.layout import Shape
from ossia.checkpoint.locate import locate
from ossia.checkpoint.reader import CheckpointReader, read_shape
from ossia.config import LoraSection
from ossia.errors import UserError, did_you_mean

PUBLISHED = {"gpt-oss-20b": Shape.GPT_OSS_20B, "gpt-oss-120b": Shape.GPT_OSS_120B}

SMALL_HEAD = 100_000_000
"""Parameters of a head up to which its rows are compared; the published ones have 579 million."""


@dataclass(frozen=True)
class Found:
    """A model's figures, and its folder when the weights are on this machine.

    `head_rows`: the rows of the head that differ, which is what the loss computes (`ossia.model.loss.Head`).
    """

    name: str
    shape: Shape
    folder: Path | None
    head_rows: int


def published(name: str) -> Shape:
    """Return the figures of a published model.

    Raises:
        UserError: not gpt-oss-20b or gpt-oss-120b.
    """
    known = name.lower().removeprefix("openai/")
    if known not in PUBLISHED:
        close = did_you_mean(known, PUBLISHED)
        raise UserError(
            f"{name!r} is not a published gpt-oss model",
            why=f"known: {', '.join(PUBLISHED)}",
            do=f"did you mean {close}?" if close else None,
        )
    return PUBLISHED[known]


def find_model(path: str) -> Found:
    """Look for a model on this machine, then among the published names.

    Raises:
        UserError: neither a checkpoint that is here nor gpt-oss-20b or gpt-oss-120b.
    """
    try:
        folder = locate(path)
    except UserError:
        if Path(path).is_dir():
            raise
        with contextlib.suppress(UserError):
            shape = published(path)
            return Found(path, shape, None, shape.vocabulary)
        raise
    shape = read_shape(folder)
    return Found(path, shape, folder, _head_rows(folder, shape))


def head_rows(model: Found, lora: LoraSection) -> int:
    """Rows of the head that the loss computes: equal ones once, unless the head itself is adapted."""
    return model.shape.vocabulary if "head" in lora_targets(lora) else model.head_rows


def _head_rows(folder: Path, shape: Shape) -> int:
    """Count the head's different rows in a small model; trained models have no equal ones to look for."""
    if shape.hidden * shape.vocabulary > SMALL_HEAD:
        return shape.vocabulary
    from ossia.model.loss import Head

    return len(Head.of(CheckpointReader(folder).get("lm_head.weight")).weight_VD)
