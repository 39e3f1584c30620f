"""The protocol of engines, which take token ids and return token ids.

Engines do not handle Harmony. `ossia.harmony.render` renders the prompts, and `ossia.harmony.parse` reads the
completions. So evaluation, chat and samples during training get the same tokens from every engine.

A `Request` holds all settings of one completion. `Engine.submit` returns its tokens one by one as a `TokenStream`,
which can be cancelled. `Engine.complete` answers many requests and returns whole completions. Both give the same ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from ossia.harmony.tokenizer.vocabulary import STOP_TOKENS

Finish = Literal["stop", "length", "cancelled"]
"""The reason a completion ended: a stop token, `Request.max_new_tokens` or `TokenStream.cancel`."""

BASE_WEIGHTS = "base"
"""The value of `Request.adapter` for answers of the base weights, with every adapter switched off."""


@dataclass(frozen=True)
class Sampling:
    """Settings of how the next token is drawn. The filters apply in the order of the fields, as in transformers.

    Raises:
        ValueError: a field is out of its range.
    """

    temperature: float = 0.0
    """Divisor of the logits. 0 takes the most likely token."""

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
    """A limit on the tokens of one completion. For each token an engine calls `allowed` and then `accept`."""

    def allowed(self) -> Any:
        """Return a bool tensor [vocabulary], True for tokens that may come next. At least one is True."""
        ...

    def accept(self, token: int) -> None:
        """Record the token that was chosen."""
        ...


@dataclass(frozen=True)
class Request:
    """The settings of one completion.

    The same request gives the same ids on the same engine and machine, whatever other requests the engine answers.

    Raises:
        ValueError: `max_new_tokens` or `logprobs` is out of its range.
    """

    prompt: tuple[int, ...] = ()
    """Token ids. An engine needs at least one."""

    sampling: Sampling = Sampling()

    max_new_tokens: int = 1024
    """Longest completion, the stop token included."""

    stop: frozenset[int] = STOP_TOKENS
    """Stop tokens. A completion ends with the first of them and includes it."""

    seed: int = 0
    number: int = 0
    """Each pair of `seed` and `number` has its own stream of random numbers."""

    logprobs: int | None = None
    """Number of most likely tokens to return at each place, with their log-probabilities.

    0 returns the log-probability of the chosen token only. None returns no log-probabilities. The values are
    those of the model, before temperature, filters and constraint.
    """

    constraint: Callable[[], TokenConstraint] | None = None
    """Function that returns a new constraint for this completion. None: every token is allowed."""

    adapter: str | None = None
    """Name of the adapter that answers, or `BASE_WEIGHTS`. None: the adapter that the engine was opened with."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or (self.logprobs is not None and self.logprobs < 0):
            raise ValueError(f"max_new_tokens >= 1 and logprobs >= 0 are needed: {self}")


class Token(NamedTuple):
    """One token of a completion."""

    id: int
    logprob: float | None = None
    """Natural logarithm of the token's probability. None: the request did not ask for it."""
    most_likely: tuple[tuple[int, float], ...] = ()
    """The `Request.logprobs` most likely tokens at this place, each with its log-probability, best first."""


@dataclass(frozen=True)
class Completion:
    """The output of the model for one request, and the reason it ended.

    `ids` includes the stop token if there is one. `tokens` has the same ids with their log-probabilities if the
    request asked for them, otherwise it is empty.
    """

    ids: tuple[int, ...]
    finish: Finish
    tokens: tuple[Token, ...] = ()


class TokenStream(Protocol):
    """The tokens of one completion as they are computed, the stop token included."""

    @property
    def finish(self) -> Finish | None:
        """The reason the completion ended, or None before its end."""
        ...

    def __iter__(self) -> Iterator[Token]: ...

    def cancel(self) -> None:
        """End the completion. Iteration stops after the tokens that are already computed."""
        ...


OnCompletion = Callable[[int, Completion], None]
"""Called with the index of a request and its completion as soon as it is complete, in any order."""


class Engine(Protocol):
    """A generator of completions for requests."""

    def submit(self, request: Request) -> TokenStream:
        """Return the stream of one completion. Its ids equal `complete([request])[0].ids`.

        Raises:
            ValueError: the prompt is empty, or there is no adapter of the requested name.
        """
        ...

    def description(self) -> dict[str, Any]:
        """Return facts about the engine for a record of its answers, among them `dtype` and `device`."""
        ...

    def complete(self, requests: Sequence[Request], on_completion: OnCompletion | None = None) -> list[Completion]:
        """Return the completions of many requests, in the order of the requests.

        Raises:
            ValueError: as in `submit`.
        """
        ...


def completion(ids: Sequence[int], stop: frozenset[int], tokens: Sequence[Token] = ()) -> Completion:
    """Return a completion of the ids up to the first stop token. Without a stop token, `finish` is "length"."""
    for count, token in enumerate(ids, start=1):
        if token in stop:
            return Completion(tuple(ids[:count]), "stop", tuple(tokens[:count]))
    return Completion(tuple(ids), "length", tuple(tokens))
