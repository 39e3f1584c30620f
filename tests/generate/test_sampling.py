"""Tests of the sampler at its bounds: filters on equal probabilities, ends of a random stream, and ended rows."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from ossia.generate.engine import Request, Sampling
from ossia.generate.sampling import Sampler

EQUAL = torch.zeros(4)


@dataclass
class Drawn(random.Random):
    """A random stream that always returns `number`."""

    number: float = 0.0

    def random(self) -> float:
        return self.number


def chosen(sampling: Sampling, logits: torch.Tensor) -> set[int]:
    """Return the tokens that the sampler chooses for random numbers from the whole interval."""
    found = set()
    for number in (*(place / 64 for place in range(64)), 1 - 2**-53):
        sampler = Sampler([Request(sampling=sampling)])
        sampler._streams = [Drawn(number)]
        found.add(int(sampler(logits[None])))
    return found


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({"top_k": 1}, 1),
        ({"top_k": 3}, 3),
        ({"top_k": 4}, 4),
        ({"top_k": 9}, 4),
        ({"top_p": 0.25}, 1),
        ({"top_p": 0.5}, 2),  # the first two have exactly this share
        ({"top_p": 0.51}, 3),
        ({"top_p": 0.01}, 1),  # at least one stays
        ({"min_p": 1.0}, 4),  # all are as likely as the most likely one
        ({"top_k": 2, "top_p": 0.5}, 1),  # shares refer to the two kept tokens
        ({"top_k": 2, "top_p": 0.51}, 2),
    ],
)
def test_filters_on_four_equal_tokens(filters: dict[str, Any], kept: int) -> None:
    assert len(chosen(Sampling(temperature=1.0, **filters), EQUAL)) == kept


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    """The lowest random number does not draw it as the first token, and the highest does not draw it as the last."""
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf])
    assert chosen(Sampling(temperature=1.0), logits) == {1, 3}
    assert chosen(Sampling(temperature=1.0, min_p=0.5), logits) == {1, 3}


def test_a_stream_belongs_to_a_seed_and_a_number() -> None:
    like = Request(sampling=Sampling(temperature=1.0))
    requests = [replace(like, seed=seed, number=number) for seed in (1, 11) for number in (1, 11)]
    drawn = [[stream.random() for _ in range(3)] for stream in Sampler(requests)._streams]
    assert len(set(map(tuple, drawn))) == 4
    assert [[stream.random() for _ in range(3)] for stream in Sampler(requests)._streams] == drawn


@dataclass
class Odd:
    taken: list[int] = field(default_factory=list)

    def allowed(self) -> torch.Tensor:
        return torch.arange(5) % 2 == 1

    def accept(self, token: int) -> None:
        self.taken.append(token)


def test_a_row_that_has_ended_is_no_longer_noted() -> None:
    """The batch continues with the row until all rows have ended."""
    constraint = Odd()
    sampler = Sampler([Request(stop=frozenset({3}), logprobs=9, constraint=lambda: constraint)])
    assert int(sampler(torch.tensor([[9.0, 1.0, 0.0, 0.0, 0.0]]))) == 1
    assert int(sampler(torch.tensor([[9.0, 0.0, 0.0, 1.0, 0.0]]))) == 3
    assert int(sampler(torch.tensor([[9.0, 0.0, 0.0, 0.0, 0.0]]))) == 0
    assert constraint.taken == [1, 3]
    assert [token.id for token in sampler.tokens[0]] == [1, 3]
    assert [len(token.most_likely) for token in sampler.tokens[0]] == [5, 5]  # there are no more tokens
