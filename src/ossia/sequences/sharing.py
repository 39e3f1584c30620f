"""The decision whether the examples of a step share their prefixes, and an estimate of the tokens that sharing saves.

No other module makes this decision. Training makes it from the properties of the model, and the plan makes it from the
recipe. Both use the same estimate of the saving in an epoch.
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
"""Least share of the tokens that sharing must save under `train.share_prefixes: auto`; less is not worth branches."""
LOOKED_AT = 1_000_000
"""Number of tokens in the first steps from which the saving is estimated."""
_MOST_STEPS = 10_000

Wanted = Literal["auto", "on", "off"]
"""The values of `train.share_prefixes`."""


class Saving(NamedTuple):
    """Numbers of tokens to compute without and with shared prefixes."""

    unshared: int
    """Sum of the lengths of the examples."""
    shared: int
    """Tokens to compute if prefixes are shared."""

    @property
    def times(self) -> float:
        """Ratio of `unshared` to `shared`; 1.0 without tokens."""
        return self.unshared / self.shared if self.shared else 1.0

    def __str__(self) -> str:
        fewer = 1 - self.shared / self.unshared if self.unshared else 0.0
        return f"{self.unshared:,} tokens, {self.shared:,} with shared prefixes ({fewer:.0%} fewer, {self.times:.2f}x)"


def saving(steps: Iterable[Sequence[TrainingExample]], tokens_per_micro_batch: int | None = None) -> Saving:
    """Return the numbers of tokens in whole steps, without and with shared prefixes.

    Args:
        tokens_per_micro_batch: if given, tokens that are repeated in several micro-batches count each time.
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
    """Return the estimated numbers of tokens in an epoch that is cut into micro-batches.

    The first steps are counted. The rest of the epoch is assumed to be in proportion.

    Args:
        looked_at: number of tokens after which counting stops.

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
    """Settings that make a shared token's effect differ from its effect in separate sequences."""

    dropout: float = 0.0
    """The largest probability with which the model drops a value."""
    balance_loss: bool = False
    """Whether the loss has a load-balancing part."""
    noise: bool = False
    """Whether noise is put on embeddings (NEFTune, Jain et al. 2023)."""

    def sentences(self) -> list[str]:
        """Return each obstacle in words; an empty list if sharing is exact."""
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
    """The decision whether shared prefixes are computed once, with its reason in words."""

    on: bool
    reason: str

    def __str__(self) -> str:
        if self.on:
            return f"shared prefixes are computed once, with the same loss and gradients: {self.reason}"
        return f"prefixes are not shared, because {self.reason}"


def may_share(wanted: Wanted, obstacles: Obstacles) -> bool:
    """Return whether sharing is wanted and exact. Only then is it worth counting the saving."""
    return wanted != "off" and not obstacles.sentences()


def epoch_saving(settings: TrainSection, obstacles: Obstacles, examples: Sequence[TrainingExample]) -> Saving | None:
    """Return the estimated saving in an epoch with these settings, or None if sharing is not wanted or not exact.

    Raises:
        UserError: an example does not fit into a micro-batch.
    """
    if not may_share(settings.share_prefixes, obstacles):
        return None
    return estimated_saving(examples, settings.examples_per_step, settings.seed, settings.tokens_per_micro_batch)


def decide(wanted: Wanted, obstacles: Obstacles, saving: Saving | None) -> Sharing:
    """Return the decision that `train.share_prefixes` leads to.

    Args:
        wanted: the value of `train.share_prefixes`.
        obstacles: the settings that would make sharing inexact.
        saving: the saving in an epoch. None: there are no data to count, or `may_share` is False.

    Raises:
        UserError: `wanted` is "on" and sharing would not be exact.
    """
    if wanted == "off":
        return Sharing(False, "train.share_prefixes is off")
    sentences = "; ".join(obstacles.sentences())
    if sentences and wanted == "on":
        raise UserError(
            "train.share_prefixes is on, but sharing would not be exact",
            why=sentences,
            do="--set train.share_prefixes=auto, or remove the obstacle",
        )
    if sentences:
        return Sharing(False, f"that would not be exact: {sentences}")
    if saving is None:
        return Sharing(False, "there are no data to count, so no shared prefixes are assumed")
    counts = f"{saving.shared:,} tokens instead of {saving.unshared:,}"
    if wanted == "auto" and saving.shared > (1 - WORTH) * saving.unshared:
        return Sharing(False, f"there is next to nothing to save: {counts}")
    return Sharing(True, f"{counts} ({saving.times:.2f}x)")
