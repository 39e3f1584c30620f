"""The inputs of a plan: the dimensions of the recipe's model, this machine, and a summary of the data."""

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
"""Largest head, in parameters, whose rows are compared with each other. The published heads have 579 million."""


@dataclass(frozen=True)
class FoundModel:
    """The dimensions of a model, and its folder if the weights are on this machine."""

    name: str
    """The model as the recipe gives it: a name or a folder."""
    shape: Shape
    folder: Path | None
    """None if the weights are not on this machine."""
    head_rows: int
    """Number of different rows of the head. The loss computes equal rows once (`ossia.model.loss.Head`)."""


def published_shape(name: str) -> Shape:
    """Return the dimensions of a published model.

    Raises:
        UserError: the name is not gpt-oss-20b or gpt-oss-120b.
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
    """Return a model that is on this machine, else the published model of that name, without a folder.

    Raises:
        UserError: `path` is neither a checkpoint on this machine nor gpt-oss-20b or gpt-oss-120b.
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
    """Return the number of rows of the head that the loss computes: equal rows once, unless the head has an adapter.

    Raises:
        UserError: the adapter of `lora.start_from` cannot be read.
    """
    return model.shape.vocabulary if "head" in lora_targets(lora) else model.head_rows


def _head_rows(folder: Path, shape: Shape) -> int:
    """Return the number of different rows in a small head. A larger head is assumed to have no equal rows."""
    if shape.hidden * shape.vocabulary > SMALL_HEAD:
        return shape.vocabulary
    from ossia.model.loss import Head

    return len(Head.of(CheckpointReader(folder).get("lm_head.weight")).weight_VD)


@dataclass(frozen=True)
class Disk:
    """The free space for a folder."""

    folder: str
    free: int
    """Bytes."""
    volume: int
    """Number of the device (`st_dev`). Two folders with the same number share their free space."""

    @staticmethod
    def of(folder: Path) -> Disk:
        """Return the free space for a folder, which need not exist yet."""
        return Disk(str(folder), files.free_bytes(folder), files.nearest_existing(folder).stat().st_dev)


@dataclass(frozen=True)
class Machine:
    """The device and dtype to compute with, and the bytes of memory and disk. Every choice has its reason beside it."""

    device: str
    device_reason: str
    dtype: str
    dtype_reason: str
    memory: int
    """Bytes: all memory of the first GPU, or the main memory that is available now."""
    memory_reason: str
    runs: Disk
    """For the folder of all runs."""
    models: Disk
    """For Ossia's cache folder."""

    @staticmethod
    def here(wanted: ModelSection) -> Machine:
        """Return the figures of this machine for the recipe's model section.

        This loads torch only if there is an NVIDIA driver.

        Raises:
            UserError: the recipe requires a GPU and torch can use none.
        """
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
    """A compiled example, of which only the numbers of tokens and of supervised tokens are read."""

    def __len__(self) -> int: ...
    @property
    def trained_tokens(self) -> int:
        """Number of supervised tokens."""
        ...


@dataclass(frozen=True)
class Examples:
    """A summary of the data."""

    count: int
    """Number of training examples."""
    tokens: int
    """Tokens of all training examples."""
    trained: int
    """Supervised tokens among them."""
    longest: int
    """Tokens of the longest training example."""
    validation_tokens: int
    source: str
    """The source of the figures in words: counted, or assumed with the reason."""
    shared: int | None = None
    """Tokens of an epoch if the examples of a step share their prefixes. None: not counted."""

    @property
    def saving(self) -> Saving | None:
        """The saving by shared prefixes in an epoch. None: not counted."""
        return None if self.shared is None else Saving(self.tokens, self.shared)

    def computed(self, sharing: Sharing) -> int:
        """Return the number of tokens that an epoch computes."""
        return self.shared if sharing.on and self.shared is not None else self.tokens

    @staticmethod
    def counted(train: Sequence[Tokens], validation: Sequence[Tokens], saving: Saving | None = None) -> Examples:
        """Return the summary of compiled examples."""
        lengths = [len(example) for example in train]
        trained = sum(example.trained_tokens for example in train)
        held_back = sum(map(len, validation))
        source = f"counted: {len(train):,} examples, {len(validation):,} for validation"
        shared = saving and saving.shared
        return Examples(len(train), sum(lengths), trained, max(lengths, default=0), held_back, source, shared)

    @staticmethod
    def assumed(recipe: Recipe, why: str = "no data are given") -> Examples:
        """Return an assumed summary for data that cannot be counted yet. `why` completes "assumed, because ..."."""
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
