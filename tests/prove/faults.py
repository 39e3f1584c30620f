"""Damaged files: a mutation of a run, checkpoint, base, adapter or recipe ends in a sentence or changes nothing.

A mutation changes bytes, a value of JSON or the size of one file. Code that uses the file afterwards must refuse it
with an `OssiaError`, or give the same result as before. Any other exception is a traceback for a user. More than ten
seconds of processor time count as a hang.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ossia import recipes, runs
from ossia.adapters import identity
from ossia.adapters.config import CONFIG_FILE, WEIGHTS_FILE
from ossia.checkpoint.tiny import MICRO, write_tiny
from ossia.errors import OssiaError
from support.train_samples import examples, losses, recipe

CHUNKS = 44
MUTATIONS = 50
"""Of a chunk."""
LONGEST_SECONDS = 10

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 7, 0.5, -0.0, 1e308, float("inf"), float("nan"), 10**30, -(10**18), "", "x", "²"),
    *("../../x", "/dev/null", "\x00", "\ud800", [], {}, [[]], {"x": 1}, [None], ["x"] * 3, "1e5", "a" * 100_000),
)
"""What a value of JSON is replaced with."""


class World(NamedTuple):
    """A copy of a base, a run on it that stopped in the middle, and an adapter of another program."""

    base: Path
    run: runs.Run
    adapter: Path


class Kind(NamedTuple):
    """A kind of file: where it is, what uses it, and whether every other result is a fault.

    `sealed`: the checkpoint's record is made anew after the mutation, so that the file's own reader meets it.
    """

    name: str
    file: Callable[[World], Path]
    use: Callable[[World], Any]
    is_guarded: bool = True
    sealed: bool = False


def run_chunk(number: int) -> dict[str, Any]:
    """Return counts by kind and outcome, and the first faults."""
    counts: dict[str, Any] = {"mutations": 0, "faults": 0, "first": []}
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        for index in range(MUTATIONS):
            seed = number * MUTATIONS + index
            kind = KINDS[seed % len(KINDS)]
            outcome, detail = mutate_and_use(kind, random.Random(seed))
            counts["mutations"] += 1
            key = f"{kind.name}: {outcome}"
            counts[key] = counts.get(key, 0) + 1
            if outcome not in ("refused", "same"):
                counts["faults"] += 1
                counts["first"].append(f"seed {seed}, {kind.name}: {outcome}: {detail}")
    return counts


def verdict(totals: dict[str, Any]) -> dict[str, Any]:
    """Passed where no mutation ended in a traceback, a hang, or another result without a word."""
    return {"passed": totals["faults"] == 0, **{key: totals[key] for key in sorted(totals)}}


def mutate_and_use(kind: Kind, rng: random.Random) -> tuple[str, str]:
    """Return the outcome (refused, same, different, traceback or hang) of one mutation, and what happened."""
    with tempfile.TemporaryDirectory() as folder, _runs_in(Path(folder) / "runs"):
        world = copied(Path(folder))
        file = kind.file(world)
        what = mutate(file, rng)
        if kind.sealed:
            _seal(file)
        try:
            with _limited():
                result = kind.use(world)
        except OssiaError as error:
            return "refused", f"{what}: {error}"
        except TimeoutError:
            return "hang", what
        except Exception:
            return "traceback", f"{what}: {traceback.format_exc(limit=-3)}"
        if kind.is_guarded and result != undisturbed(kind.name):
            return "different", f"{what}: {result} instead of {undisturbed(kind.name)}"
        return "same", what


@functools.cache
def undisturbed(name: str) -> Any:
    """Return what a kind's use gives where nothing was changed."""
    kind = next(kind for kind in KINDS if kind.name == name)
    with tempfile.TemporaryDirectory() as folder, _runs_in(Path(folder) / "runs"):
        return kind.use(copied(Path(folder)))


@functools.cache
def _template() -> Path:
    """Make the world that is copied for each mutation: once in a process."""
    from ossia.train.supervised import train

    folder = Path(tempfile.mkdtemp(prefix="ossia-faults-"))
    base = write_tiny(folder / "base", MICRO, seed=0)
    with _runs_in(folder / "runs"):
        wanted = recipe(base, steps=3, keep_checkpoints=5, checkpoint_every=2)
        run = runs.create(wanted, "test")
        train(wanted, run, examples(8), [])
    shutil.rmtree(run.checkpoint(3))
    (run.checkpoints / runs.BEST).write_text(json.dumps({"step": 2, "validation_loss": 1.0}))
    (folder / "adapter").mkdir()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copy(run.checkpoint(2) / name, folder / "adapter")
    (folder / "recipe.yaml").write_text(recipes.available()["tiny-demo"].read_text())
    return folder


def copied(folder: Path) -> World:
    """Return a copy of the template in a folder. Its run and its adapter name the copy's base."""
    template = _template()
    shutil.copytree(template, folder, dirs_exist_ok=True)
    (path,) = (folder / "runs").glob("*_t_*")
    text = (path / "recipe.yaml").read_text().replace(str(template), str(folder))
    (path / "recipe.yaml").write_text(text)
    config = folder / "adapter" / CONFIG_FILE
    config.write_text(config.read_text().replace(str(template), str(folder)))
    return World(folder / "base", runs.Run(path), folder / "adapter")


def mutate(file: Path, rng: random.Random) -> str:
    """Change a file in one way and return in words how."""
    data = file.read_bytes()
    is_text = file.suffix in (".json", ".yaml", ".jsonl")
    if is_text and rng.random() < 0.7:
        return _mutate_value(file, rng)
    place = rng.randrange(max(1, len(data)))
    length = rng.choice([1, 2, 8, 100, len(data)])
    ways: dict[str, Callable[[], bytes]] = {
        "flip": lambda: data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :],
        "cut": lambda: data[:place],
        "zero": lambda: data[:place] + bytes(min(length, len(data) - place)) + data[place + length :],
        "remove": lambda: data[:place] + data[place + length :],
        "insert": lambda: data[:place] + rng.randbytes(length) + data[place:],
        "append": lambda: data + bytes(length),
        "empty": lambda: b"",
        "random": lambda: rng.randbytes(max(1, len(data))),
        "huge header": lambda: (2 ** rng.randrange(20, 63)).to_bytes(8, "little") + data[8:],
    }
    way = rng.choice(list(ways))
    file.write_bytes(ways[way]())
    return f"{way} at {place} of {file.name}"


def _mutate_value(file: Path, rng: random.Random) -> str:
    """Replace, remove or add a value of JSON; of a log in one of its lines."""
    text = file.read_text()
    lines = text.splitlines() if file.suffix == ".jsonl" else [text]
    number = rng.randrange(len(lines))
    value = yaml.safe_load(lines[number]) if file.suffix == ".yaml" else json.loads(lines[number])
    places = list(_places(value))
    holder, key = rng.choice(places) if places else ([value], 0)
    way = rng.choice(["replace"] * 4 + ["remove", "add"])
    new = rng.choice(VALUES)
    if way == "remove":
        del holder[key]
    elif way == "add" and isinstance(holder, dict):
        holder[rng.choice(["x", "", "path", "__class__"])] = new
    else:
        holder[key] = new
    lines[number] = json.dumps(value)
    file.write_text("\n".join(lines))
    return f"{way} {key!r} with {str(new)[:30]!r} in line {number + 1} of {file.name}"


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of every value inside."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(inner):
        yield value, key
        yield from _places(item)


def _seal(file: Path) -> None:
    record = json.loads((file.parent / identity.IDENTITY_FILE).read_text())
    record["files"][file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    (file.parent / identity.IDENTITY_FILE).write_text(json.dumps(record))


# What uses the files


def resume(world: World) -> Any:
    """Return the losses and the adapter of a resumed run."""
    from ossia.train.supervised import train

    train(world.run.recipe(), world.run, examples(8), [])
    return hashlib.sha256((world.run.checkpoint(3) / WEIGHTS_FILE).read_bytes()).hexdigest()


def resume_and_listing(world: World) -> Any:
    """Return the same, and the status in the list of runs."""
    weights = resume(world)
    return weights, [row.status for row in runs.list_runs()], max(losses(world.run))


def exported(world: World) -> Any:
    """Return the bytes of an exported adapter."""
    from ossia.export.job import write_export
    from ossia.export.source import find_source

    done = write_export(find_source(world.run.id), "adapter", world.run.path.parent.parent / "out")
    return {name: hashlib.sha256((done.path / name).read_bytes()).hexdigest() for name in (CONFIG_FILE, WEIGHTS_FILE)}


def foreign(world: World) -> Any:
    """Put the foreign adapter on the base and return whether its logits are finite."""
    import torch

    from ossia.generate.subject import open_subject

    subject = open_subject(
        str(world.adapter), overrides=[f"model.path={world.base}", "model.dtype=float32", "model.device=cpu"]
    )
    subject.check()
    with torch.no_grad():
        subject.model()(input_ids=torch.arange(8)[None])
    return None


def model(world: World) -> Any:
    """Load the base alone and compute."""
    import torch

    from ossia.model.load import load_model

    with torch.no_grad():
        load_model(world.base, dtype="float32", device="cpu")(input_ids=torch.arange(8)[None])
    return None


def planned(world: World) -> Any:
    """Read a recipe."""
    recipes.load_recipe(world.base.parent / "recipe.yaml")
    return None


def _of_run(name: str) -> Callable[[World], Path]:
    return lambda world: world.run.path / name


def _of_checkpoint(name: str) -> Callable[[World], Path]:
    return lambda world: world.run.checkpoint(2) / name


_STATES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", CONFIG_FILE, WEIGHTS_FILE)

KINDS = (
    Kind("identity of a run", _of_run("identity.json"), resume),
    Kind("environment", _of_run("environment.json"), resume_and_listing),
    Kind("events", _of_run("events.jsonl"), resume),
    Kind("best", lambda world: world.run.checkpoints / runs.BEST, exported),
    Kind("identity of a checkpoint", _of_checkpoint("identity.json"), resume),
    *(Kind(f"checkpoint {name}", _of_checkpoint(name), resume) for name in _STATES),
    *(Kind(f"checkpoint {name}, exported", _of_checkpoint(name), exported) for name in (CONFIG_FILE, WEIGHTS_FILE)),
    *(Kind(f"sealed {name}", _of_checkpoint(name), resume, False, True) for name in _STATES),
    Kind("base config of a run", lambda world: world.base / "config.json", exported),
    Kind("base weights of a run", lambda world: world.base / "model.safetensors", exported),
    Kind("config", lambda world: world.base / "config.json", model, False),
    Kind("generation config", lambda world: world.base / "generation_config.json", model, False),
    Kind("weights", lambda world: world.base / "model.safetensors", model, False),
    Kind("adapter config", lambda world: world.adapter / CONFIG_FILE, foreign, False),
    Kind("adapter weights", lambda world: world.adapter / WEIGHTS_FILE, foreign, False),
    Kind("recipe", lambda world: world.base.parent / "recipe.yaml", planned, False),
    Kind("recipe of a run", _of_run("recipe.yaml"), resume, False),
)


@contextlib.contextmanager
def _runs_in(folder: Path) -> Iterator[None]:
    before = os.environ.get("OSSIA_RUNS")
    os.environ["OSSIA_RUNS"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OSSIA_RUNS"]
        else:
            os.environ["OSSIA_RUNS"] = before


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def end(number: int, frame: object) -> None:
        raise TimeoutError

    # Processor time, because the machine may be busy; and time on the clock for what only waits.
    timers = ((signal.ITIMER_PROF, signal.SIGPROF, 1), (signal.ITIMER_REAL, signal.SIGALRM, 6))
    before = [signal.signal(number, end) for _, number, _ in timers]
    for timer, _, factor in timers:
        signal.setitimer(timer, LONGEST_SECONDS * factor)
    try:
        yield
    finally:
        for (timer, number, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield
