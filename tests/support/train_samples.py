"""Examples with a learnable pattern, and recipes of short runs on them, for the tests of training."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from ossia import events, recipes, runs
from ossia.config import Recipe
from ossia.train import fsdp

EVERY_TARGET = ["attention", "experts", "router", "embeddings", "head"]
SHARDS = pytest.mark.skipif(
    torch.__version__ < fsdp.OLDEST_TORCH, reason=f"torch {torch.__version__} cannot shard bytes, and training says so"
)


@dataclass
class Example:
    ids: list[int]
    weights: list[float]
    channels: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.channels = ["analysis" if i % 2 else "final" for i in range(len(self.ids))]

    def __len__(self) -> int:
        return len(self.ids)


def examples(count: int, seed: int = 0) -> list[Example]:
    """Return examples that count by twos from a random start, which is a learnable pattern."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        start, length = rng.randint(0, 400), rng.randint(8, 30)
        made.append(Example([start + 2 * i for i in range(length)], [0.0] * 4 + [1.0] * (length - 4)))
    return made


def recipe(model: Path, targets: list[str] | None = None, **settings: Any) -> Recipe:
    values = {
        "steps": 8, "examples_per_step": 4, "tokens_per_micro_batch": 64, "learning_rate": 0.01, "evaluate_every": 4,
        "checkpoint_every": 3, "samples": 0, "deterministic": True, **settings,
    }  # fmt: skip
    sets = [f"train.{name}={json.dumps(value)}" for name, value in values.items()]
    sets += [f"lora.targets={json.dumps(targets)}"] if targets else []
    text = f"name: t\nmodel: {{path: {model}, dtype: float32, device: cpu}}\ndata: {{max_tokens: 64}}\n"
    return recipes.parse_recipe(text + "lora: {rank: 4, expert_rank: 2}\n", where="test", overrides=sets)


def losses(run: runs.Run) -> dict[int, float]:
    return {event.step: event.loss for event in events.read(run.path) if isinstance(event, events.Step)}
