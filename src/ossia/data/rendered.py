"""A conversation as tokens, and its training examples without copies of their common tokens.

Every message is rendered once. An example is a choice of messages: the context of its turn, and the turn. The lists of
ids, weights and channels of an example are built on access. So a conversation of n turns needs memory for its own
tokens, and not for the about n²/2 turns of its examples. The prefix tree is built from the same choice of messages.
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
    """Tokens [start, stop) of a conversation that have the same weight and the same channel."""

    start: int
    stop: int
    weight: float
    channel: str


@dataclass(slots=True)
class Rendered:
    """One conversation of m messages and n tokens, system and developer message included."""

    source: str
    """The place of its row, such as `data.jsonl:17`."""
    kinds: str = ""
    """One letter per message, from `ossia.data.kinds`."""
    tokens: array[int] = field(default_factory=lambda: array("i"))
    """The token ids of all messages, one after another, as in a context (an array of type code "i", length n)."""
    bounds: array[int] = field(default_factory=lambda: array("i"))
    """Positions in `tokens`, 4·m in all. Per message: begin of header, of content and of closing token, and the end."""
    labels: list[str] = field(default_factory=list)
    """Per message: the channel (analysis, commentary or final), or the role if there is no channel."""
    weights: list[float] = field(default_factory=list)
    """Per message: the factor on its loss. It is 0 for messages that the model does not write."""
    targets: list[TargetTurn] = field(default_factory=list)
    """The assistant turns to train, one per training example."""
    alternatives: list[Alternative] = field(default_factory=list)
    """Other answers to the prompt of a preference pair or of a group of answers."""
    facts: dict[str, object] = field(default_factory=dict)
    """Further facts of the row for checks and statistics, such as format, effort and score."""

    @property
    def examples(self) -> list[Example]:
        """The training examples, in order of their turns."""
        return [Example(self, target) for target in self.targets]

    @property
    def rejected(self) -> Example | None:
        """The example of the rejected answer of a preference pair, with the weights of a trained answer, or None."""
        return next(self._of_role("rejected"), None)

    @property
    def pair(self) -> tuple[Example, Example] | None:
        """The preferred and the rejected example of a preference pair, or None if one of them is missing.

        Their contexts can differ, if one of them lost old turns to fit the limit.
        """
        last, rejected = self._last, self.rejected
        return (last, rejected) if last is not None and rejected is not None else None

    @property
    def group(self) -> list[Example]:
        """All answers to the prompt of a row with several, the trained one first. Other rows have an empty list."""
        others = list(self._of_role("other"))
        return [*([self._last] if self._last is not None else []), *others] if others else []

    @property
    def _last(self) -> Example | None:
        """The example whose turn ends the conversation, or None if that turn is not a target."""
        is_last = self.targets and self.targets[-1].stop == len(self.kinds)
        return Example(self, self.targets[-1]) if is_last else None

    def _of_role(self, role: str) -> Iterator[Example]:
        return (Example(self.joined(one), one.target, role) for one in self.alternatives if one.role == role)

    def joined(self, alternative: Alternative) -> Rendered:
        """Return a copy of the conversation that ends with an alternative. The copy has no targets."""
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
        """Return the position in `tokens` where a message begins."""
        return self.bounds[4 * message - 1] if message else 0

    def length(self, message: int) -> int:
        """Return the number of tokens of a message."""
        return self.bounds[4 * message + 3] - self.begin(message)


class TargetTurn(NamedTuple):
    """An assistant turn to train: messages [start, stop)."""

    turn: int
    """Index of the assistant turn in the conversation, from 0."""
    start: int
    stop: int
    cut: int = 0
    """Of the messages before this index only the lasting ones are in the context. So the example fits the limit."""
    dropped_turns: int = 0
    """The number of old turns that are left out of the context."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another answer to a conversation's prompt, in addition to the one that ends the conversation."""

    role: str
    """rejected: the rejected answer of a preference pair. other: an answer of a group."""
    begin: int
    """The number of the conversation's messages that precede it."""
    messages: Rendered
    """Its messages without the prompt. They have no targets."""
    target: TargetTurn
    """Its last turn, in the conversation that `Rendered.joined` returns."""
    score: float | None = None
    """The score of the answer in the row, if there is one."""


@dataclass(frozen=True, slots=True)
class Example:
    """One training sequence: the context of an assistant turn and the turn itself."""

    conversation: Rendered
    target: TargetTurn
    role: str = "target"
    """target: an example of supervised training. Otherwise the role of its alternative, rejected or other."""

    @property
    def score(self) -> float | None:
        """The score of the answer in the row. None if the row has no group of answers."""
        score = self.conversation.facts.get("score")
        return score if isinstance(score, float) else None

    @property
    def turn(self) -> int:
        """Index of the assistant turn in the conversation, from 0."""
        return self.target.turn

    @property
    def row(self) -> str:
        """The place of the conversation's row, such as `data.jsonl:17`."""
        return self.conversation.source

    @property
    def dropped_turns(self) -> int:
        """The number of old turns that are left out of the context, so that the example fits the limit."""
        return self.target.dropped_turns

    @property
    def messages(self) -> list[int]:
        """Indices of the messages of this example, context first."""
        return [*context(self.conversation.kinds, self.target.start, self.target.cut), *self._targeted]

    @property
    def _targeted(self) -> range:
        return range(self.target.start, self.target.stop)

    def runs(self) -> Iterator[TokenRun]:
        """Yield the runs of tokens with one weight and one channel, in order.

        The last token of the example may differ from that in `tokens` (see `ends_with_return`).
        """
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
        """Whether the last token is `<|return|>`. The model samples it where a context has `<|end|>`."""
        return self.conversation.kinds[self.target.stop - 1] in ENDS_TURN

    def __len__(self) -> int:
        return sum(map(self.conversation.length, self.messages))

    @property
    def ids(self) -> list[int]:
        """The token ids of the example."""
        made = self.conversation
        ids = list(chain.from_iterable(made.tokens[run.start : run.stop] for run in self.runs()))
        if self.ends_with_return:
            ids[-1] = RETURN
        return ids

    @property
    def weights(self) -> list[float]:
        """One weight per token. weights[i] is the weight of predicting ids[i] from ids[:i], and 0 if it is given."""
        return list(chain.from_iterable([run.weight] * (run.stop - run.start) for run in self.runs()))

    @property
    def channels(self) -> list[str]:
        """One label per token: the channel, or the role for messages without a channel."""
        return list(chain.from_iterable([run.channel] * (run.stop - run.start) for run in self.runs()))

    @property
    def trained_tokens(self) -> int:
        """The number of tokens with a weight above 0."""
        return sum(run.stop - run.start for run in self.runs() if run.weight > 0)
