"""A conversation as tokens, and the training examples in it, without a copy of what they share.

Every message is rendered once. An example is a choice of messages: the context that the model would see for its turn,
and the turn. Its lists of ids, weights and channels are made on request. So a conversation of n turns needs memory for
its own tokens, not for the n²/2 of its examples. The tree of shared prefixes comes from the same choice.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

from ossia.data.kinds import ENDS_TURN, GOES_ON, context
from ossia.harmony.tokenizer.vocabulary import RETURN


class TokenRun(NamedTuple):
    """Tokens [start, stop) of a conversation, all with one weight and one channel."""

    start: int
    stop: int
    weight: float
    channel: str


@dataclass(slots=True)
class Rendered:
    """One conversation of m messages and n tokens, system and developer message included."""

    source: str
    """Where it came from, as in `data.jsonl:17`."""
    kinds: str = ""
    """One letter per message, see `ossia.data.kinds`."""
    tokens: array[int] = field(default_factory=lambda: array("i"))
    """All messages back to back as they stand in a context."""
    bounds: array[int] = field(default_factory=lambda: array("i"))
    """Four per message: where its header, its content and its closing token begin, and where it ends."""
    labels: list[str] = field(default_factory=list)
    """Per message: analysis, commentary, final, or without a channel the role."""
    weights: list[float] = field(default_factory=list)
    """Per message: the factor on its loss; 0 for all that the model does not write."""
    targets: list[TargetTurn] = field(default_factory=list)
    alternatives: list[Alternative] = field(default_factory=list)
    """Other answers to the prompt of a preference pair or of a group of answers."""
    facts: dict[str, object] = field(default_factory=dict)
    """What statistics and checks want to know of the row beside its tokens."""

    @property
    def examples(self) -> list[Example]:
        """The training examples, in order of their turns."""
        return [Example(self, target) for target in self.targets]

    @property
    def rejected(self) -> Example | None:
        """Of a preference pair: the example of the rejected answer, weighted as if it were trained."""
        return next(self._of_role("rejected"), None)

    @property
    def pair(self) -> tuple[Example, Example] | None:
        """The preferred and the rejected example of a preference pair; None unless both could be made.

        Where one of them had to lose old turns to fit the limit, their contexts may differ.
        """
        last, rejected = self._last, self.rejected
        return (last, rejected) if last is not None and rejected is not None else None

    @property
    def group(self) -> list[Example]:
        """All answers to the prompt of a row with several, the trained one first; empty for any other row."""
        others = list(self._of_role("other"))
        return [*([self._last] if self._last is not None else []), *others] if others else []

    @property
    def _last(self) -> Example | None:
        """The example of the last turn."""
        is_last = self.targets and self.targets[-1].stop == len(self.kinds)
        return Example(self, self.targets[-1]) if is_last else None

    def _of_role(self, role: str) -> Iterator[Example]:
        return (Example(self.joined(one), one.target, role) for one in self.alternatives if one.role == role)

    def joined(self, alternative: Alternative) -> Rendered:
        """The conversation that ends with an alternative, as a copy; it has no targets."""
        begin, own = alternative.begin, alternative.messages
        offset, bounds = self.begin(begin), self.bounds[: 4 * begin]
        bounds.extend(offset + bound for bound in own.bounds)
        return Rendered(
            self.source,
            self.kinds[:begin] + own.kinds,
            self.tokens[:offset] + own.tokens,
            bounds,
            self.labels[:begin] + own.labels,
            self.weights[:begin] + own.weights,
            facts={"score": alternative.score},
        )

    def begin(self, message: int) -> int:
        """Where a message begins."""
        return self.bounds[4 * message - 1] if message else 0

    def length(self, message: int) -> int:
        """The tokens of a message."""
        return self.bounds[4 * message + 3] - self.begin(message)


class TargetTurn(NamedTuple):
    """An assistant turn to train: messages [start, stop)."""

    turn: int
    """Which assistant turn of the conversation, from 0."""
    start: int
    stop: int
    cut: int = 0
    """Of the messages before this one only the lasting ones are in the context; the rest had to go."""
    dropped_turns: int = 0
    """Old turns left out of the context to fit the limit."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """An answer to a conversation's prompt beside the one that the conversation ends with."""

    role: str
    """rejected: of a preference pair. other: of a group of answers."""
    begin: int
    """How many of the conversation's messages precede it."""
    messages: Rendered
    """Its own messages alone, without targets."""
    target: TargetTurn
    """Its last turn, in the conversation that `Rendered.joined` makes."""
    score: float | None = None
    """What the row says of its worth."""


@dataclass(frozen=True, slots=True)
class Example:
    """One training sequence: the context of an assistant turn and the turn itself."""

    conversation: Rendered
    target: TargetTurn
    role: str = "target"
    """target: what supervised training takes. Else the role of the alternative that the example is of."""

    @property
    def score(self) -> float | None:
        """Of an answer in a group: what the row says of its worth."""
        score = self.conversation.facts.get("score")
        return score if isinstance(score, float) else None

    @property
    def turn(self) -> int:
        """Which assistant turn of the conversation, from 0."""
        return self.target.turn

    @property
    def row(self) -> str:
        """Where the conversation came from, as in `data.jsonl:17`."""
        return self.conversation.source

    @property
    def dropped_turns(self) -> int:
        """Old turns left out of the context to fit the limit."""
        return self.target.dropped_turns

    @property
    def messages(self) -> list[int]:
        """Indices of the messages of this example."""
        return [*context(self.conversation.kinds, self.target.start, self.target.cut), *self._targeted]

    @property
    def _targeted(self) -> range:
        return range(self.target.start, self.target.stop)

    def runs(self) -> Iterator[TokenRun]:
        """The example in stretches of one weight and one channel, in order. See `ends_with_return`."""
        made = self.conversation
        for index in context(made.kinds, self.target.start, self.target.cut):
            yield TokenRun(made.begin(index), made.bounds[4 * index + 3], 0.0, made.labels[index])
        for index in self._targeted:
            header, _content, _end, stop = made.bounds[4 * index : 4 * index + 4]
            weight, label = made.weights[index], made.labels[index]
            written = index > self.target.start and made.kinds[index - 1] in GOES_ON
            yield TokenRun(made.begin(index), header, weight if written else 0.0, label)
            yield TokenRun(header, stop, weight, label)

    @property
    def ends_with_return(self) -> bool:
        """Whether the last token is `<|return|>`, as the model samples it, in place of the `<|end|>` of a context."""
        return self.conversation.kinds[self.target.stop - 1] in ENDS_TURN

    def __len__(self) -> int:
        return sum(map(self.conversation.length, self.messages))

    @property
    def ids(self) -> list[int]:
        """The token ids."""
        made = self.conversation
        ids = list(chain.from_iterable(made.tokens[run.start : run.stop] for run in self.runs()))
        if self.ends_with_return:
            ids[-1] = RETURN
        return ids

    @property
    def weights(self) -> list[float]:
        """weights[i] is the weight of predicting ids[i] from ids[:i]; 0 for what is given."""
        return list(chain.from_iterable([run.weight] * (run.stop - run.start) for run in self.runs()))

    @property
    def channels(self) -> list[str]:
        """Per token: analysis, commentary, final, or for messages without a channel the role."""
        return list(chain.from_iterable([run.channel] * (run.stop - run.start) for run in self.runs()))

    @property
    def trained_tokens(self) -> int:
        """Tokens with a weight above 0."""
        return sum(run.stop - run.start for run in self.runs() if run.weight > 0)
