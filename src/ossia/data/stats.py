"""What a data set amounts to in tokens, before anything is spent on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ossia.data.examples import Example


@dataclass(slots=True)
class Statistics:
    """Counts over training examples. Lengths are in tokens, of whole examples with their context."""

    examples: int = 0
    rows: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    channels: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Channel (or role) -> tokens, trained tokens."""
    turns: dict[int, int] = field(default_factory=dict)
    """Trained turns of a conversation -> how many conversations have that many."""
    histogram: dict[int, int] = field(default_factory=dict)
    """Upper bound (a power of two) -> examples of at most that length and above the bound before."""
    median: int = 0
    percentile_95: int = 0
    longest: int = 0
    shortened: int = 0
    """Examples that lost old turns to fit."""
    over_limit: int = 0
    """Examples longer than the limit that was asked about."""

    @property
    def trained_share(self) -> float:
        """Trained tokens over all tokens, 0..1."""
        return self.trained_tokens / self.tokens if self.tokens else 0.0


def statistics(examples: Sequence[Example], limit: int | None = None) -> Statistics:
    """Count. `limit`: how many examples are longer than this many tokens?"""
    if not examples:
        return Statistics()
    tokens: Counter[str] = Counter()
    trained: Counter[str] = Counter()
    for example in examples:
        tokens.update(example.channels)
        trained.update(channel for channel, weight in zip(example.channels, example.weights, strict=True) if weight > 0)
    lengths = sorted(len(example.ids) for example in examples)
    # Rows of a conversation that names no source cannot be told apart; each counts as one.
    per_row = Counter(example.row or f"unnamed {number}" for number, example in enumerate(examples))
    return Statistics(
        examples=len(examples),
        rows=len(per_row),
        tokens=sum(lengths),
        trained_tokens=sum(trained.values()),
        channels={channel: (tokens[channel], trained[channel]) for channel in sorted(tokens)},
        turns=dict(sorted(Counter(per_row.values()).items())),
        histogram=dict(sorted(Counter(1 << (length - 1).bit_length() for length in lengths).items())),
        median=lengths[(len(lengths) - 1) // 2],
        percentile_95=lengths[(len(lengths) * 95 + 99) // 100 - 1],
        longest=lengths[-1],
        shortened=sum(example.dropped_turns > 0 for example in examples),
        over_limit=sum(length > limit for length in lengths) if limit is not None else 0,
    )
