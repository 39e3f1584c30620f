"""The plan of one recipe on one machine: its needs, whether it fits, and changes that make it fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from ossia.adapters.layout import lora_parameters
from ossia.checkpoint.layout import bytes_of
from ossia.config import Recipe
from ossia.errors import DoesNotFitError
from ossia.plan import memory
from ossia.plan.inputs import Examples, FoundModel, Machine
from ossia.plan.memory import Need
from ossia.plan.speed import Speed
from ossia.plan.work import (
    FASTER,
    SLOWER,
    Work,
    flops_per_token,
    foretell_sharing,
    seconds,
    supervised_share,
    work,
)
from ossia.sequences.sharing import Sharing

Fit = Literal["fits", "tight", "does not fit"]
COMFORTABLE = 0.9
"""Largest share of the free memory that an estimate with the verdict "fits" may take."""


@dataclass(frozen=True)
class Plan:
    """All figures of an estimate, in bytes and seconds, with a verdict."""

    recipe: Recipe
    model: FoundModel
    machine: Machine
    examples: Examples
    memory: list[Need]
    """Entries of the memory of the device."""
    disk: list[Need]
    """Entries on the disk of the runs."""
    downloads: list[Need]
    """Entries on the disk of the models that are not on this machine yet."""
    sharing: Sharing
    work: Work
    trained_parameters: int
    flops_per_token: float
    """Floating-point operations of training per computed token."""
    seconds: dict[str, float] | None
    """Seconds of each part of the work. None: no speed was measured."""
    speed: Speed | None
    """The measured speed of this machine, from which `seconds` are computed."""
    verdict: Fit = "fits"
    reasons: tuple[str, ...] = ()
    """The reasons of the verdict in words."""
    changes: tuple[str, ...] = ()
    """If the recipe does not fit: `--set` arguments with which it would. Empty if there are none."""

    @property
    def memory_needed(self) -> int:
        """Bytes of memory, mapped files included."""
        return sum(line.bytes for line in self.memory)

    @property
    def memory_unmapped(self) -> int:
        """Bytes of memory that the system cannot drop and read again."""
        return sum(line.bytes for line in self.memory if not line.mapped)

    @property
    def disk_needed(self) -> int:
        """Bytes on the disk of the runs, without downloads."""
        return sum(line.bytes for line in self.disk)

    @property
    def time_range(self) -> tuple[float, float] | None:
        """The shortest and the longest expected time in seconds. None: no speed was measured."""
        if self.seconds is None:
            return None
        total = sum(self.seconds.values())
        return total * FASTER, total * SLOWER

    def as_dict(self) -> dict[str, Any]:
        """Return the plan with its totals for JSON. The dimensions of the model are left out."""
        plain = dataclasses.asdict(dataclasses.replace(self, recipe=None, model=None))  # type: ignore[arg-type]
        del plain["model"]
        plain["recipe"] = self.recipe.model_dump(mode="json")
        totals = {
            "memory_needed": self.memory_needed,
            "memory_unmapped": self.memory_unmapped,
            "disk_needed": self.disk_needed,
            "time_range": self.time_range,
        }
        return plain | totals

    def require_fit(self) -> None:
        """Check that the recipe fits.

        Raises:
            DoesNotFitError: the verdict is "does not fit".
        """
        if self.verdict == "does not fit":
            do = "--set " + " --set ".join(self.changes) if self.changes else "another machine, or a smaller model"
            raise DoesNotFitError(f"the recipe {self.recipe.name} does not fit", why="; ".join(self.reasons), do=do)


def estimate(
    recipe: Recipe, model: FoundModel, examples: Examples, machine: Machine, *, speed: Speed | None = None
) -> Plan:
    """Return the plan of a recipe: its needs and whether they fit.

    Args:
        model: the dimensions of the model. If its weights are not on this machine, their download counts.
        examples: the summary of the data.
        speed: the result of `speed.measure`. Without it the plan has no time.

    Raises:
        UserError: training would refuse the recipe's `train.share_prefixes`, or the adapter of `lora.start_from`
            cannot be read.
    """
    plan = _figures(recipe, model, examples, machine, speed)
    if plan.verdict != "does not fit":
        return plan
    changes = _changes(plan)
    return dataclasses.replace(plan, changes=tuple(f"{key}={_yaml(value)}" for key, value in changes.items()))


def _figures(recipe: Recipe, model: FoundModel, examples: Examples, machine: Machine, speed: Speed | None) -> Plan:
    shape = model.shape
    longest = min(examples.longest, recipe.data.max_tokens)
    sharing = foretell_sharing(recipe, examples)
    share = supervised_share(examples, sharing)
    plan = Plan(
        recipe=recipe,
        model=model,
        machine=machine,
        examples=examples,
        memory=memory.lines(recipe, model, longest, machine.device, machine.dtype),
        disk=memory.disk_lines(recipe, shape),
        downloads=[] if model.folder else [Need("model", bytes_of(shape), f"download of {recipe.model.path}")],
        sharing=sharing,
        work=work(recipe, examples, sharing),
        trained_parameters=lora_parameters(shape, recipe.lora),
        flops_per_token=flops_per_token(shape, recompute=recipe.train.recompute, supervised=share)["training"],
        seconds=None if speed is None else seconds(recipe, model, examples, sharing, speed),
        speed=speed,
    )
    verdict, reasons = _judge(plan)
    return dataclasses.replace(plan, verdict=verdict, reasons=reasons)


def _judge(plan: Plan) -> tuple[Fit, tuple[str, ...]]:
    machine, need = plan.machine, plan.memory_needed
    have = f"{machine.memory / 1e9:.1f} GB ({machine.memory_reason})"
    failures = list(_disk_failures(plan))
    if plan.memory_unmapped > COMFORTABLE * machine.memory and need > machine.memory:
        failures.insert(0, f"it needs {need / 1e9:.1f} GB of memory and there are {have}")
    if failures:
        return "does not fit", tuple(failures)
    if need <= COMFORTABLE * machine.memory:
        return "fits", (f"it needs {need / 1e9:.1f} GB of {have}",)
    if need <= machine.memory:
        return "tight", (f"it needs {need / 1e9:.1f} GB of {have}; close other programs",)
    mapped = need - plan.memory_unmapped
    reason = (
        f"{mapped / 1e9:.1f} GB of weights do not all stay in {have}, so every pass reads part of them from disk; "
        "no time is counted for that"
    )
    return "tight", (reason,)


def _disk_failures(plan: Plan) -> Iterator[str]:
    runs, models = plan.machine.runs, plan.machine.models
    download = sum(line.bytes for line in plan.downloads)
    shared = runs.volume == models.volume
    need = plan.disk_needed + (download if shared else 0)
    if need > runs.free:
        yield f"it needs {need / 1e9:.1f} GB of disk for {runs.folder} and {runs.free / 1e9:.1f} GB are free"
    if not shared and download > models.free:
        yield f"it needs {download / 1e9:.1f} GB of disk for {models.folder} and {models.free / 1e9:.1f} GB are free"


def _changes(plan: Plan) -> dict[str, Any]:
    """Return settings with which the recipe fits, without unnecessary ones. Empty: there are none.

    Changes that cost time are tried before changes that cost quality.
    """
    recipe = plan.recipe

    def fits(changes: dict[str, Any]) -> bool:
        changed = _with(recipe, changes)
        return _figures(changed, plan.model, plan.examples, plan.machine, None).verdict != "does not fit"

    changes: dict[str, Any] = {}
    for change in _milder(recipe, plan.machine.device):
        changes |= change
        if fits(changes):
            break
    else:
        return {}
    for key in list(changes):
        fewer = {name: value for name, value in changes.items() if name != key}
        if _is_valid(recipe, fewer) and fits(fewer):
            changes = fewer
    return changes


def _milder(recipe: Recipe, device: str) -> Iterator[dict[str, Any]]:
    """Yield changes that save memory or disk: first those that cost only time, then those that cost quality."""
    if not recipe.train.recompute:
        yield {"train.recompute": True}
    if not recipe.train.offload and device == "cuda":
        yield {"train.recompute": True, "train.offload": True}
    tokens, longest = recipe.train.tokens_per_micro_batch, recipe.data.max_tokens
    while tokens > longest:
        tokens = max(longest, tokens // 2)
        yield {"train.tokens_per_micro_batch": tokens}
    while longest > 256:
        longest = max(256, longest // 2)
        yield {"train.tokens_per_micro_batch": longest, "data.max_tokens": longest}
    rank, alpha = recipe.lora.expert_rank, recipe.lora.expert_alpha
    if "experts" in recipe.lora.targets and recipe.lora.start_from is None:
        while rank > 2:
            rank, alpha = rank // 2, alpha / 2
            yield {"lora.expert_rank": rank, "lora.expert_alpha": alpha}
        yield {"lora.targets": ["attention"]}
    if recipe.train.keep_checkpoints > 1:
        yield {"train.keep_checkpoints": 1}


def _with(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    values = recipe.model_dump()
    for key, value in changes.items():
        section, _, name = key.partition(".")
        values[section][name] = value
    return Recipe.model_validate(values)


def _is_valid(recipe: Recipe, changes: dict[str, Any]) -> bool:
    try:
        _with(recipe, changes)
    except ValueError:
        return False
    return True


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return f"[{','.join(value)}]" if isinstance(value, list) else str(value)
