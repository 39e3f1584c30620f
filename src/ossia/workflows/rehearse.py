"""Rehearse a training: a few real steps on a full-size model with random weights, beside what the plan says of them.

A rehearsal goes through the code of a fine-tune, from the loader to AdamW (`ossia.train`), on random tokens, and is
held against the plan of the same recipe (`ossia.plan`).
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
"""What a rehearsal can adapt."""

MICRO_BATCH = 2048
"""Tokens of a micro-batch. On a CPU twice as many are not faster and take 1.4 GB more."""


@dataclass(frozen=True)
class RandomExample:
    """A training example of random tokens; the last ones are supervised, as an answer is."""

    ids: list[int]
    trained_tokens: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def weights(self) -> list[float]:
        return [0.0] * (len(self) - self.trained_tokens) + [1.0] * self.trained_tokens

    @property
    def channels(self) -> list[str | None]:
        return ["final"] * len(self)


@dataclass(frozen=True)
class Rehearsal:
    """What was measured. Seconds and bytes; `matmul_after` in operations per second, measured after training."""

    folder: Path
    recipe: Recipe
    plan: Plan
    speed: Speed
    load_seconds: float
    steps: list[events.Step]
    memory: Memory
    matmul_after: float
    stopped: bool
    """A person ended it before its last step."""

    @property
    def timed(self) -> list[events.Step]:
        """The steps that count: all but the first, in which pages and caches are still cold, if there are others."""
        return self.steps[1:] or self.steps

    @property
    def seconds_per_step(self) -> float:
        return statistics.median(step.seconds for step in self.timed)

    @property
    def tokens_per_second(self) -> float:
        return statistics.median(step.tokens / step.seconds for step in self.timed)

    @property
    def matmul(self) -> float:
        """Operations per second of a large matrix product: the better of before and after training."""
        return max(self.speed.flops, self.matmul_after)

    @property
    def share_of_matmul(self) -> float | None:
        """Operations per second of the training over those of the matrix product.

        None when that is above one, which cannot be: then other programs slowed the product down while it was
        measured, or the model is so small that calling the product takes longer than computing it.
        """
        share = self.tokens_per_second * self.plan.flops_per_token / self.matmul
        return share if share <= 1 else None

    @property
    def planned_seconds_per_step(self) -> float:
        assert self.plan.seconds is not None
        return sum(self.plan.seconds.values()) / self.plan.work.steps

    def as_dict(self) -> dict[str, Any]:
        """Return all of it for JSON."""
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
    """The model of a rehearsal was looked for: where it is, and what the disk must hold. Bytes."""

    kind: ClassVar[str] = "rehearsed-model"
    name: str
    folder: Path
    is_here: bool
    """It is complete; otherwise it is about to be written."""
    needed: int
    """What is still to be written: of the model, and of a checkpoint of its adapter."""
    free: hardware.Answer[int]


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
    """Return what a few real training steps took on a full-size model with random weights.

    The model is written once (13.8 GB for gpt-oss-20b) and stays. An interrupted writing is continued the next time.

    Args:
        model: gpt-oss-20b, gpt-oss-120b, or tiny.
        folder: where the model is or will be; real weights serve too. By default a folder in Ossia's cache.
        steps: optimiser steps; the first one only warms up. tokens: of a step. sequence: tokens of an example.
        supervised: share of the tokens that are trained on, 0..1.
        targets: what gets an adapter: attention, experts. rank, expert_rank: LoRA ranks of the two.
        overrides: `section.key=value` of the sections model, lora and train.
        on_event: called with `RehearsedModel`, with progress, and with the events of the training.

    Raises:
        UserError: no such model, a setting that a rehearsal does not have, or a folder with other files.
        DoesNotFitError: memory or disk are too small.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a rehearsal is one process", do="start it without torchrun or accelerate launch")
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
    """Take the model that is there, or write it. Says beforehand what that needs."""
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
        message = "what is written of the model stays; the same command goes on with it"
        on_event(Note(level="info", message=message))
        raise


def shape_of(name: str) -> tuple[str, Shape]:
    """Return the name without its owner, and the figures, of a model that can be rehearsed.

    Raises:
        UserError: not gpt-oss-20b, gpt-oss-120b or tiny.
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
    """Return the recipe of a rehearsal. A step has `tokens` tokens in examples of `sequence`, and nothing is validated.

    Raises:
        UserError: a sequence is longer than a step, or an override is wrong or has nothing to say here.
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
                why="it has random tokens for data, and the model it is named after",
                do="settings of model (but for path, which is --folder), lora and train",
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
            "checkpoint_every": 1_000_000,  # only the one that every training ends with
            "keep_checkpoints": 1,
        },
    }
    return recipes.parse_recipe(json.dumps(values), where=f"rehearsal of {name}", overrides=overrides)


def random_examples(recipe: Recipe, shape: Shape, sequence: int, supervised: float) -> list[RandomExample]:
    """Return as many random examples as the steps take, the same ones every time."""
    rng, ids = random.Random(recipe.train.seed), range(shape.vocabulary)
    assert recipe.train.steps is not None
    trained = min(sequence - 1, max(1, round(sequence * supervised)))
    count = recipe.train.steps * recipe.train.examples_per_step
    return [RandomExample(rng.choices(ids, k=sequence), trained) for _ in range(count)]


def plan_of(recipe: Recipe, found: FoundModel, examples: list[RandomExample], speed: Speed | None = None) -> Plan:
    """Return the plan of the recipe, but with room on the disk: a rehearsal writes less than a training."""
    roomy = dataclasses.replace(Disk.of(rehearsal_disk.scratch_folder()), free=1 << 60)
    machine = dataclasses.replace(Machine.here(recipe.model), runs=roomy)
    return estimate(recipe, found, Examples.counted(examples, []), machine, speed=speed)


def require_memory(plan: Plan) -> None:
    """Raise DoesNotFitError when the plan says so, with remedies that a rehearsal has."""
    if plan.verdict == "does not fit":
        raise DoesNotFitError(
            f"a training of {plan.recipe.name} like this does not fit",
            why="; ".join(plan.reasons),
            do="fewer --tokens, a smaller --rank and --expert-rank, or --targets attention",
        )


def _measured(folder: Path, recipe: Recipe, examples: list[RandomExample]) -> tuple[Plan, Speed, float]:
    """Measure the machine and time the loader. Returns the plan, the machine's speed, and the loader's seconds."""
    import ossia.model.modeling  # noqa: F401  importing transformers' part of it is not what is timed

    found = find_model(str(folder))
    machine = Machine.here(recipe.model)
    speed = measure(found.shape, machine.device, machine.dtype)
    plan = plan_of(recipe, found, examples, speed)
    return plan, speed, _time_loading(with_weights(folder) or folder, recipe, machine.device)


def _time_loading(folder: Path, recipe: Recipe, device: str) -> float:
    """Return the seconds until every tensor is loaded to where it belongs. Training loads once more, by itself."""
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
    """Train as `ossia train` does. Returns the steps, the peak of the memory, and whether a person ended it early."""
    from ossia.train.callbacks import INTERRUPTED
    from ossia.train.supervised import train

    steps: list[events.Step] = []
    with contextlib.ExitStack() as loading, Peak(plan.machine.device) as peak:
        loading.enter_context(counting(on_event, "loading the model"))

        def watch(event: events.Event) -> None:
            loading.close()  # whatever training reports first, the model is there
            if isinstance(event, events.Step):
                steps.append(event)
            on_event(event)

        last = train(plan.recipe, run, examples, [], command="ossia rehearse", watch=watch)
    return steps, peak.memory, last.reason == INTERRUPTED
