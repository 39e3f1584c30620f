"""Tests of the choice of an export's format: the bounds on the kept update and on the noise, at their limits."""

from __future__ import annotations

import math

import pytest
import torch

from ossia.export.rounding import Rounding, Survival

EXPERTS = "model.layers.0.mlp.experts.down_proj"


def survived(keep: float, error: float, name: str = EXPERTS) -> Survival:
    """Return the sums of an update with norm 1, which is one tenth of the norm of the weights."""
    return Survival(name, base_squared=100.0, delta_squared=1.0, kept=keep, error_squared=error**2, weights=8)


@pytest.mark.parametrize(
    ("keep", "error", "good"),
    [
        (1.0, 0.0, True),
        (0.9, 0.0, True),
        (0.89, 0.0, False),
        (1.1, 0.0, True),
        (1.11, 0.0, False),
        (3.0, 0.0, False),
        (1.0, 0.5, True),
        (1.0, 0.51, False),
        (1.0, 0.9, False),
        (0.0, 0.5, False),
    ],
)
def test_an_update_is_good_within_all_three_bounds(keep: float, error: float, good: bool) -> None:
    """Keeping too little, keeping too much, or too much noise: each alone rejects four bits and gives a warning."""
    found = survived(keep, error)
    assert found.is_good == good
    packed = Rounding("auto", True, "measured")
    assert packed.revised([found]).packed == good
    assert [("rounding to mxfp4" in text, "noise at most 0.5" in text) for text in packed.warnings([found])] == [
        (True, True)
    ] * (not good)


def test_what_was_asked_for_is_not_revised() -> None:
    asked = Rounding("mxfp4", True, "as asked for")
    assert asked.revised([survived(0.0, 1.0)]) is asked


def test_the_measured_figures_of_matrices_that_are_known() -> None:
    """One rounding makes the update larger, and the other adds noise orthogonal to it."""
    base, update = torch.zeros(2, 4), torch.tensor([[1.0, 0, 0, 0], [1, 0, 0, 0]])
    base[:, 3] = 10.0
    grown, noisy = Survival(EXPERTS), Survival(EXPERTS)
    grown.add(base, update, base + 1.25 * update)
    noisy.add(base, update, base + update + 0.75 * update.roll(1, 1))
    assert (grown.keep, grown.error, grown.changed, grown.weights) == (1.25, 0.25, 2, 8)
    assert (noisy.keep, noisy.error, noisy.changed, noisy.weights) == (1.0, 0.75, 4, 8)
    assert grown.rho == noisy.rho == pytest.approx(0.1)
    assert not grown.is_good and not noisy.is_good
    both = Survival()
    both += grown
    both += noisy
    assert (both.keep, both.weights, both.changed) == (1.125, 16, 6)
    assert both.error == pytest.approx(math.sqrt((0.25**2 + 0.75**2) / 2))


def test_an_update_of_zeros_is_good() -> None:
    found = Survival(EXPERTS)
    found.add_unchanged(torch.ones(3, 5))
    assert (found.keep, found.error, found.rho, found.weights, found.changed) == (1.0, 0.0, 0.0, 15, 0)
    assert found.is_good
