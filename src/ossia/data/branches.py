"""A conversation's prefix tree for the eye: its nodes with what stands in them, what is trained there, and for whom.

The trees are those of training (`ossia.sequences.tree`); here their nodes get back what a reader wants to know of a
token: the channel, the weight with which it is trained, and the turns whose examples it is computed for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from ossia.data.rendered import Example
from ossia.errors import harmless
from ossia.harmony.tokenizer.vocabulary import CALL, CHANNEL, END, MESSAGE, RETURN, START, Vocabulary
from ossia.sequences.sharing import Saving
from ossia.sequences.tree import Tree, grow

UNDECIDED = "assistant"
"""Channel of a header's tokens that messages on different channels begin with."""


@dataclass(slots=True)
class Branch:
    """One node of n tokens. All three lists have one entry per token."""

    ids: list[int]
    position: int
    """Place of its first token in the examples that it is part of."""
    parent: int
    """Index of the parent in the list of branches; -1 of a root."""
    channels: list[str] = field(default_factory=list)
    """As in `Example.channels`; UNDECIDED where the examples differ."""
    weights: list[float] = field(default_factory=list)
    """The weight of predicting the token from what comes before it, summed over the examples; 0 for what is given."""
    examples: list[Example] = field(default_factory=list)
    """Those that it is part of, in order of their turns."""
    children: list[Branch] = field(default_factory=list)
    """The one that most examples go on with comes last; of equals, the one with the latest turn."""

    @property
    def trained_tokens(self) -> int:
        """Tokens with a weight above 0."""
        return sum(weight > 0 for weight in self.weights)


@dataclass(frozen=True, slots=True)
class Forest:
    """The trees of a conversation's examples."""

    branches: list[Branch]
    """All nodes, depth first, each before its children."""
    tokens: int
    """Tokens that training computes when the examples share what they begin with."""
    unshared: int
    """Tokens of the examples laid end to end."""

    @property
    def saving(self) -> Saving:
        """What sharing leaves of the conversation."""
        return Saving(self.unshared, self.tokens)

    @property
    def roots(self) -> list[Branch]:
        """One per way in which the examples begin; as a rule a single one."""
        return [branch for branch in self.branches if branch.parent < 0]

    def __str__(self) -> str:
        examples = sum(len(root.examples) for root in self.roots)
        return f"{_count(examples, 'example')}: {self.saving}"


def forest(examples: Sequence[Example]) -> Forest:
    """Grow the trees of some examples."""
    branches: list[Branch] = []
    tokens = unshared = 0
    for tree in grow(examples):
        tokens, unshared = tokens + tree.tokens, unshared + tree.unshared
        branches += _of_tree(tree, examples, len(branches))
    return Forest(branches, tokens, unshared)


def _of_tree(tree: Tree, examples: Sequence[Example], first: int) -> list[Branch]:
    """The branches of a tree; the first gets the index `first` in the whole list."""
    made = [
        Branch(list(node.ids), node.position, node.parent + first if node.parent >= 0 else -1) for node in tree.nodes
    ]
    for branch in made:
        branch.channels, branch.weights = [""] * len(branch.ids), [0.0] * len(branch.ids)
    ends = [(index, number) for number, node in enumerate(tree.nodes) for index in node.ends]
    for index, number in sorted(ends):
        channels, weights = examples[index].channels, examples[index].weights
        while number >= 0:
            _add(made[number], examples[index], channels, weights)
            number = tree.nodes[number].parent
    for number, node in enumerate(tree.nodes):
        if node.parent >= 0:
            made[node.parent].children.append(made[number])
    for branch in made:
        branch.children.sort(key=lambda child: (len(child.examples), child.examples[-1].turn))
    return made


def _add(branch: Branch, example: Example, channels: Sequence[str], weights: Sequence[float]) -> None:
    branch.examples.append(example)
    for place in range(len(branch.ids)):
        before, channel = branch.channels[place], channels[branch.position + place]
        branch.channels[place] = channel if before in ("", channel) else UNDECIDED
        # What comes first is never predicted.
        branch.weights[place] += weights[branch.position + place] if branch.position + place else 0.0


def whose(branch: Branch, total: int) -> str:
    """The turns that a branch is computed for, as in `turn 3` or `turns 3-7, shared by 5 examples`.

    `total` is the number of examples in all.
    """
    count, turns = len(branch.examples), sorted({example.turn + 1 for example in branch.examples})
    if total == 1:
        return f"turn {turns[0]}"
    spans: list[list[int]] = []
    for turn in turns:
        if spans and turn == spans[-1][1] + 1:
            spans[-1][1] = turn
        else:
            spans.append([turn, turn])
    listed = ", ".join(f"{low}" if low == high else f"{low}-{high}" for low, high in spans)
    if count == 1:
        return f"turn {listed}"
    return f"turns {listed}, shared by {'all ' * (count == total)}{count} examples"


@dataclass(frozen=True, slots=True)
class Stretch:
    """Tokens [start, stop) of a branch that are of one message, or the part of a message that stands there."""

    start: int
    stop: int
    name: str
    """Role or channel, with the recipient of a call and the tool of a result."""
    channel: str
    text: str
    """What the message says, without header and closing token, on one line."""
    goes_on: bool
    """Whether the message began in a branch before."""


def stretches(branch: Branch, vocabulary: Vocabulary) -> Iterator[Stretch]:
    """Cut a branch into messages."""
    ids = branch.ids
    starts = [place for place, id in enumerate(ids) if id == START]
    bounds = sorted({0, *starts, len(ids)})
    for start, stop in pairwise(bounds):
        own = ids[start:stop]
        body = own.index(MESSAGE) + 1 if MESSAGE in own else 0 if ids[start] != START else len(own)
        header = vocabulary.decode(own[: max(0, body - 1)]) if MESSAGE in own else vocabulary.decode(own[:body])
        text = vocabulary.decode([id for id in own[body:] if id not in (END, CALL, RETURN, CHANNEL)])
        channel = branch.channels[stop - 1]
        yield Stretch(
            start, stop, _name(header, channel), channel, harmless(" ".join(text.split())), ids[start] != START
        )


_AUTHOR = re.compile(r"<\|start\|>(?!assistant)(\S+?)(?=<\||\s|$)")
_RECIPIENT = re.compile(r"\bto=(?!assistant)([^\s<]+)")


def _name(header: str, channel: str) -> str:
    author, recipient = _AUTHOR.search(header), _RECIPIENT.search(header)
    name = channel if author is None or author[1] == channel else f"{author[1]} ({channel})"
    return harmless(name + (f" to {recipient[1]}" if recipient else ""))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
