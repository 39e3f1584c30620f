"""Choosing the next token of each row of a batch, with a random stream of its own for each row.

A row's choice depends on its own logits and its own stream only, so neither the composition of a batch nor the device
changes which numbers it draws. One uniform number per token is drawn and inverted through the cumulative distribution.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from ossia.generate.engine import Sampling


class Sampler:
    """Chooses one token per row; keeps the random streams of its rows."""

    def __init__(self, sampling: Sampling, rows: Sequence[int]) -> None:
        """`rows` are the prompts' numbers in their request: row i draws from the stream (seed, rows[i])."""
        self.sampling = sampling
        self._streams = [random.Random(f"{sampling.seed}:{row}") for row in rows]

    def __call__(self, logits_BV: Tensor) -> Tensor:
        """Return the chosen ids, int64 [B]."""
        if self.sampling.temperature == 0:
            return logits_BV.argmax(-1)
        probabilities_BV = (logits_BV.float() / self.sampling.temperature).softmax(-1)
        order_BV = None
        if self.sampling.top_p < 1:
            probabilities_BV, order_BV = probabilities_BV.sort(-1, descending=True)
            # A token stays while those before it hold less than top_p, so that the first one always stays.
            before_BV = probabilities_BV.cumsum(-1) - probabilities_BV
            probabilities_BV = probabilities_BV.masked_fill(before_BV >= self.sampling.top_p, 0)
        cumulative_BV = probabilities_BV.cumsum(-1, dtype=torch.float64)
        drawn = [stream.random() for stream in self._streams]
        drawn_B1 = torch.tensor(drawn, dtype=torch.float64).to(logits_BV.device)[:, None] * cumulative_BV[:, -1:]
        # right=True: the first place whose cumulative probability exceeds the number, never one of probability zero.
        chosen_B1 = torch.searchsorted(cumulative_BV, drawn_B1, right=True).clamp(max=logits_BV.shape[-1] - 1)
        return (chosen_B1 if order_BV is None else order_BV.gather(-1, chosen_B1))[:, 0]
