"""Training sequences as prefix trees, which store a prefix of several sequences once.

The thoughts of a turn are removed from the context once the turn has an answer. So the turns of a conversation are
separate sequences that share most of their tokens. Different conversations share system messages and tool schemas.

In the model only attention connects tokens. In a tree a token attends to the tokens on its path only. So a token that
several sequences share can be computed once, and loss and gradients equal those of the separate sequences. Sources:
Wang and Hegde 2024, arXiv 2410.20305; Goru et al. 2025, arXiv 2504.18246; Tree Training 2025, arXiv 2511.00413.

Trees are made from token ids alone, so they support any format and any choice of supervised tokens. Supervision is
stored in *edges*. An edge states that a certain token follows the token in a certain row. A row can have several
edges, one for each continuation. Equal edges of several sequences become one edge with the sum of their weights.

Sequences are sorted by their ids, so that neighbours share the longest prefixes. A binary search that compares bytes
finds the common prefix of two neighbours. The run time is that of the sort and of a few accesses to each token. This
module uses neither torch nor numpy.
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
    """The consecutive tokens between two branching points."""

    ids: array[int]
    """The token ids, an array of type code "i"."""
    parent: int
    """Index of the parent among the tree's nodes; -1 for the root."""
    position: int
    """Position of the first token on the path from the root, from 0."""
    ends: tuple[int, ...] = ()
    """Indices of the sequences that end with this node. Among the pieces of a tree, only one lists each sequence."""


class Edge(NamedTuple):
    """The supervision of one prediction: `target` follows the token in `row`."""

    row: int
    """Row of the preceding token. Rows count the tokens of all nodes, in the order of the nodes."""
    target: int
    """The token id to predict."""
    weight: float
    """The weight in the loss, summed over the sequences that have the edge."""
    channel: str | None
    """The channel of the target."""


@dataclass(frozen=True)
class Tree:
    """Nodes in depth-first order. Each node precedes its children, and the nodes of a subtree are consecutive.

    The child with the largest subtree directly follows its parent. So the longest paths are contiguous, and the rows
    that a branch attends to form few ranges.
    """

    nodes: list[Node]
    edges: list[Edge] = field(default_factory=list)
    """In order of their rows."""

    @property
    def tokens(self) -> int:
        """Number of tokens that are computed."""
        return sum(len(node.ids) for node in self.nodes)

    @property
    def unshared(self) -> int:
        """Sum of the lengths of the tree's sequences, in tokens."""
        return sum((node.position + len(node.ids)) * len(node.ends) for node in self.nodes)

    @property
    def examples(self) -> list[int]:
        """Indices of the tree's sequences, in rising order."""
        return sorted(index for node in self.nodes for index in node.ends)

    @property
    def starts(self) -> list[int]:
        """The first row of each node, followed by the number of rows."""
        return list(accumulate((len(node.ids) for node in self.nodes), initial=0))


def grow(examples: Sequence[TrainingExample], shortest: int = 1) -> list[Tree]:
    """Return the prefix trees of the examples, in order of their ids. Each tree has the sequences that share a root.

    Args:
        examples: the sequences. Those without tokens are in no tree.
        shortest: the least number of tokens in a shared node. A shorter one is repeated in each of its branches.
    """
    sequences = [array("i", example.ids) for example in examples]
    trie = _Trie.of(sequences, shortest)
    trees = []
    for root in trie.children[0]:
        nodes = trie.nodes(root, sequences)
        trees.append(Tree(nodes, _edges(nodes, examples)))
    return trees


def alone(examples: Sequence[TrainingExample]) -> list[Tree]:
    """Return a tree for each example, in their order, without sharing. Examples without tokens have none."""
    nodes = [Node(array("i", example.ids), -1, 0, (index,)) for index, example in enumerate(examples)]
    return [Tree([node], _edges([node], examples)) for node in nodes if node.ids]


def tokens_computed(examples: Sequence[TrainingExample], most: int | None = None, shortest: int = 1) -> int:
    """Return the number of tokens in the prefix trees of the examples.

    Args:
        examples: as for `grow`.
        most: if given, count the tokens of the pieces that `split_tree` cuts the trees into.
        shortest: as for `grow`.

    Raises:
        ValueError: as `split_tree`.
    """
    if most is not None:
        return sum(piece.tokens for tree in grow(examples, shortest) for piece in split_tree(tree, most))
    trie = _Trie.of([array("i", example.ids) for example in examples], shortest)
    return sum(trie.length(node) for node in range(1, len(trie.stop)))


def split_tree(tree: Tree, most: int) -> list[Tree]:
    """Return the tree cut between branches into pieces, which are trees of at most `most` tokens each.

    Each sequence is complete in one piece. Nodes that several pieces share are repeated in each of them, and their
    edges are in the first one. Branches are joined from the leaves to the root, largest first. So deep paths are
    repeated least.

    Raises:
        ValueError: one sequence alone has more than `most` tokens.
    """
    if tree.tokens <= most:
        return [tree]
    units: list[list[_Bin]] = [[] for _ in tree.nodes]  # per node: the bins of its children
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
    """Return the trees in groups of at most `most` tokens: the largest first, each where it leaves the least room.

    Larger trees must be cut by `split_tree` first. Groups and the trees of a group keep the order of `trees`.
    """
    units = [_Bin(tree.tokens, [index]) for index, tree in enumerate(trees)]
    return [[trees[index] for index in group] for group in sorted(sorted(unit.nodes) for unit in _fill(units, most))]


@dataclass(slots=True)
class _Bin:
    """A group of nodes or of trees."""

    tokens: int = 0
    nodes: list[int] = field(default_factory=list)


def _fill(units: list[_Bin], room: int) -> list[_Bin]:
    """Return the units joined into bins of at most `room` tokens by best fit, largest first (Johnson 1974)."""
    bins: list[_Bin] = []
    free: list[tuple[int, int]] = []  # (remaining room, bin), sorted
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
    """Return a tree for each set of nodes. Edges and ends of a node are in the first piece that has the node."""
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
    """The branching points of sequences, as one list per attribute. Node 0 precedes all tokens and has none."""

    def __init__(self) -> None:
        self.stop: list[int] = []
        """Per node: the number of tokens from the start of the sequence to the node's end."""
        self.parent: list[int] = []
        self.sequence: list[int] = []
        """Per node: the index of a sequence that contains it."""
        self.ends: list[list[int]] = []
        """Per node: the indices of the sequences that end with it."""
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
        order = sorted(range(len(keys)), key=keys.__getitem__)  # a prefix precedes the sequences that begin with it
        trie, before = _Trie(), b""
        path = [trie._new(0, 0, 0)]
        for index in order:
            common = _shared(before, keys[index]) // _BYTES
            before, below = keys[index], 0
            while trie.stop[path[-1]] > common:
                below = path.pop()
            if trie.stop[path[-1]] < common:  # the branching point is within the last node that was removed
                path.append(trie._new(common, path[-1], trie.sequence[below]))
                trie.parent[below] = path[-1]
            if trie.stop[path[-1]] < len(sequences[index]):
                path.append(trie._new(len(sequences[index]), path[-1], index))
            trie.ends[path[-1]].append(index)
        trie._connect(shortest)
        return trie

    def _connect(self, shortest: int) -> None:
        """Remove shared nodes of fewer than `shortest` tokens and list the children, the largest subtree first."""
        count = len(self.stop)
        below: list[list[int]] = [[] for _ in range(count)]
        for node in range(1, count):
            below[self.parent[node]].append(node)
        order, kept = [0], _Trie()
        number = {0: kept._new(0, 0, 0)}
        for node in order:  # parents first; the loop appends to `order`
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
        """Return the subtree of a root, depth first."""
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
    """Return bytes with the same order as the ids."""
    if sys.byteorder == "little":
        ids = ids[:]
        ids.byteswap()
    return ids.tobytes()


def _shared(a: bytes, b: bytes) -> int:
    """Return the number of bytes in the common prefix, found by binary search."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
