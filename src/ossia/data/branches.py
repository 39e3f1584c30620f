"""The prefix tree of a conversation's examples, for display.

The trees are those of training (`ossia.sequences.tree`). This module adds to each node the channels and the weights of
its tokens, and the examples that contain it.
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
"""Channel of header tokens that are common to messages on different channels."""


@dataclass(slots=True)
class Branch:
    """One node of n tokens. `ids`, `channels` and `weights` have one entry per token."""

    ids: list[int]
    position: int
    """Position of its first token in the examples that contain the node, from 0."""
    parent: int
    """Index of the parent in the list of branches. -1 for a root."""
    channels: list[str] = field(default_factory=list)
    """As in `Example.channels`. UNDECIDED where the examples differ."""
    weights: list[float] = field(default_factory=list)
    """The weight of predicting the token from the tokens before it, summed over the examples. 0: not trained."""
    examples: list[Example] = field(default_factory=list)
    """The examples that contain the node, in order of their turns."""
    children: list[Branch] = field(default_factory=list)
    """Sorted by the number of examples, most last. Among equals, the child with the latest turn is last."""

    @property
    def trained_tokens(self) -> int:
        """The number of tokens with a weight above 0."""
        return sum(weight > 0 for weight in self.weights)


@dataclass(frozen=True, slots=True)
class Forest:
    """The trees of a conversation's examples."""

    branches: list[Branch]
    """All nodes in depth-first order. Each node precedes its children."""
    tokens: int
    """The number of tokens that training computes when the examples share their common prefixes."""
    unshared: int
    """The number of tokens of all examples without sharing."""

    @property
    def saving(self) -> Saving:
        """The token counts without and with shared prefixes."""
        return Saving(self.unshared, self.tokens)

    @property
    def roots(self) -> list[Branch]:
        """The nodes without a parent. There is one per distinct first token, usually a single one."""
        return [branch for branch in self.branches if branch.parent < 0]

    def __str__(self) -> str:
        examples = sum(len(root.examples) for root in self.roots)
        return f"{_count(examples, 'example')}: {self.saving}"


def forest(examples: Sequence[Example]) -> Forest:
    """Return the prefix trees of some examples."""
    branches: list[Branch] = []
    tokens = unshared = 0
    for tree in grow(examples):
        tokens, unshared = tokens + tree.tokens, unshared + tree.unshared
        branches += _of_tree(tree, examples, len(branches))
    return Forest(branches, tokens, unshared)


def _of_tree(tree: Tree, examples: Sequence[Example], first: int) -> list[Branch]:
    """Return the branches of a tree. `first` is the index of its first branch in the list of all branches."""
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
        # The first token of an example is never predicted.
        branch.weights[place] += weights[branch.position + place] if branch.position + place else 0.0


def whose(branch: Branch, total: int) -> str:
    """Return the turns whose examples contain a branch, such as `turn 3` or `turns 3-7, shared by 5 examples`.

    Args:
        total: the number of examples of the whole conversation.
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
    """Tokens [start, stop) of a branch that belong to one message. The message may begin or end in other branches."""

    start: int
    stop: int
    name: str
    """The channel (or role). A tool result also has the name of its tool, and a call has its recipient."""
    channel: str
    text: str
    """The text of the tokens without header and closing token, on one line."""
    goes_on: bool
    """Whether the message began in an earlier branch."""


def stretches(branch: Branch, vocabulary: Vocabulary) -> Iterator[Stretch]:
    """Yield the messages of a branch, or the parts of them that are in the branch."""
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
