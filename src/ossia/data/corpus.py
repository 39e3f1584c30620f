"""Checks across rows: near-duplicates, test rows that are in the training data, and implausible effort labels.

Candidates for near-duplicates are found by MinHash (Broder 1997) on runs of five tokens, with bands. Source: Leskovec,
Rajaraman, Ullman, Mining of Massive Datasets, section 3.4. Each pair is then compared in full, so every reported share
is exact up to hash collisions.
"""

from __future__ import annotations

import hashlib
import itertools
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ossia.config import EFFORTS
from ossia.data.checks import place
from ossia.data.kinds import MessageKind
from ossia.data.rendered import Rendered
from ossia.errors import Problem

if TYPE_CHECKING:
    import numpy as np

SIMILAR = 0.8
"""Two conversations are near-duplicates from this Jaccard index of their sets of five-token runs."""
_RUN, _BANDS, _ROWS = 5, 16, 4
_FEWEST_RUNS = 16  # shorter conversations can be similar by chance, and are not compared
_CANDIDATES = 8  # most conversations that are kept per band and value
_MARGIN = 0.25  # four standard deviations of the estimate from 64 places
LONG_FOR_LOW, SHORT_FOR_HIGH = 1000, 24
"""Mean tokens of thought per trained turn. Above the first the label `low` is reported, up to the second `high`."""


def near_duplicates(conversations: Iterable[Rendered], advance: Callable[[int], None] | None = None) -> list[Problem]:
    """Return a warning for every conversation that is similar to an earlier one, but not equal to it.

    `ossia.data.checks.Duplicates` reports the equal ones.

    Args:
        advance: a progress callback, called with 1 for each conversation.
    """
    index, problems = _Similar(), []
    for conversation in conversations:
        if advance is not None:
            advance(1)
        found = index.find(conversation, add=True)
        if found is not None and found[0].facts.get("digest") != conversation.facts.get("digest"):
            other, share = found
            what = f"nearly the same conversation as {other.source} ({share:.0%} of its five-token runs)"
            problems.append(_warning("near-duplicate", what, conversation, "keep one of them"))
    return problems


LeakKind = Literal["the same conversation", "the same question", "nearly the same conversation"]


@dataclass(frozen=True, slots=True)
class Leak:
    """A held-out conversation that is in the training data too."""

    conversation: Rendered
    """The held-out conversation."""
    kind: LeakKind
    source: str
    """The place of the training conversation, such as `data.jsonl:17`."""
    share: float = 1.0
    """The Jaccard index of their sets of five-token runs. 1 if the conversation or the question is equal."""


def leaks(train: Iterable[Rendered], test: Sequence[Rendered]) -> list[Leak]:
    """Return every test conversation that is in the training data.

    The training data have the same conversation, the same question, or a near-duplicate.
    """
    index, questions, digests = _Similar(), dict[bytes | None, str](), dict[object, str]()
    for conversation in train if test else ():
        index.add(conversation)
        if (question := _question(conversation)) is not None:
            questions.setdefault(question, conversation.source)
        digests.setdefault(conversation.facts.get("digest"), conversation.source)
    found: list[Leak] = []
    for conversation in test:
        if (source := digests.get(conversation.facts.get("digest"))) is not None:
            found.append(Leak(conversation, "the same conversation", source))
        elif (source := questions.get(_question(conversation))) is not None:
            found.append(Leak(conversation, "the same question", source))
        elif (similar := index.find(conversation)) is not None:
            found.append(Leak(conversation, "nearly the same conversation", similar[0].source, similar[1]))
    return found


def leak_problems(found: Iterable[Leak]) -> list[Problem]:
    """Return a warning for every leak."""
    problems = []
    for leak in found:
        share = f" ({leak.share:.0%})" if leak.share < 1 else ""
        what = f"the training data have {leak.kind}: {leak.source}{share}"
        problems.append(_warning("leak", what, leak.conversation, "remove it from one of the two"))
    return problems


def leak_summary(found: Sequence[Leak], tested: int, name: str) -> str:
    """Return one sentence with the numbers of leaks by kind, or "" if there are none.

    Args:
        tested: the number of conversations that were tested.
        name: the name of the tested data, such as "validation".
    """
    if not found:
        return ""
    counts = Counter(leak.kind for leak in found)
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    example = f"{found[0].conversation.source} and {found[0].source}"
    return (
        f"leak: {len(found)} of {tested} {name} conversations are in the training data too ({kinds}; such as {example})"
    )


def effort_labels(conversations: Sequence[Rendered]) -> list[Problem]:
    """Return warnings about effort labels that do not fit the length of the thoughts.

    Single rows are compared with `LONG_FOR_LOW` and `SHORT_FOR_HIGH`. The medians of the labels are compared with each
    other.
    """
    lengths: dict[str, list[float]] = defaultdict(list)
    problems = []
    for conversation in conversations:
        effort, mean = conversation.facts.get("effort"), _mean_thought(conversation)
        if mean is None or not isinstance(effort, str):
            continue
        lengths[effort].append(mean)
        if effort == "low" and mean > LONG_FOR_LOW:
            what = f"effort low, but {mean:,.0f} tokens of thought a turn"
            problems.append(_warning("effort-length", what, conversation, "label it medium or high"))
        elif effort == "high" and mean <= SHORT_FOR_HIGH:
            what = f"effort high, but only {mean:,.0f} tokens of thought a turn"
            problems.append(_warning("effort-length", what, conversation, "label it low or medium"))
    ordered = [(effort, statistics.median(lengths[effort])) for effort in EFFORTS if lengths[effort]]
    for (less, short), (more, long) in itertools.pairwise(ordered):
        if short > long:
            what = (
                f"thoughts under effort {less} are longer (median {short:,.0f} tokens) than under {more} ({long:,.0f})"
            )
            problems.append(Problem("warning", "effort-length", what, "the labels may be swapped"))
    return problems


@dataclass(slots=True)
class _Seen:
    """An added conversation with its MinHash signature (uint64 [_BANDS * _ROWS], or empty)."""

    conversation: Rendered
    signature: np.ndarray


@dataclass(slots=True)
class _Similar:
    """An index of conversations by the bands of their MinHash signatures."""

    buckets: dict[tuple[int, bytes], list[_Seen]] = field(default_factory=lambda: defaultdict(list))

    def add(self, conversation: Rendered, signature: np.ndarray | None = None) -> None:
        signature = _signature(_runs(conversation)) if signature is None else signature
        seen = _Seen(conversation, signature)
        for band in _bands(signature):
            if len(self.buckets[band]) < _CANDIDATES:
                self.buckets[band].append(seen)

    def find(self, conversation: Rendered, add: bool = False) -> tuple[Rendered, float] | None:
        """Return the most similar added conversation with its Jaccard index, or None if all are below `SIMILAR`.

        Args:
            add: whether to add this conversation if there is no similar one.
        """
        runs = _runs(conversation)
        signature = _signature(runs)
        candidates = {id(seen): seen for band in _bands(signature) for seen in self.buckets.get(band, ())}
        best: tuple[Rendered, float] | None = None
        for seen in candidates.values():
            # The share of equal places estimates the Jaccard index. Far below the bound no comparison is needed.
            if (seen.signature == signature).mean() < SIMILAR - _MARGIN:
                continue
            share = _jaccard(runs, _runs(seen.conversation))
            if share >= SIMILAR and (best is None or share > best[1]):
                best = seen.conversation, share
        if best is None and add:
            self.add(conversation, signature)
        return best


def _jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """Return the size of the intersection over that of the union, of two arrays without repeats."""
    import numpy as np

    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / max(1, len(first) + len(second) - common)


def _runs(conversation: Rendered) -> np.ndarray:
    """Return the sorted hashes (uint64, without repeats) of all runs of five tokens in the contents.

    System and developer messages are left out. Fewer than `_FEWEST_RUNS` runs give an empty array.
    """
    import numpy as np

    said = [
        np.frombuffer(conversation.tokens, np.int32)[conversation.bounds[4 * i + 1] : conversation.bounds[4 * i + 2]]
        for i, kind in enumerate(conversation.kinds)
        if kind != MessageKind.LASTING
    ]
    tokens = (np.concatenate(said) if said else np.zeros(0, np.int32)).astype(np.uint64)
    count = len(tokens) - _RUN + 1
    if count < _FEWEST_RUNS:
        return np.zeros(0, np.uint64)
    mixed = np.zeros(count, np.uint64)
    for offset in range(_RUN):
        mixed = (mixed ^ tokens[offset : offset + count]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return np.unique(mixed)


def _signature(runs: np.ndarray) -> np.ndarray:
    """Return the MinHash signature (uint64 [_BANDS * _ROWS]) of sorted hashes. It is empty if there are none.

    One permutation serves all places (Li, Owen, Zhang 2012). The hash values are divided into one range per place. The
    value of a place is the least hash of its range, or that of the next range with a hash. A binary search finds it.
    """
    import numpy as np

    if not len(runs):
        return runs
    bounds = np.arange(_BANDS * _ROWS, dtype=np.uint64) * np.uint64(2**64 // (_BANDS * _ROWS))
    return runs[np.searchsorted(runs, bounds) % len(runs)]


def _bands(signature: np.ndarray) -> Iterator[tuple[int, bytes]]:
    """Yield the bands of a signature, each with its number. Conversations with a common band are compared."""
    # With few runs neighbouring places have equal values. So a band consists of places that are far apart.
    for band in range(_BANDS if len(signature) else 0):
        yield band, signature[band::_BANDS].tobytes()


def _question(conversation: Rendered) -> bytes | None:
    """Return a hash of the messages of developer and user, or None if the user wrote nothing."""
    digest, asked = hashlib.blake2b(digest_size=16), False
    for index, kind in enumerate(conversation.kinds):
        is_user = kind == MessageKind.USER
        if is_user or (kind == MessageKind.LASTING and conversation.labels[index] == "developer"):
            start, stop = conversation.bounds[4 * index + 1 : 4 * index + 3]
            digest.update(conversation.tokens[start:stop].tobytes() + b"|")
            asked |= is_user and stop > start
    return digest.digest() if asked else None


def _mean_thought(conversation: Rendered) -> float | None:
    """Return the mean tokens of thought over the trained turns with thoughts, or None if there are none."""
    totals = [
        sum(
            conversation.length(i)
            for i in range(target.start, target.stop)
            if conversation.kinds[i] == MessageKind.THOUGHT
        )
        for target in conversation.targets
    ]
    return statistics.mean(present) if (present := [total for total in totals if total]) else None


def _warning(code: str, what: str, conversation: Rendered, do: str) -> Problem:
    return place(Problem("warning", code, what, do), conversation.source)
