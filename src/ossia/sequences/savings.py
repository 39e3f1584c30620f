"""What the examples of a training step have in common, in the order in which training takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ossia.data.rendered import Example
from ossia.sequences.order import conversations_of, epoch
from ossia.sequences.tree import LOOKED_AT, saving, tokens_left


class Saving(NamedTuple):
    """Tokens of examples, each counted by itself, and those left when they share what they begin with."""

    unshared: int
    shared: int

    def __str__(self) -> str:
        fewer = 1 - self.shared / self.unshared if self.unshared else 0.0
        times = self.unshared / self.shared if self.shared else 1.0
        return f"{self.unshared:,} tokens, {self.shared:,} with shared prefixes ({fewer:.0%} fewer, {times:.2f}x)"


def steps_of(examples: Sequence[Example], examples_per_step: int, seed: int) -> Iterator[list[Example]]:
    """The steps of training's first epoch."""
    for step in epoch(conversations_of(examples), examples_per_step, seed, 0):
        yield [examples[index] for index in step]


def within_steps(steps: Iterator[list[Example]], tokens_per_pass: int | None = None) -> Saving:
    """Count what sharing leaves of whole steps.

    Args:
        tokens_per_pass: count as well what is computed again because a tree does not fit into a pass.
    """
    unshared = shared = 0
    for step in steps:
        unshared += sum(map(len, step))
        shared += saving(step)[0] if tokens_per_pass is None else tokens_left(step, tokens_per_pass)
    return Saving(unshared, shared)


def estimated(
    examples: Sequence[Example], examples_per_step: int, seed: int, tokens_per_pass: int, most: int = LOOKED_AT
) -> Saving:
    """What sharing leaves of an epoch, passes considered: counted for the first steps, for the rest in proportion.

    Args:
        most: tokens after which the rest is taken to be like what was seen.
    """
    seen = 0
    first: list[list[Example]] = []
    for step in steps_of(examples, examples_per_step, seed):
        first.append(step)
        seen += sum(map(len, step))
        if seen >= most:
            break
    counted = within_steps(iter(first), tokens_per_pass)
    unshared = sum(map(len, examples))
    if counted.unshared == unshared:
        return counted
    return Saving(unshared, round(unshared * counted.shared / max(1, counted.unshared)))
