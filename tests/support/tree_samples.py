"""Random conversations as training examples, for the tests of prefix trees."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from hypothesis import strategies as st

from ossia.checkpoint.tiny import MICRO

END, RETURN, FIRST = 1, 2, 3


@dataclass
class Example:
    ids: list[int]
    weights: list[float]
    channels: list[str | None] = field(default_factory=list)
    conversation: object = None
    turn: int = 0

    def __post_init__(self) -> None:
        self.channels = self.channels or ["final"] * len(self.ids)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Plan:
    """The lengths of the parts of a conversation, in tokens."""

    system: int
    turns: tuple[tuple[int, tuple[int, ...], int, int], ...]
    """For each turn, the lengths of the question, of the tool results, of each thought and of the answer."""


plans = st.builds(
    Plan,
    system=st.sampled_from([3, 15, 16, 17, 40]),  # near and above the window of 16
    turns=st.lists(
        st.tuples(
            st.sampled_from([1, 6, 20]),
            st.lists(st.sampled_from([2, 15, 33]), max_size=2).map(tuple),
            st.sampled_from([1, 9, 30]),
            st.sampled_from([1, 5, 18]),
        ),
        min_size=1,
        max_size=4,
    ).map(tuple),
)


def conversation(plan: Plan, rng: random.Random, system: list[int], weighted: bool = True) -> list[Example]:
    """Return one example per turn. It has the history without thoughts, and the turn with its thoughts and calls."""
    made, history, name = [], list(system), object()

    def tokens(count: int) -> list[int]:
        return [rng.randrange(FIRST, MICRO.vocabulary) for _ in range(count)]

    for number, (asked, results, thought, answered) in enumerate(plan.turns):
        history += [*tokens(asked), END]
        ids, weights, kept = list(history), [0.0] * len(history), []
        for result in results:
            call = [*tokens(3), END]
            given = [*tokens(result), END]
            ids += tokens(thought) + call + given
            # Weights are exact in binary, so the sums of equal edges are exact.
            weights += [rng.choice([1.0, 0.5, 0.25]) if weighted else 1.0] * (thought + len(call)) + [0.0] * len(given)
            kept += call + given
        answer = tokens(answered)
        ids += [*tokens(thought), *answer, RETURN]
        weights += [1.0] * (thought + answered + 1)
        made.append(Example(ids, weights, ["analysis" if i % 2 else "final" for i in range(len(ids))], name, number))
        history += [*kept, *answer, END]
    return made


@st.composite
def sets(draw: st.DrawFn) -> list[Example]:
    """Draw the examples of one or two conversations, which may share a system message, and variants of some examples.

    The variants are repeats, prefixes, and prefixes with another end.
    """
    rng = random.Random(draw(st.integers(0, 10**6)))
    shared = [rng.randrange(FIRST, MICRO.vocabulary) for _ in range(50)]
    made: list[Example] = []
    for plan in draw(st.lists(plans, min_size=1, max_size=2)):
        own = [rng.randrange(FIRST, MICRO.vocabulary) for _ in range(plan.system)]
        made += conversation(plan, rng, shared[: plan.system] if draw(st.booleans()) else own)
    for kind in draw(st.lists(st.sampled_from(["again", "beginning", "other end", "context"]), max_size=3)):
        one = rng.choice(made)
        cut = rng.randrange(1, len(one) + 1)
        if kind == "again":
            made.append(one)
        elif kind == "beginning":
            made.append(Example(one.ids[:cut], one.weights[:cut]))
        elif kind == "other end":
            made.append(Example([*one.ids[:cut], rng.randrange(FIRST, MICRO.vocabulary)], [*one.weights[:cut], 0.75]))
        else:  # tokens that another example trains are context here
            made.append(Example([*one.ids, FIRST, END], [0.0] * len(one) + [1.0, 1.0]))
    return made
