"""Training sequences as prefix trees: what several of them begin with is there once.

A turn's thoughts leave the context once the turn is answered, so the turns of a conversation are sequences that share
most of their tokens, and conversations share system messages and tool schemas. Only attention lets tokens see each
other, and a token sees its path and nothing else; so a token that several sequences share is computed once, and loss
and gradients are those of the separate sequences. (Wang and Hegde 2024, arXiv 2410.20305; Goru et al. 2025, arXiv
2504.18246; Tree Training 2025, arXiv 2511.00413.)

Trees are made from token ids alone, so they hold for any format and any choice of what is trained. Trained is an
*edge*: that the token in one row is followed by some token. A row can have several, one for each continuation, and
equal edges of several sequences are one edge with the sum of their weights.

Sequences are put in order of their ids, so that neighbours share most; what two neighbours share is found by comparing
memory in halves. Time is that of the sort and a few looks at each token; there is no torch here and no numpy.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

from ossia.sequences.example import TrainingExample


@dataclass(frozen=True, slots=True)
class Node:
    """A stretch of tokens between two branchings."""

    ids: array[int]
    """Type code "i"."""
    parent: int
    """Index of the parent among the tree's nodes; -1 of the root."""
    position: int
    """Place of its first token on the path from the root, from 0."""
    ends: tuple[int, ...] = ()
    """Indices of the sequences that end with this node. In a piece of a tree: those that the piece stands for."""


class Edge(NamedTuple):
    """What is trained: that `target` follows the token in `row`."""

    row: int
    """Row of the token before, counted over the tree's nodes in their order."""
    target: int
    weight: float
    """Summed over the sequences that have the edge."""
    channel: str | None


@dataclass(frozen=True)
class Tree:
    """Nodes in depth-first order, each before its children, a node's subtree in one stretch.

    The child with the largest subtree directly follows its parent, so that the longest paths lie in one piece and the
    rows that a branch sees are few ranges.
    """

    nodes: list[Node]
    edges: list[Edge] = field(default_factory=list)
    """In order of their rows."""

    @property
    def tokens(self) -> int:
        """Tokens that are computed."""
        return sum(len(node.ids) for node in self.nodes)

    @property
    def unshared(self) -> int:
        """Tokens of the tree's sequences laid end to end."""
        return sum((node.position + len(node.ids)) * len(node.ends) for node in self.nodes)

    @property
    def examples(self) -> list[int]:
        """Indices of the tree's sequences, in rising order."""
        return sorted(index for node in self.nodes for index in node.ends)

    @property
    def starts(self) -> list[int]:
        """The first row of each node, and at the end the number of rows."""
        return list(accumulate((len(node.ids) for node in self.nodes), initial=0))


def grow(examples: Sequence[TrainingExample], shortest: int = 1) -> list[Tree]:
    """Return the prefix trees of some sequences, one for each way in which they begin, in order of their ids.

    Args:
        examples: at least a token each; those without any are in no tree.
        shortest: a shared stretch with fewer tokens is computed once for each branch instead.
    """
    sequences = [array("i", example.ids) for example in examples]
    trie = _Trie.of(sequences, shortest)
    trees = []
    for root in trie.children[0]:
        nodes = trie.nodes(root, sequences)
        trees.append(Tree(nodes, _edges(nodes, examples)))
    return trees


def alone(examples: Sequence[TrainingExample]) -> list[Tree]:
    """Return a tree for each sequence, in their order: nothing is shared."""
    nodes = [Node(array("i", example.ids), -1, 0, (index,)) for index, example in enumerate(examples)]
    return [Tree([node], _edges([node], examples)) for node in nodes if node.ids]


def tokens_computed(examples: Sequence[TrainingExample], most: int | None = None, shortest: int = 1) -> int:
    """Return the tokens of the sequences' trees; with `most`, of the pieces that `split_tree` cuts them into.

    Raises:
        ValueError: as `split_tree`.
    """
    if most is not None:
        return sum(piece.tokens for tree in grow(examples, shortest) for piece in split_tree(tree, most))
    trie = _Trie.of([array("i", example.ids) for example in examples], shortest)
    return sum(trie.length(node) for node in range(1, len(trie.stop)))


def split_tree(tree: Tree, most: int) -> list[Tree]:
    """Cut a tree into trees of at most `most` tokens each, between branches.

    What several pieces share is repeated in each of them, with its edges in the first. Each sequence is whole in one
    piece. Branches are put together from the leaves up, largest first, so that deep paths are repeated least.

    Raises:
        ValueError: one sequence alone has more than `most` tokens.
    """
    if tree.tokens <= most:
        return [tree]
    units: list[list[_Bin]] = [[] for _ in tree.nodes]  # below each node
    pieces: list[_Bin] = []
    for index in range(len(tree.nodes) - 1, -1, -1):
        node = tree.nodes[index]
        room = most - node.position - len(node.ids)
        if room < 0:
            raise ValueError(f"a sequence has {most - room} tokens or more, a piece holds {most}")
        packed = _fill(units[index], room) or [_Bin()]
        for piece in packed:
            piece.tokens += len(node.ids)
            piece.nodes.append(index)
        (pieces if node.parent < 0 else units[node.parent]).extend(packed)
    return _cut_out(tree, sorted(sorted(piece.nodes) for piece in pieces))


def pack_trees(trees: Sequence[Tree], most: int) -> list[list[Tree]]:
    """Put trees into groups of at most `most` tokens: the largest first, each where it leaves least room.

    Larger trees must have been cut by `split_tree`. Groups and trees of a group are in the order that they were given.
    """
    units = [_Bin(tree.tokens, [index]) for index, tree in enumerate(trees)]
    return [[trees[index] for index in group] for group in sorted(sorted(unit.nodes) for unit in _fill(units, most))]


@dataclass(slots=True)
class _Bin:
    """Nodes, or trees, that go together."""

    tokens: int = 0
    nodes: list[int] = field(default_factory=list)


def _fill(units: list[_Bin], room: int) -> list[_Bin]:
    """Join units into bins of at most `room` tokens: best fit, largest first (Johnson 1974)."""
    bins: list[_Bin] = []
    free: list[tuple[int, int]] = []  # (room left, bin), sorted
    for unit in sorted(units, key=lambda unit: (-unit.tokens, unit.nodes[-1])):
        place = bisect_left(free, (unit.tokens, 0))
        if place == len(free):
            insort(free, (room - unit.tokens, len(bins)))
            bins.append(unit)
            continue
        left, index = free.pop(place)
        bins[index].tokens += unit.tokens
        bins[index].nodes += unit.nodes
        insort(free, (left - unit.tokens, index))
    return bins


def _cut_out(tree: Tree, pieces: Sequence[Sequence[int]]) -> list[Tree]:
    """Trees of some nodes each. Edges and ends of a node are in the first piece that has it."""
    starts, rows = tree.starts, [edge.row for edge in tree.edges]
    taken: set[int] = set()
    made = []
    for members in pieces:
        place = {index: number for number, index in enumerate(members)}
        nodes, edges, row = [], [], 0
        for index in members:
            node = tree.nodes[index]
            ends = () if index in taken else node.ends
            nodes.append(Node(node.ids, place.get(node.parent, -1), node.position, ends))
            if index not in taken:
                mine = slice(bisect_left(rows, starts[index]), bisect_left(rows, starts[index + 1]))
                edges += [edge._replace(row=edge.row - starts[index] + row) for edge in tree.edges[mine]]
            row += len(node.ids)
        taken.update(members)
        made.append(Tree(nodes, edges))
    return made


def _edges(nodes: Sequence[Node], examples: Sequence[TrainingExample]) -> list[Edge]:
    sums: dict[tuple[int, int, str | None], float] = {}
    first = list(accumulate((len(node.ids) for node in nodes), initial=0))
    for number, node in enumerate(nodes):
        for index in node.ends:
            ids, weights, channels = examples[index].ids, examples[index].weights, examples[index].channels
            trained = [place for place, weight in enumerate(weights) if weight and place]
            on_path = number
            for place in reversed(trained):
                while nodes[on_path].position >= place:
                    on_path = nodes[on_path].parent
                row = first[on_path] + place - 1 - nodes[on_path].position
                key = (row, ids[place], channels[place])
                sums[key] = sums.get(key, 0.0) + weights[place]
    edges = [Edge(row, target, weight, channel) for (row, target, channel), weight in sums.items()]
    return sorted(edges, key=lambda edge: (edge.row, edge.target, edge.channel or ""))


class _Trie:
    """Branchings of sequences. Node 0 is the place before the first token; it has no tokens."""

    def __init__(self) -> None:
        self.stop: list[int] = []
        """Per node: tokens from the beginning to its end."""
        self.parent: list[int] = []
        self.sequence: list[int] = []
        """Per node: a sequence that it lies on."""
        self.ends: list[list[int]] = []
        self.children: list[list[int]] = []

    def length(self, node: int) -> int:
        return self.stop[node] - self.stop[self.parent[node]]

    def _new(self, stop: int, parent: int, sequence: int) -> int:
        self.stop.append(stop)
        self.parent.append(parent)
        self.sequence.append(sequence)
        self.ends.append([])
        return len(self.stop) - 1

    @staticmethod
    def of(sequences: Sequence[array[int]], shortest: int) -> _Trie:
        keys = [_key(ids) for ids in sequences]
        order = sorted(range(len(keys)), key=keys.__getitem__)  # a prefix comes before what it begins
        trie, before = _Trie(), b""
        path = [trie._new(0, 0, 0)]
        for index in order:
            common = _shared(before, keys[index]) // _BYTES
            before, below = keys[index], 0
            while trie.stop[path[-1]] > common:
                below = path.pop()
            if trie.stop[path[-1]] < common:  # the branching lies within the last node taken off
                path.append(trie._new(common, path[-1], trie.sequence[below]))
                trie.parent[below] = path[-1]
            if trie.stop[path[-1]] < len(sequences[index]):
                path.append(trie._new(len(sequences[index]), path[-1], index))
            trie.ends[path[-1]].append(index)
        trie._connect(shortest)
        return trie

    def _connect(self, shortest: int) -> None:
        """Fill in children, the heaviest first, without shared stretches that are too short."""
        count = len(self.stop)
        below: list[list[int]] = [[] for _ in range(count)]
        for node in range(1, count):
            below[self.parent[node]].append(node)
        order, kept = [0], _Trie()
        number = {0: kept._new(0, 0, 0)}
        for node in order:  # parents first; grows as it goes
            order += below[node]
            if not node:
                continue
            parent = number[self.parent[node]]
            if below[node] and not self.ends[node] and self.stop[node] - kept.stop[parent] < shortest:
                number[node] = parent
                continue
            number[node] = kept._new(self.stop[node], parent, self.sequence[node])
            kept.ends[-1] = self.ends[node]
        self.stop, self.parent, self.sequence, self.ends = kept.stop, kept.parent, kept.sequence, kept.ends
        self.children = [[] for _ in self.stop]
        weight = [0] * len(self.stop)
        for node in range(len(self.stop) - 1, 0, -1):  # children have higher numbers than parents
            weight[node] += self.length(node)
            weight[self.parent[node]] += weight[node]
            self.children[self.parent[node]].append(node)
        for node, children in enumerate(self.children):
            children.reverse()
            if node:
                children.sort(key=lambda child: -weight[child])

    def nodes(self, root: int, sequences: Sequence[array[int]]) -> list[Node]:
        """A root's subtree, depth first."""
        made: list[Node] = []
        waiting = [(root, -1)]
        while waiting:
            node, parent = waiting.pop()
            start = self.stop[self.parent[node]]
            ids = sequences[self.sequence[node]][start : self.stop[node]]
            waiting += [(child, len(made)) for child in reversed(self.children[node])]
            made.append(Node(ids, parent, start, tuple(self.ends[node])))
        return made


_BYTES = array("i").itemsize


def _key(ids: array[int]) -> bytes:
    """Bytes that compare as the ids do."""
    if sys.byteorder == "little":
        ids = ids[:]
        ids.byteswap()
    return ids.tobytes()


def _shared(a: bytes, b: bytes) -> int:
    """How many bytes two strings begin with in common."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
