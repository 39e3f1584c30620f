"""What the examples of a training step have in common, in the order in which training takes them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ossia.data.rendered import Example
from ossia.model.tree import grow, saving, split

LOOKED_AT = 1_000_000
"""Tokens of examples after which an estimate has seen enough."""


class Saving(NamedTuple):
    """Tokens of examples, each counted by itself, and those left when they share what they begin with."""

    unshared: int
    shared: int

    def __str__(self) -> str:
        fewer = 1 - self.shared / self.unshared if self.unshared else 0.0
        times = self.unshared / self.shared if self.shared else 1.0
        return f"{self.unshared:,} tokens, {self.shared:,} with shared prefixes ({fewer:.0%} fewer, {times:.2f}x)"


def steps_of(examples: Sequence[Example], examples_per_step: int, seed: int) -> Iterator[list[Example]]:
    """The steps of training's first epoch: conversations shuffled, the turns of one together.

    This is `ossia.train.order.ConversationOrder`, for those who must not load torch.
    """
    groups: list[list[Example]] = []
    for example in examples:
        last = groups[-1][-1] if groups else None
        same = last is not None and (
            example.conversation is last.conversation or example.conversation == last.conversation
        )
        if last is not None and same and example.turn > last.turn:
            groups[-1].append(example)
        else:
            groups.append([example])
    random.Random(f"{seed} 0").shuffle(groups)
    order = [example for group in groups for example in group]
    for start in range(0, len(order), examples_per_step):
        yield order[start : start + examples_per_step]


def within_steps(steps: Iterator[list[Example]], tokens_per_pass: int | None = None) -> Saving:
    """Count what sharing leaves of whole steps.

    Args:
        tokens_per_pass: count as well what is computed again because a tree does not fit into a pass.
    """
    unshared = shared = 0
    for step in steps:
        if tokens_per_pass is None:
            left, all_ = saving(step)
        else:
            pieces = [piece for tree in grow(step) for piece in split(tree, tokens_per_pass)]
            left, all_ = sum(piece.tokens for piece in pieces), sum(map(len, step))
        unshared, shared = unshared + all_, shared + left
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
