"""The protocol of engines: token ids in, token ids out, whatever computes behind it.

An engine knows nothing about Harmony. Prompts are rendered by `ossia.harmony.render`, completions are read by its
parser. So evaluation, chat, samples during training and a server get the same tokens from every engine.

A `Request` says everything about one completion. `Engine.submit` returns its tokens one by one as a `TokenStream`,
which can be cancelled. `Engine.complete` answers many requests and returns whole completions. Both give the same ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from ossia.harmony.tokenizer.vocabulary import STOP_TOKENS

Finish = Literal["stop", "length", "cancelled"]
"""Why a completion ended: a stop token, `Request.max_new_tokens`, or `TokenStream.cancel`."""

BASE_WEIGHTS = "base"
"""`Request.adapter` of an answer by the base weights, with every adapter switched off."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. The filters apply in the order of the fields, as in transformers."""

    temperature: float = 0.0
    """0 takes the most likely token; else the logits are divided by it."""

    top_k: int = 0
    """Sample among this many most likely tokens (Fan et al. 2018). 0: no limit."""

    top_p: float = 1.0
    """Sample among the most likely tokens that together hold this probability (Holtzman et al. 2019)."""

    min_p: float = 0.0
    """Sample among tokens with at least this share of the most likely one's probability (Nguyen et al. 2024)."""

    def __post_init__(self) -> None:
        in_range = self.temperature >= 0 and self.top_k >= 0 and 0 < self.top_p <= 1 and 0 <= self.min_p <= 1
        if not in_range:
            raise ValueError(f"temperature >= 0, top_k >= 0, 0 < top_p <= 1 and 0 <= min_p <= 1 are needed: {self}")


class TokenConstraint(Protocol):
    """Which tokens may come next, for the completion of one request. An engine calls the two methods in turns."""

    def allowed(self) -> Any:
        """Return a bool tensor [vocabulary], True for tokens that may come next. At least one must be True."""
        ...

    def accept(self, token: int) -> None:
        """Take note of the token that was chosen."""
        ...


@dataclass(frozen=True)
class Request:
    """One completion. The same request gives the same ids on the same engine and machine, whatever else it answers."""

    prompt: tuple[int, ...] = ()
    """Token ids, at least one when the request is given to an engine."""

    sampling: Sampling = Sampling()

    max_new_tokens: int = 1024
    """Longest completion, the stop token included."""

    stop: frozenset[int] = STOP_TOKENS
    """A completion ends with the first of these ids, which belongs to it."""

    seed: int = 0
    number: int = 0
    """Random numbers come from a stream of their own for each pair of seed and number."""

    logprobs: int | None = None
    """0: also the log-probability of each token; n: and the n most likely tokens with theirs. None: neither.

    Log-probabilities are those of the model, before temperature, filters and constraint.
    """

    constraint: Callable[[], TokenConstraint] | None = None
    """Makes the constraint of this completion. None: every token is allowed."""

    adapter: str | None = None
    """Name of the adapter that answers; `BASE_WEIGHTS` for none. None: as the engine was opened."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or (self.logprobs is not None and self.logprobs < 0):
            raise ValueError(f"max_new_tokens >= 1 and logprobs >= 0 are needed: {self}")


class Token(NamedTuple):
    """One token of a completion."""

    id: int
    logprob: float | None = None
    """Natural logarithm of its probability. None: not asked for."""
    most_likely: tuple[tuple[int, float], ...] = ()
    """The `Request.logprobs` most likely tokens at this place, each with its log-probability, best first."""


@dataclass(frozen=True)
class Completion:
    """What the model wrote: `ids` with the stop token, if it came to one, and why it ended.

    `tokens` repeats the ids with their log-probabilities where the request asked for them, else it is empty.
    """

    ids: tuple[int, ...]
    finish: Finish
    tokens: tuple[Token, ...] = ()


class TokenStream(Protocol):
    """The tokens of one completion as they are made, the stop token included."""

    @property
    def finish(self) -> Finish | None:
        """Why the completion ended; None while it has not."""
        ...

    def __iter__(self) -> Iterator[Token]: ...

    def cancel(self) -> None:
        """End the completion. Iteration stops after the tokens that are already made."""
        ...


OnCompletion = Callable[[int, Completion], None]
"""Called with the index of a request and its completion as soon as it is there, in any order."""


class Engine(Protocol):
    """Answers requests."""

    def submit(self, request: Request) -> TokenStream:
        """Return the stream of one completion. Its ids equal `complete([request])[0].ids`.

        Raises:
            ValueError: the prompt is empty, or no adapter has the request's name.
        """
        ...

    def description(self) -> dict[str, Any]:
        """Return what a record of answers says of the engine: dtype and device among it."""
        ...

    def complete(self, requests: Sequence[Request], on_completion: OnCompletion | None = None) -> list[Completion]:
        """Answer many requests and return the completions in their order.

        Raises:
            ValueError: as `submit`.
        """
        ...


def completion(ids: Sequence[int], stop: frozenset[int], tokens: Sequence[Token] = ()) -> Completion:
    """Return the ids up to the first stop token; without one the completion ended for its length."""
    for count, token in enumerate(ids, start=1):
        if token in stop:
            return Completion(tuple(ids[:count]), "stop", tuple(tokens[:count]))
    return Completion(tuple(ids), "length", tuple(tokens))
