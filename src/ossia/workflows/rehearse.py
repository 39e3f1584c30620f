"""The workflow that rehearses a training: a few real steps on a full-size model with random weights.

A rehearsal runs the code of a fine-tune on random tokens, from the loader to AdamW (`ossia.train`). Its results are
compared with the plan of the same recipe (`ossia.plan`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import random
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ossia import events, hardware, recipes, runs
from ossia.checkpoint.layout import Shape
from ossia.checkpoint.reader import with_weights
from ossia.config import Recipe
from ossia.errors import DoesNotFitError, UserError, did_you_mean
from ossia.events import Note, OnEvent, counting, ignore
from ossia.plan import Examples, FoundModel, Machine, Plan, estimate, find_model
from ossia.plan.inputs import PUBLISHED_SHAPES, Disk
from ossia.plan.peak import Memory, Peak
from ossia.plan.speed import Speed, matmul, measure
from ossia.workflows import rehearsal_disk

TARGETS = ("attention", "experts")
"""The targets that an adapter can have in a rehearsal."""

MICRO_BATCH = 2048
"""Most tokens of a micro-batch. On a CPU, twice as many are not faster and take 1.4 GB more."""


@dataclass(frozen=True)
class RandomExample:
    """A training example of random tokens. The last ones are supervised, like an answer."""

    ids: list[int]
    trained_tokens: int
    """Number of supervised tokens."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def weights(self) -> list[float]:
        """The weight of each token in the loss: 1 for supervised tokens, else 0."""
        return [0.0] * (len(self) - self.trained_tokens) + [1.0] * self.trained_tokens

    @property
    def channels(self) -> list[str | None]:
        """The channel of each token."""
        return ["final"] * len(self)


@dataclass(frozen=True)
class Rehearsal:
    """The results of a rehearsal."""

    folder: Path
    """The folder of the model."""
    recipe: Recipe
    plan: Plan
    speed: Speed
    """The speed of this machine, measured before training."""
    load_seconds: float
    """Seconds to load the model."""
    steps: list[events.Step]
    memory: Memory
    """The peak during training, in bytes."""
    matmul_after: float
    """Operations per second of a large matrix product, measured after training."""
    stopped: bool
    """Whether the user stopped it before its last step."""

    @property
    def timed(self) -> list[events.Step]:
        """The steps that are timed: all but the first, in which pages and caches are cold. A single step is timed."""
        return self.steps[1:] or self.steps

    @property
    def seconds_per_step(self) -> float:
        """The median over the timed steps."""
        return statistics.median(step.seconds for step in self.timed)

    @property
    def tokens_per_second(self) -> float:
        """The median over the timed steps."""
        return statistics.median(step.tokens / step.seconds for step in self.timed)

    @property
    def matmul(self) -> float:
        """Operations per second of a large matrix product: the larger result of those before and after training."""
        return max(self.speed.flops, self.matmul_after)

    @property
    def share_of_matmul(self) -> float | None:
        """The ratio of training's operations per second to those of the matrix product.

        None if the ratio is above one, because then the product was measured too slowly. Other programs may have
        disturbed the measurement. Or the model is so small that calling the product takes longer than computing it.
        """
        share = self.tokens_per_second * self.plan.flops_per_token / self.matmul
        return share if share <= 1 else None

    @property
    def planned_seconds_per_step(self) -> float:
        """The plan's seconds of a step."""
        assert self.plan.seconds is not None
        return sum(self.plan.seconds.values()) / self.plan.work.steps

    def as_dict(self) -> dict[str, Any]:
        """Return all results for JSON."""
        plan, tokens = self.plan, self.plan.work.tokens / self.plan.work.steps
        return {
            "model": self.recipe.name,
            "folder": str(self.folder),
            "device": plan.machine.device,
            "dtype": plan.machine.dtype,
            "recipe": self.recipe.model_dump(mode="json", include={"model", "lora", "train"}),
            "load_seconds": self.load_seconds,
            "steps": [dataclasses.asdict(step) for step in self.steps],
            "stopped": self.stopped,
            "seconds_per_step": self.seconds_per_step,
            "tokens_per_second": self.tokens_per_second,
            "operations_per_token": plan.flops_per_token,
            "matmul": {
                "operations_per_second": self.matmul,
                "before": self.speed.flops,
                "after": self.matmul_after,
                "dtype": plan.machine.dtype,
                "note": self.speed.note,
            },
            "share_of_matmul": self.share_of_matmul,
            "memory": dataclasses.asdict(self.memory),
            "plan": {
                "memory": [dataclasses.asdict(line) for line in plan.memory],
                "memory_needed": plan.memory_needed,
                "memory_unmapped": plan.memory_unmapped,
                "seconds": plan.seconds,
                "seconds_per_step": self.planned_seconds_per_step,
                "tokens_per_second": tokens / self.planned_seconds_per_step,
                "verdict": plan.verdict,
                "reasons": plan.reasons,
            },
        }


@dataclass(frozen=True, kw_only=True)
class RehearsedModel(events.Event):
    """The model of a rehearsal was found, or is about to be written."""

    kind: ClassVar[str] = "rehearsed-model"
    name: str
    folder: Path
    is_here: bool
    """Whether the model is complete. Otherwise it is about to be written."""
    needed: int
    """Bytes to be written: the missing part of the model, and a checkpoint of its adapter."""
    free: hardware.Answer[int]
    """Free bytes on the disk of the model."""


def rehearse(
    model: str,
    *,
    folder: Path | str | None = None,
    steps: int = 2,
    tokens: int = 4096,
    sequence: int = 512,
    supervised: float = 0.4,
    targets: Sequence[str] = TARGETS,
    rank: int = 16,
    expert_rank: int = 8,
    overrides: Iterable[str] = (),
    on_event: OnEvent = ignore,
) -> Rehearsal:
    """Return the measured time and memory of a few real training steps on a full-size model with random weights.

    The model is written once (13.8 GB for gpt-oss-20b) and stays. If writing is interrupted, the next call continues
    it.

    Args:
        model: gpt-oss-20b, gpt-oss-120b, or tiny.
        folder: the folder of the model. It may contain the published weights. By default it is a folder in Ossia's
            cache.
        steps: number of optimiser steps. The first step is for warming up, unless it is the only one.
        tokens: tokens of a step.
        sequence: tokens of an example.
        supervised: share of the tokens that are supervised, 0..1.
        targets: the targets that get an adapter: attention, experts.
        rank: the LoRA rank of attention.
        expert_rank: the LoRA rank of the experts.
        overrides: `section.key=value` of the sections model, lora and train.
        on_event: called with `RehearsedModel`, with progress, and with the events of the training.

    Raises:
        UserError: there is no such model, a rehearsal does not have the setting, or the folder contains other files.
        DoesNotFitError: the memory or a disk is too small.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a rehearsal runs in one process", do="start it without torchrun or accelerate launch")
    name, shape = shape_of(model)
    place = Path(folder) if folder is not None else rehearsal_disk.scratch_folder() / name
    lora = {"targets": _checked_targets(targets), "rank": rank, "alpha": 2.0 * rank,
            "expert_rank": expert_rank, "expert_alpha": 2.0 * expert_rank}  # fmt: skip
    recipe = recipe_of(name, place, lora, steps=steps, tokens=tokens, sequence=sequence, overrides=list(overrides))
    examples = random_examples(recipe, shape, sequence, supervised)
    plan = plan_of(recipe, FoundModel(name, shape, place, shape.vocabulary), examples)
    require_memory(plan)
    _provide_model(name, place, shape, rehearsal_disk.adapter_bytes(plan), on_event)
    with rehearsal_disk.scratch_run(recipe) as run:
        with counting(on_event, "measuring this machine, loading the model"):
            plan, speed, load_seconds = _measured(place, recipe, examples)
        taken, memory, stopped = _train(plan, run, examples, on_event)
    return Rehearsal(
        folder=place,
        recipe=recipe,
        plan=plan,
        speed=speed,
        load_seconds=load_seconds,
        steps=taken,
        memory=memory,
        matmul_after=matmul(shape, plan.machine.device, plan.machine.dtype),
        stopped=stopped,
    )


def _checked_targets(names: Sequence[str]) -> list[str]:
    unknown = next((name for name in names if name not in TARGETS), None)
    if unknown is not None or not names:
        close = did_you_mean(unknown or "", TARGETS)
        raise UserError(
            f"there is no target {unknown!r}" if unknown else "no target is named",
            where="--targets",
            do=f"--targets {close}" if close else f"--targets {','.join(TARGETS)}",
        )
    return list(names)


def _provide_model(name: str, place: Path, shape: Shape, adapter: int, on_event: OnEvent) -> None:
    """Write the model unless it is there. The needed disk space is reported first."""
    here = rehearsal_disk.is_here(place, shape)
    missing = 0 if here else rehearsal_disk.missing_bytes(place, shape)
    free = hardware.disk(place)
    on_event(RehearsedModel(name=name, folder=place, is_here=here, needed=missing + adapter, free=free))
    rehearsal_disk.require_disk(place, missing, adapter)
    if here:
        return
    try:
        rehearsal_disk.write_random_model(name, place, shape, on_event)
    except KeyboardInterrupt:
        message = "the written part of the model stays, and the same command continues it"
        on_event(Note(level="info", message=message))
        raise


def shape_of(name: str) -> tuple[str, Shape]:
    """Return the name without its owner, and the dimensions, of a model that can be rehearsed.

    Raises:
        UserError: the name is not gpt-oss-20b, gpt-oss-120b or tiny.
    """
    from ossia.checkpoint.tiny import TINY

    known = PUBLISHED_SHAPES | {"tiny": TINY}
    short = name.lower().removeprefix("openai/")
    if short not in known:
        close = did_you_mean(short, known)
        raise UserError(
            f"there is no model {name!r} to rehearse",
            why=f"known: {', '.join(known)}",
            do=f"ossia rehearse {close}" if close else "ossia rehearse tiny",
        )
    return short, known[short]


def recipe_of(
    name: str, folder: Path, lora: dict[str, Any], *, steps: int, tokens: int, sequence: int, overrides: list[str]
) -> Recipe:
    """Return the recipe of a rehearsal, which has no validation.

    Args:
        folder: the folder of the model.
        lora: the settings of the section `lora`.
        tokens: tokens of a step.
        sequence: tokens of an example.
        overrides: `section.key=value` of the sections model, lora and train.

    Raises:
        UserError: a sequence is longer than a step, an override is wrong, or a rehearsal does not have its setting.
    """
    if sequence > tokens:
        raise UserError(
            f"a sequence of {sequence} tokens does not fit into a step of {tokens}",
            do=f"--tokens {sequence}, or a smaller --sequence",
        )
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key.partition(".")[0] not in ("model", "lora", "train") or key == "model.path":
            raise UserError(
                "a rehearsal has no such setting",
                where=f"--set {override}",
                why="it uses random tokens as data, and the model given by name",
                do="use settings of model (except path, which is --folder), lora and train",
            )
    values = {
        "name": name,
        "description": f"rehearsal of {name} on random tokens",
        "model": {"path": str(folder)},
        "data": {"max_tokens": max(32, sequence), "validation_share": 0.0},
        "lora": lora,
        "train": {
            "steps": steps,
            "examples_per_step": tokens // sequence,
            "tokens_per_micro_batch": max(64, sequence, min(tokens // sequence * sequence, MICRO_BATCH)),
            "schedule": "constant",
            "samples": 0,
            "checkpoint_every": 1_000_000,  # so only the checkpoint at the end is written
            "keep_checkpoints": 1,
        },
    }
    return recipes.parse_recipe(json.dumps(values), where=f"rehearsal of {name}", overrides=overrides)


def random_examples(recipe: Recipe, shape: Shape, sequence: int, supervised: float) -> list[RandomExample]:
    """Return the random examples of all steps, the same ones for the same seed.

    Args:
        sequence: tokens of an example.
        supervised: share of the tokens that are supervised, 0..1.
    """
    rng, ids = random.Random(recipe.train.seed), range(shape.vocabulary)
    assert recipe.train.steps is not None
    trained = min(sequence - 1, max(1, round(sequence * supervised)))
    count = recipe.train.steps * recipe.train.examples_per_step
    return [RandomExample(rng.choices(ids, k=sequence), trained) for _ in range(count)]


def plan_of(recipe: Recipe, found: FoundModel, examples: list[RandomExample], speed: Speed | None = None) -> Plan:
    """Return the plan of the recipe, with unlimited disk space for runs. A rehearsal writes less than a training."""
    roomy = dataclasses.replace(Disk.of(rehearsal_disk.scratch_folder()), free=1 << 60)
    machine = dataclasses.replace(Machine.here(recipe.model), runs=roomy)
    return estimate(recipe, found, Examples.counted(examples, []), machine, speed=speed)


def require_memory(plan: Plan) -> None:
    """Check that the rehearsal fits into memory.

    Raises:
        DoesNotFitError: the plan's verdict is "does not fit". The error proposes options of `ossia rehearse`.
    """
    if plan.verdict == "does not fit":
        raise DoesNotFitError(
            f"a training of {plan.recipe.name} with these settings does not fit",
            why="; ".join(plan.reasons),
            do="fewer --tokens, a smaller --rank and --expert-rank, or --targets attention",
        )


def _measured(folder: Path, recipe: Recipe, examples: list[RandomExample]) -> tuple[Plan, Speed, float]:
    """Return the plan, the measured speed of the machine, and the seconds of the loader."""
    import ossia.model.modeling  # noqa: F401  so that the import of transformers is not timed

    found = find_model(str(folder))
    machine = Machine.here(recipe.model)
    speed = measure(found.shape, machine.device, machine.dtype)
    plan = plan_of(recipe, found, examples, speed)
    return plan, speed, _time_loading(with_weights(folder) or folder, recipe, machine.device)


def _time_loading(folder: Path, recipe: Recipe, device: str) -> float:
    """Return the seconds to load every tensor to its device. Training loads the model again."""
    from ossia.model.load import load_model

    start = time.perf_counter()
    model = load_model(folder, dtype=recipe.model.dtype, device=recipe.model.device)
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    del model
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return seconds


def _train(
    plan: Plan, run: runs.Run, examples: list[RandomExample], on_event: OnEvent
) -> tuple[list[events.Step], Memory, bool]:
    """Train as `ossia train` does. Return the steps, the peak of the memory, and whether the user stopped it early."""
    from ossia.train.callbacks import INTERRUPTED
    from ossia.train.supervised import train

    steps: list[events.Step] = []
    with contextlib.ExitStack() as loading, Peak(plan.machine.device) as peak:
        loading.enter_context(counting(on_event, "loading the model"))

        def watch(event: events.Event) -> None:
            loading.close()  # any event of training means that the model is loaded
            if isinstance(event, events.Step):
                steps.append(event)
            on_event(event)

        last = train(plan.recipe, run, examples, [], command="ossia rehearse", watch=watch)
    return steps, peak.memory, last.reason == INTERRUPTED
