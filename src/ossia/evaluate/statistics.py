"""The uncertainty of counts: intervals for a proportion and for the difference of two paired proportions.

All proportions here come from yes/no measures on the same questions. So before and after are compared pair by pair.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


@dataclass(frozen=True)
class Proportion:
    """`count` of `total`, with the 95 % interval of the share."""

    count: int
    total: int
    share: float
    """count / total. NaN if `total` is 0."""
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """The difference of two shares on the same questions, with its 95 % interval."""

    difference: float
    """Share after minus share before, from -1 to 1. NaN without questions."""
    low: float
    high: float
    gained: int
    """Number of questions that pass only after."""
    lost: int
    """Number of questions that pass only before."""
    p_value: float
    """Probability of a split at least as uneven as `gained` to `lost` by chance (`mcnemar`)."""


def proportion(outcomes: Iterable[bool]) -> Proportion:
    """Return count, share and Wilson interval of yes/no outcomes."""
    results = list(outcomes)
    count, total = sum(results), len(results)
    low, high = wilson(count, total)
    return Proportion(count, total, count / total if total else math.nan, low, high)


def wilson(count: int, total: int, z: float = Z95) -> tuple[float, float]:
    """Return the score interval (low, high) of a proportion; (0, 1) if `total` is 0.

    Source: Wilson 1927; Newcombe, Stat Med 17:857, 1998, method 3.

    Args:
        z: two-sided quantile of the normal distribution.
    """
    if total == 0:
        return 0.0, 1.0
    p = count / total
    centre = 2 * count + z * z
    spread = z * math.sqrt(z * z + 4 * count * (1 - p))
    scale = 2 * (total + z * z)
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def paired_difference(pairs: Iterable[tuple[bool, bool]]) -> Difference:
    """Return the difference of (before, after) outcomes of the same questions.

    The interval is Newcombe's method 10 for paired proportions (Stat Med 17:2635, 1998). It combines the two Wilson
    intervals with the correlation of the pairs. A positive correlation is corrected for continuity. The p-value is that
    of the exact McNemar test.
    """
    outcomes = list(pairs)
    n = len(outcomes)
    if n == 0:
        return Difference(math.nan, -1.0, 1.0, 0, 0, 1.0)
    both = sum(before and after for before, after in outcomes)
    gained = sum(after and not before for before, after in outcomes)
    lost = sum(before and not after for before, after in outcomes)
    neither = n - both - gained - lost
    after, before = (both + gained) / n, (both + lost) / n
    after_low, after_high = wilson(both + gained, n)
    before_low, before_high = wilson(both + lost, n)
    phi = _correlation(both, gained, lost, neither)
    down = _combined(after - after_low, before_high - before, phi)
    up = _combined(after_high - after, before - before_low, phi)
    difference = after - before
    low, high = max(-1.0, difference - down), min(1.0, difference + up)
    return Difference(difference, low, high, gained, lost, mcnemar(gained, lost))


def mcnemar(gained: int, lost: int) -> float:
    """Return the two-sided p-value of the exact McNemar test.

    The null hypothesis: a question with two different outcomes is gained or lost with probability 1/2 each.
    """
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**n)


def _correlation(both: int, gained: int, lost: int, neither: int) -> float:
    margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    if margins == 0:
        return 0.0
    product = float(both * neither - gained * lost)
    if product > 0:
        product = max(0.0, product - (both + gained + lost + neither) / 2)
    return product / math.sqrt(margins)


def _combined(first: float, second: float, phi: float) -> float:
    return math.sqrt(max(0.0, first * first - 2 * phi * first * second + second * second))
