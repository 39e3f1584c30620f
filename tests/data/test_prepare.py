"""Tests of the split into training and validation: the number of held-back conversations, and their choice."""

from __future__ import annotations

import pytest

from ossia.data.prepare import hold_back
from ossia.data.rendered import Rendered


@pytest.mark.parametrize(
    ("conversations", "share", "held"),
    [
        (20, 0.25, 5),
        (3, 0.5, 2),
        (20, 0.0, 0),
        (20, 0.01, 1),  # at least one is held back
        (2, 0.01, 1),
        (2, 0.99, 1),  # at least one stays
        (4, 0.99, 3),
        (1, 0.5, 0),
        (1, 0.01, 0),
        (0, 0.5, 0),
    ],
)
def test_at_least_one_is_held_back_and_at_least_one_stays(conversations: int, share: float, held: int) -> None:
    given = [Rendered(f"d:{number}") for number in range(conversations)]
    rest, chosen = hold_back(given, share, seed=0)
    assert (len(rest), len(chosen)) == (conversations - held, held)
    assert [one for one in given if one in rest] == rest
    assert [one for one in given if one in chosen] == chosen
    assert {id(one) for one in rest} | {id(one) for one in chosen} == {id(one) for one in given}


def test_the_seed_chooses_who_is_held_back() -> None:
    given = [Rendered(f"d:{number}") for number in range(100)]

    def chosen(seed: int) -> list[str]:
        return [one.source for one in hold_back(given, 0.1, seed)[1]]

    assert chosen(0) == chosen(0)
    assert len({tuple(chosen(seed)) for seed in range(5)}) == 5
