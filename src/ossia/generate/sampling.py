"""The choice of the next token in each row of a batch. Each row has its own stream of random numbers.

A row's choice depends only on its logits, its request and its stream. So neither the composition of a batch nor the
device changes the random numbers of a row. Each token takes one uniform number, by inversion of the cumulative
distribution.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from ossia.generate.engine import Request, Sampling, Token


class Sampler:
    """A function that chooses one token per row from logits [B, V]. It is called once per position of the batch.

    It keeps the random streams, constraints and log-probabilities of the rows.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        """
        Args:
            requests: one per row, all with the same `sampling`.
        """
        self.sampling = requests[0].sampling if requests else Sampling()
        assert all(request.sampling == self.sampling for request in requests), "rows of a batch share their sampling"
        self._wanted = [request.logprobs for request in requests]
        self._streams = [random.Random(f"{request.seed}:{request.number}") for request in requests]
        self._constraints = [request.constraint and request.constraint() for request in requests]
        self._stops = [request.stop for request in requests]
        self.tokens: list[list[Token]] = [[] for _ in requests]
        """Per row, the chosen tokens up to the first stop token. Empty where the request has no `logprobs`."""

    @property
    def is_plain(self) -> bool:
        """Whether each choice is the most likely token, without constraints and log-probabilities."""
        return (
            self.sampling.temperature == 0
            and not any(self._constraints)
            and all(wanted is None for wanted in self._wanted)
        )

    def __call__(self, logits_BV: Tensor) -> Tensor:
        """Return the chosen ids, int64 [B]."""
        chosen_B = self._choose(self._constrained(logits_BV))
        self._note(logits_BV, chosen_B)
        return chosen_B

    def _constrained(self, logits_BV: Tensor) -> Tensor:
        if not any(self._constraints):
            return logits_BV
        logits_BV = logits_BV.clone()
        for row, constraint in enumerate(self._constraints):
            if constraint is not None:
                logits_BV[row].masked_fill_(~constraint.allowed().to(logits_BV.device), -torch.inf)
        return logits_BV

    def _choose(self, logits_BV: Tensor) -> Tensor:
        if self.sampling.temperature == 0:
            return logits_BV.argmax(-1)
        probabilities_BV, order_BV = self._filtered((logits_BV.float() / self.sampling.temperature).softmax(-1))
        cumulative_BV = probabilities_BV.cumsum(-1, dtype=torch.float64)
        drawn = [stream.random() for stream in self._streams]
        drawn_B1 = torch.tensor(drawn, dtype=torch.float64).to(logits_BV.device)[:, None] * cumulative_BV[:, -1:]
        # right=True finds the first place whose cumulative probability exceeds the number. So a token of probability
        # zero is never chosen.
        chosen_B1 = torch.searchsorted(cumulative_BV, drawn_B1, right=True).clamp(max=logits_BV.shape[-1] - 1)
        return (chosen_B1 if order_BV is None else order_BV.gather(-1, chosen_B1))[:, 0]

    def _filtered(self, probabilities_BV: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the probabilities, 0 for filtered tokens, and the order of the tokens if a filter has sorted them."""
        top_k, top_p, min_p = self.sampling.top_k, self.sampling.top_p, self.sampling.min_p
        if not top_k and top_p >= 1 and not min_p:
            return probabilities_BV, None
        probabilities_BV, order_BV = probabilities_BV.sort(-1, descending=True)
        if top_k:
            probabilities_BV[:, top_k:] = 0
        if top_p < 1:
            # A token stays if the tokens before it hold less than top_p. So the first token always stays.
            share_BV = probabilities_BV / probabilities_BV.sum(-1, keepdim=True) if top_k else probabilities_BV
            before_BV = share_BV.cumsum(-1) - share_BV
            probabilities_BV = probabilities_BV.masked_fill(before_BV >= top_p, 0)
        if min_p:
            probabilities_BV = probabilities_BV.masked_fill(probabilities_BV < min_p * probabilities_BV[:, :1], 0)
        return probabilities_BV, order_BV

    def _note(self, logits_BV: Tensor, chosen_B: Tensor) -> None:
        """Pass the chosen tokens to the constraints, and keep log-probabilities for the requests that want them."""
        if not any(self._constraints) and all(wanted is None for wanted in self._wanted):
            return
        for row, (token, wanted) in enumerate(zip(chosen_B.tolist(), self._wanted, strict=True)):
            constraint = self._constraints[row]
            if constraint is not None:
                constraint.accept(token)
            if wanted is not None:
                self.tokens[row].append(_token(logits_BV[row], token, wanted))
            if token in self._stops[row]:  # a batch continues with ended rows, and their further tokens are not used
                self._constraints[row] = self._wanted[row] = None


def _token(logits_V: Tensor, chosen: int, most_likely: int) -> Token:
    logprobs_V = logits_V.float().log_softmax(-1)
    top = logprobs_V.topk(min(most_likely, len(logprobs_V)))
    return Token(chosen, float(logprobs_V[chosen]), tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True)))
