"""What the examples of a step save when they share what they begin with, and whether they do.

The decision is taken here and nowhere else. Training takes it with the facts of the model, the plan with those of the
recipe; both with the same estimate of what the steps of an epoch save.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple

from ossia.config import TrainSection
from ossia.errors import UserError
from ossia.sequences.example import TrainingExample, check_length
from ossia.sequences.order import steps_of
from ossia.sequences.tree import tokens_computed

WORTH = 0.02
"""Least share of the tokens that `train.share_prefixes: auto` wants to save: less is not worth looking at branches."""
LOOKED_AT = 1_000_000
"""Tokens of the first steps from which a saving is estimated."""
_MOST_STEPS = 10_000

Wanted = Literal["auto", "on", "off"]
"""`train.share_prefixes`."""


class Saving(NamedTuple):
    """Tokens of examples, each counted by itself, and those left when they share what they begin with."""

    unshared: int
    shared: int

    @property
    def times(self) -> float:
        """How many times as many tokens there are without sharing."""
        return self.unshared / self.shared if self.shared else 1.0

    def __str__(self) -> str:
        fewer = 1 - self.shared / self.unshared if self.unshared else 0.0
        return f"{self.unshared:,} tokens, {self.shared:,} with shared prefixes ({fewer:.0%} fewer, {self.times:.2f}x)"


def saving(steps: Iterable[Sequence[TrainingExample]], tokens_per_micro_batch: int | None = None) -> Saving:
    """Return what sharing leaves of whole steps.

    Args:
        tokens_per_micro_batch: count as well what is computed again because a tree does not fit into a micro-batch.
    """
    unshared = shared = 0
    for step in steps:
        unshared += sum(map(len, step))
        shared += tokens_computed(step, tokens_per_micro_batch)
    return Saving(unshared, shared)


def estimated_saving(
    examples: Sequence[TrainingExample],
    examples_per_step: int,
    seed: int,
    tokens_per_micro_batch: int,
    looked_at: int = LOOKED_AT,
) -> Saving:
    """Return what sharing leaves of an epoch cut into micro-batches: the first steps counted, the rest in proportion.

    Args:
        looked_at: tokens after which the rest is taken to be like what was seen.

    Raises:
        UserError: an example does not fit into a micro-batch.
    """
    seen, first = 0, list[list[TrainingExample]]()
    for step in islice(steps_of(examples, examples_per_step, seed), _MOST_STEPS):
        check_length(max(map(len, step)), tokens_per_micro_batch)
        first.append(step)
        seen += sum(map(len, step))
        if seen > looked_at:
            break
    counted = saving(first, tokens_per_micro_batch)
    unshared = sum(map(len, examples))
    return Saving(unshared, round(unshared * counted.shared / max(1, counted.unshared)))


@dataclass(frozen=True)
class Obstacles:
    """What gives a token that several sequences share another effect than in separate sequences."""

    dropout: float = 0.0
    """The largest probability with which the model drops a value."""
    balance_loss: bool = False
    """Whether the loss has a load-balancing part."""
    noise: bool = False
    """Whether noise is put on embeddings (NEFTune, Jain et al. 2023)."""

    def sentences(self) -> list[str]:
        """Return each obstacle in words; empty where sharing is exact."""
        found = []
        if self.dropout:
            found.append(f"dropout ({self.dropout:g}) would be drawn once for all sequences that share a token")
        if self.balance_loss:
            found.append("the load-balancing loss of the router counts tokens, and a shared one would count once")
        if self.noise:
            found.append("NEFTune's noise would be drawn once for all sequences that share a token")
        return found


@dataclass(frozen=True)
class Sharing:
    """Whether shared prefixes are computed once, and in words, why or why not."""

    on: bool
    reason: str

    def __str__(self) -> str:
        if self.on:
            return f"shared prefixes are computed once, with the same loss and gradients: {self.reason}"
        return f"prefixes are not shared, because {self.reason}"


def may_share(wanted: Wanted, obstacles: Obstacles) -> bool:
    """Return whether sharing is wanted and exact, so that what it saves is worth counting."""
    return wanted != "off" and not obstacles.sentences()


def epoch_saving(settings: TrainSection, obstacles: Obstacles, examples: Sequence[TrainingExample]) -> Saving | None:
    """Return what sharing saves of an epoch as `settings` cut it, or None where sharing is not wanted or not exact.

    Raises:
        UserError: an example does not fit into a micro-batch.
    """
    if not may_share(settings.share_prefixes, obstacles):
        return None
    return estimated_saving(examples, settings.examples_per_step, settings.seed, settings.tokens_per_micro_batch)


def decide(wanted: Wanted, obstacles: Obstacles, saving: Saving | None) -> Sharing:
    """Decide on `train.share_prefixes`.

    Args:
        saving: what an epoch saves. None: there was nothing to count, or `may_share` says that it does not matter.

    Raises:
        UserError: sharing is asked for and would not be exact.
    """
    if wanted == "off":
        return Sharing(False, "train.share_prefixes is off")
    sentences = "; ".join(obstacles.sentences())
    if sentences and wanted == "on":
        raise UserError(
            "train.share_prefixes is on, but sharing would not be exact",
            why=sentences,
            do="--set train.share_prefixes=auto, or without what stands in the way",
        )
    if sentences:
        return Sharing(False, f"that would not be exact: {sentences}")
    if saving is None:
        return Sharing(False, "there are no data to count, so nothing is taken to be shared")
    counts = f"{saving.shared:,} tokens instead of {saving.unshared:,}"
    if wanted == "auto" and saving.shared > (1 - WORTH) * saving.unshared:
        return Sharing(False, f"there is next to nothing to save: {counts}")
    return Sharing(True, f"{counts} ({saving.times:.2f}x)")
