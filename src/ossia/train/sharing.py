"""Whether a run computes shared prefixes once: where that changes nothing but the time it takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from torch import nn

from ossia.errors import UserError
from ossia.sequences.tree import LOOKED_AT, WORTH, tokens_left
from ossia.train.steps import Trainable, check_length


@dataclass(frozen=True)
class Sharing:
    """What was decided, and why, in a sentence for people."""

    on: bool
    reason: str


def decided(
    wanted: Literal["auto", "on", "off"],
    obstacles: Sequence[str],
    steps: Iterable[Sequence[Trainable]],
    tokens_per_pass: int,
) -> Sharing:
    """Decide on `train.share_prefixes`.

    Args:
        obstacles: see `obstacles`.
        steps: the examples of each step, in order.

    Raises:
        UserError: sharing is asked for and would not be exact, or an example does not fit into a pass.
    """
    if wanted == "off":
        return Sharing(False, "prefixes are not shared: train.share_prefixes is off")
    if obstacles and wanted == "on":
        raise UserError(
            "train.share_prefixes is on, but sharing would not be exact",
            why="; ".join(obstacles),
            do="--set train.share_prefixes=auto, or without what stands in the way",
        )
    if obstacles:
        return Sharing(False, f"prefixes are not shared, because that would not be exact: {'; '.join(obstacles)}")
    shared, unshared = _saving(steps, tokens_per_pass)
    counts = f"{shared:,} tokens instead of {unshared:,} in the steps looked at ({unshared / max(shared, 1):.2f}x)"
    if wanted == "auto" and shared > (1 - WORTH) * unshared:
        return Sharing(False, f"prefixes are not shared, because there is next to nothing to save: {counts}")
    return Sharing(True, f"shared prefixes are computed once, with the same loss and gradients: {counts}")


def obstacles(model: nn.Module, balance: float = 0.0, neftune_alpha: float | None = None) -> list[str]:
    """What would give a token that several sequences share another effect than in separate sequences.

    Args:
        model: with its adapter, and with hooks if it has any.
        balance: coefficient of the load-balancing loss.
        neftune_alpha: of noise on embeddings (NEFTune, Jain et al. 2023).
    """
    found = []
    if drops := max((module.p for module in model.modules() if isinstance(module, nn.Dropout)), default=0.0):
        found.append(f"dropout ({drops:g}) would be drawn once for all sequences that share a token")
    if balance:
        found.append("the load-balancing loss of the router counts tokens, and a shared one would count once")
    embeddings: list[Any] = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    if neftune_alpha or any(getattr(module, "neftune_noise_alpha", None) for module in embeddings):
        found.append("NEFTune's noise would be drawn once for all sequences that share a token")
    return found


def _saving(steps: Iterable[Sequence[Trainable]], tokens_per_pass: int) -> tuple[int, int]:
    """Tokens that are computed, those of trees that are cut to passes more than once, and tokens of the examples."""
    shared = unshared = 0
    for examples in islice(steps, 10_000):
        check_length(max(map(len, examples), default=0), tokens_per_pass)
        shared += tokens_left(examples, tokens_per_pass)
        unshared += sum(map(len, examples))
        if unshared > LOOKED_AT:
            break
    return shared, unshared
