"""A few real training steps on a model of full size with random weights: what a fine-tune will take, measured.

It goes through the code of a fine-tune, from the loader to AdamW (`ossia.train`), on random tokens, and is held against
the plan of the same recipe (`ossia.plan`). Stages do not import one another, so what joins the two is here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import random
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ossia import events, files, recipes, runs
from ossia.checkpoint.layout import Shape, bytes_of
from ossia.checkpoint.reader import INDEX, SINGLE, CheckpointReader, with_weights
from ossia.config import Recipe
from ossia.errors import DoesNotFitError, UserError, did_you_mean
from ossia.plan import Examples, FoundModel, Machine, Plan, estimate, find_model
from ossia.plan.inputs import PUBLISHED_SHAPES, Disk
from ossia.plan.peak import Memory
from ossia.plan.speed import Speed

MICRO_BATCH = 2048
"""Tokens of a micro-batch. On a CPU twice as many are not faster and take 1.4 GB more."""

Report = Callable[[int, int, str], None]
"""Told (bytes done, bytes in total, tensor name)."""


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
class Result:
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
        """All of it for JSON."""
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


def shape_of(name: str) -> tuple[str, Shape]:
    """The name without its owner, and the figures, of a model that can be rehearsed.

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
    """The recipe of a rehearsal: `tokens` of `sequence` tokens each per step, MICRO_BATCH at a time, none validated.

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
    """As many random examples as the steps take, the same ones every time."""
    rng, ids = random.Random(recipe.train.seed), range(shape.vocabulary)
    assert recipe.train.steps is not None
    trained = min(sequence - 1, max(1, round(sequence * supervised)))
    count = recipe.train.steps * recipe.train.examples_per_step
    return [RandomExample(rng.choices(ids, k=sequence), trained) for _ in range(count)]


def plan_of(recipe: Recipe, found: FoundModel, examples: list[RandomExample], speed: Speed | None = None) -> Plan:
    """What `ossia plan` says of the recipe, but for the disk: a rehearsal writes less (`require_disk`)."""
    roomy = dataclasses.replace(Disk.of(scratch_folder()), free=1 << 60)
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


def scratch_folder() -> Path:
    """Where checkpoints and runs of rehearsals lie by default."""
    return files.cache_folder() / "rehearsal"


def is_here(folder: Path, shape: Shape) -> bool:
    """Whether the folder holds a complete checkpoint of this shape, random or real.

    Raises:
        UserError: it holds another model or other files, so nothing should be written to it.
    """
    place = with_weights(folder)
    if place is not None:
        reader = CheckpointReader(place)
        if reader.shape() != shape:
            raise UserError("the folder holds another model", where=str(folder), do="choose another --folder")
        reader.check(shape)
        return True
    names, patterns = (".partial", INDEX, SINGLE), ("model-*.safetensors", files.TEMPORARY)
    others = [file.name for file in _listed(folder) if file.name not in names and not any(map(file.match, patterns))]
    if others:
        raise UserError(
            f"the folder holds other files ({others[0]})", where=str(folder), do="name a new or an empty --folder"
        )
    return False


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        raise UserError("this is not a folder", where=str(folder), do="name a new or an empty --folder") from None


def missing_bytes(folder: Path, shape: Shape) -> int:
    """Bytes that are still to be written of a checkpoint that may have been begun."""
    begun = [*folder.glob("model*.safetensors"), *folder.glob(".partial/model*.safetensors")]
    return max(0, bytes_of(shape) - sum(file.stat().st_size for file in begun))


def adapter_bytes(plan: Plan) -> int:
    """Bytes of the checkpoint that every training ends with: the adapter and AdamW's moments."""
    return plan.disk_needed // (plan.recipe.train.keep_checkpoints + 2)


def require_disk(folder: Path, missing: int, adapter: int) -> None:
    """Raise DoesNotFitError unless the model, and for a while an adapter's checkpoint, have room where they go."""
    if Disk.of(folder).volume == Disk.of(scratch_folder()).volume:
        files.check_disk(folder, missing + adapter, "the model with a checkpoint of its adapter")
        return
    files.check_disk(folder, missing, "the model")
    files.check_disk(scratch_folder(), adapter, "the checkpoint of the adapter")


def write(folder: Path, shape: Shape, report: Report) -> None:
    """Write a checkpoint of random weights, or go on with one that was begun.

    Raises:
        DoesNotFitError: the disk is too small.
    """
    from ossia.checkpoint.synthetic import write_synthetic
    from ossia.harmony.tokenizer.vocabulary import offline_tokenizer_folder

    tokenizer: Path | None = None
    try:
        offline_tokenizer_folder()
    except UserError:
        tokenizer = scratch_folder()  # random tokens need no tokenizer, and in there is none to copy
    write_synthetic(folder, shape, progress=report, tokenizer_folder=tokenizer)


@contextlib.contextmanager
def scratch_run(recipe: Recipe) -> Iterator[runs.Run]:
    """A run folder that goes away when the rehearsal ends."""
    home = scratch_folder()
    home.mkdir(parents=True, exist_ok=True)
    _remove_dead(home)
    run = runs.Run(home / f"run-{os.getpid()}")
    shutil.rmtree(run.path, ignore_errors=True)  # of a killed process with our number
    run.path.mkdir()
    try:
        files.write_atomically(run.path / "recipe.yaml", recipes.dump(recipe))
        yield run
    finally:
        shutil.rmtree(run.path, ignore_errors=True)


def _remove_dead(home: Path) -> None:
    """Remove the runs of rehearsals that were killed."""
    for path in home.glob("run-*"):
        number = path.name.removeprefix("run-")
        if number.isdecimal() and not files.is_alive(int(number)):
            shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True)
class Prepared:
    """A model that was loaded once, and what the machine can do."""

    folder: Path
    recipe: Recipe
    shape: Shape
    examples: list[RandomExample]
    plan: Plan
    speed: Speed
    load_seconds: float

    def train(self, run: runs.Run, watch: Callable[[events.Event], None]) -> Result:
        """Train as `ossia train` does, and put what that took beside the plan."""
        from ossia.plan.peak import Peak
        from ossia.plan.speed import matmul
        from ossia.train.callbacks import INTERRUPTED
        from ossia.train.supervised import train

        steps: list[events.Step] = []

        def collect(event: events.Event) -> None:
            if isinstance(event, events.Step):
                steps.append(event)
            watch(event)

        machine = self.plan.machine
        with Peak(machine.device) as peak:
            last = train(self.recipe, run, self.examples, [], command="ossia rehearse", watch=collect)
        return Result(
            folder=self.folder,
            recipe=self.recipe,
            plan=self.plan,
            speed=self.speed,
            load_seconds=self.load_seconds,
            steps=steps,
            memory=peak.memory,
            matmul_after=matmul(self.shape, machine.device, machine.dtype),
            stopped=last.reason == INTERRUPTED,
        )


def prepare_run(folder: Path, recipe: Recipe, examples: list[RandomExample]) -> Prepared:
    """Measure the machine, make the plan and time the loader."""
    import ossia.model.modeling  # noqa: F401  importing transformers' part of it is not what is timed
    from ossia.plan.speed import measure

    found = find_model(str(folder))
    machine = Machine.here(recipe.model)
    speed = measure(found.shape, machine.device, machine.dtype)
    plan = plan_of(recipe, found, examples, speed)
    seconds = _time_loading(with_weights(folder) or folder, recipe, machine.device)
    return Prepared(folder, recipe, found.shape, examples, plan, speed, seconds)


def _time_loading(folder: Path, recipe: Recipe, device: str) -> float:
    """Seconds that the loader takes until every tensor is where it belongs. Training loads once more, by itself."""
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
