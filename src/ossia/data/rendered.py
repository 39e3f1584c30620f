"""A conversation as tokens, and the training examples in it, without a copy of what they share.

Every message is rendered once. An example is a choice of messages: the context that the model would see for its turn,
and the turn. Its lists of ids, weights and channels are put together when they are asked for, so that a conversation of
n turns costs its own tokens and not the n²/2 of its examples; the tree of shared prefixes is read off the same choice.
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
    facts: dict[str, object] = field(default_factory=dict)
    """What statistics and checks want to know of the row beside its tokens."""

    @property
    def examples(self) -> list[Example]:
        """The training examples, in order of their turns."""
        return [Example(self, target) for target in self.targets]

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
class Example:
    """One training sequence: the context of an assistant turn and the turn itself."""

    conversation: Rendered
    target: TargetTurn

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
