"""What a plan starts from: the figures of the model that a recipe names, this machine's, and a summary of the data."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ossia import files, hardware, runs
from ossia.adapters.layout import lora_targets
from ossia.checkpoint.layout import Shape
from ossia.checkpoint.locate import locate
from ossia.checkpoint.reader import CheckpointReader, read_shape
from ossia.config import LoraSection, ModelSection, Recipe
from ossia.errors import UserError, did_you_mean
from ossia.sequences.sharing import Saving, Sharing

PUBLISHED_SHAPES = {"gpt-oss-20b": Shape.GPT_OSS_20B, "gpt-oss-120b": Shape.GPT_OSS_120B}

SMALL_HEAD = 100_000_000
"""Parameters of a head up to which its rows are compared; the published ones have 579 million."""


@dataclass(frozen=True)
class FoundModel:
    """A model's figures, and its folder when the weights are on this machine.

    `head_rows`: the rows of the head that differ, which is what the loss computes (`ossia.model.loss.Head`).
    """

    name: str
    shape: Shape
    folder: Path | None
    head_rows: int


def published_shape(name: str) -> Shape:
    """Return the figures of a published model.

    Raises:
        UserError: not gpt-oss-20b or gpt-oss-120b.
    """
    known = name.lower().removeprefix("openai/")
    if known not in PUBLISHED_SHAPES:
        close = did_you_mean(known, PUBLISHED_SHAPES)
        raise UserError(
            f"{name!r} is not a published gpt-oss model",
            why=f"known: {', '.join(PUBLISHED_SHAPES)}",
            do=f"did you mean {close}?" if close else None,
        )
    return PUBLISHED_SHAPES[known]


def find_model(path: str) -> FoundModel:
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
            shape = published_shape(path)
            return FoundModel(path, shape, None, shape.vocabulary)
        raise
    shape = read_shape(folder)
    return FoundModel(path, shape, folder, _head_rows(folder, shape))


def head_rows(model: FoundModel, lora: LoraSection) -> int:
    """Rows of the head that the loss computes: equal ones once, unless the head itself is adapted."""
    return model.shape.vocabulary if "head" in lora_targets(lora) else model.head_rows


def _head_rows(folder: Path, shape: Shape) -> int:
    """Count the head's different rows in a small model; trained models have no equal ones to look for."""
    if shape.hidden * shape.vocabulary > SMALL_HEAD:
        return shape.vocabulary
    from ossia.model.loss import Head

    return len(Head.of(CheckpointReader(folder).get("lm_head.weight")).weight_VD)


@dataclass(frozen=True)
class Disk:
    """Free bytes at a folder; `volume` tells whether two folders share them."""

    folder: str
    free: int
    volume: int

    @staticmethod
    def of(folder: Path) -> Disk:
        return Disk(str(folder), files.free_bytes(folder), files.nearest_existing(folder).stat().st_dev)


@dataclass(frozen=True)
class Machine:
    """Where to compute, in which type, with how many bytes of memory and disk; every choice with its reason."""

    device: str
    device_reason: str
    dtype: str
    dtype_reason: str
    memory: int
    memory_reason: str
    runs: Disk
    models: Disk

    @staticmethod
    def here(wanted: ModelSection) -> Machine:
        """Ask this machine, as the recipe's model section wishes. Loads torch only where an NVIDIA driver is."""
        device = hardware.device(wanted.device)
        dtype = hardware.dtype(wanted.dtype, device.value)
        if device.value == "cuda":
            found = hardware.gpus().value
            memory = hardware.Answer(found[0].memory, f"memory of the {found[0].name}")
        else:
            memory = hardware.memory()
        return Machine(
            device.value,
            device.reason,
            dtype.value,
            dtype.reason,
            memory.value,
            memory.reason,
            Disk.of(runs.root()),
            Disk.of(files.cache_folder()),
        )


class Tokens(Protocol):
    """What is counted of a compiled example: its tokens, and how many of them are trained."""

    def __len__(self) -> int: ...
    @property
    def trained_tokens(self) -> int: ...


@dataclass(frozen=True)
class Examples:
    """What the plan knows of the data. Lengths in tokens; `trained` are the supervised ones among all tokens."""

    count: int
    tokens: int
    trained: int
    longest: int
    validation_tokens: int
    source: str
    """Where the figures come from; an assumption says so."""
    shared: int | None = None
    """Tokens left when the examples of a step share what they begin with. None: not counted."""

    @property
    def saving(self) -> Saving | None:
        """What sharing would save of an epoch. None: not counted."""
        return None if self.shared is None else Saving(self.tokens, self.shared)

    def computed(self, sharing: Sharing) -> int:
        """Return the tokens that an epoch computes."""
        return self.shared if sharing.on and self.shared is not None else self.tokens

    @staticmethod
    def counted(train: Sequence[Tokens], validation: Sequence[Tokens], saving: Saving | None = None) -> Examples:
        """Count compiled training examples."""
        lengths = [len(example) for example in train]
        trained = sum(example.trained_tokens for example in train)
        held_back = sum(map(len, validation))
        source = f"counted: {len(train):,} examples, {len(validation):,} for validation"
        shared = saving and saving.shared
        return Examples(len(train), sum(lengths), trained, max(lengths, default=0), held_back, source, shared)

    @staticmethod
    def assumed(recipe: Recipe, why: str = "no data are given") -> Examples:
        """Stand-in for data that cannot be counted yet."""
        count, mean = 1000, min(1024, recipe.data.max_tokens)
        held_back = round(count * (0.05 if recipe.data.validation else recipe.data.validation_share))
        return Examples(
            count=count,
            tokens=count * mean,
            trained=count * mean // 2,
            longest=recipe.data.max_tokens,
            validation_tokens=held_back * mean,
            source=f"assumed, because {why}: {count:,} examples of {mean:,} tokens, half of them supervised",
        )
