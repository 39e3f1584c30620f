"""Tests of confidence intervals against the worked examples of their papers."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.evaluate.statistics import mcnemar, paired_difference, proportion, wilson


def pairs_of(both: int, first: int, second: int, neither: int) -> list[tuple[bool, bool]]:
    """Return the pairs (before, after) of a two-by-two table. Its difference is `first` minus `second`."""
    return [(True, True)] * both + [(False, True)] * first + [(True, False)] * second + [(False, False)] * neither


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    # Newcombe (1998), Two-sided confidence intervals for the single proportion, Stat Med 17:857-872, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_of_published_examples(count: int, total: int, low: float, high: float) -> None:
    assert wilson(count, total) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 400), st.data())
def test_wilson_interval_holds_exactly_the_shares_the_score_test_accepts(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, total))
    low, high = wilson(count, total)
    share = count / total
    assert 0 <= low <= share <= high <= 1
    for edge in (low, high):
        if 0 < edge < 1:
            score = (share - edge) / math.sqrt(edge * (1 - edge) / total)
            assert abs(score) == pytest.approx(1.959964, abs=1e-4)


@pytest.mark.parametrize(
    ("table", "difference", "low", "high"),
    [
        # Newcombe (1998), Improved confidence intervals ... based on paired data, Stat Med 17:2635-2650, method 10.
        ((36, 12, 2, 0), 0.2000, 0.0569, 0.3404),
        # Bentur et al. (2009) in Fagerland, Lydersen and Laake (2014), Stat Med 33:2850: square-and-add.
        ((1, 1, 7, 12), -0.286, -0.507, -0.026),
    ],
)
def test_paired_interval_of_published_examples(
    table: tuple[int, int, int, int], difference: float, low: float, high: float
) -> None:
    found = paired_difference(pairs_of(*table))
    assert (found.difference, found.low, found.high) == pytest.approx((difference, low, high), abs=6e-4)
    assert (found.gained, found.lost) == table[1:3]


def test_exact_mcnemar_of_published_examples() -> None:
    # The Bentur table. Fagerland, Lydersen and Laake (2013), BMC Med Res Methodol 13:91, give an exact p of 0.070.
    assert mcnemar(1, 7) == pytest.approx(0.0703, abs=5e-5)
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(10, 0) == pytest.approx(2 / 1024)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_paired_difference_is_antisymmetric_and_within_bounds(pairs: list[tuple[bool, bool]]) -> None:
    there = paired_difference(pairs)
    back = paired_difference([(after, before) for before, after in pairs])
    assert -1 <= there.low <= there.difference <= there.high <= 1
    assert (back.difference, back.low, back.high) == pytest.approx((-there.difference, -there.high, -there.low))
    assert back.p_value == there.p_value
    assert 0 < there.p_value <= 1


def test_paired_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    draw = random.Random(5)
    weights = (0.5, 0.2, 0.1, 0.2)  # both, gained, lost, neither: a true difference of 0.1
    outcomes = [(True, True), (False, True), (True, False), (False, False)]
    covered = 0
    for _ in range(1000):
        found = paired_difference(draw.choices(outcomes, weights, k=80))
        covered += found.low <= 0.1 <= found.high
    assert 930 <= covered <= 980


def test_no_data_says_nothing() -> None:
    empty = proportion([])
    assert (empty.count, empty.total, empty.low, empty.high) == (0, 0, 0.0, 1.0)
    assert math.isnan(empty.share)
    nothing = paired_difference([])
    assert (nothing.low, nothing.high, nothing.p_value) == (-1.0, 1.0, 1.0)
