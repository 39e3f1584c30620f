"""Tests of prefix trees by brute force over all prefixes: every path, every edge and every count."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.model.batch import Segments, from_rows, from_trees
from ossia.sequences.sharing import saving
from ossia.sequences.tree import Tree, grow, pack_trees, split_tree, tokens_computed


@dataclass
class Sequence:
    ids: list[int]
    weights: list[float]
    channels: list[str | None]

    def __len__(self) -> int:
        return len(self.ids)


def sequence(ids: list[int], weights: list[float] | None = None, channel: str | None = "final") -> Sequence:
    return Sequence(ids, weights or [1.0] * len(ids), [channel] * len(ids))


@st.composite
def sets(draw: st.DrawFn) -> list[Sequence]:
    """Draw sequences with few token ids, which share much. Their weights and the sums of these are exact in binary."""
    lists = st.lists(st.integers(0, 2), min_size=1, max_size=9)
    made = []
    for ids in draw(st.lists(lists, min_size=1, max_size=9)):
        weights = draw(st.lists(st.sampled_from([0.0, 0.0, 0.25, 1.0]), min_size=len(ids), max_size=len(ids)))
        channels = draw(st.lists(st.sampled_from([None, "a", "b"]), min_size=len(ids), max_size=len(ids)))
        made.append(Sequence([id_ * 70_000 + 1 for id_ in ids], weights, list(channels)))
    return made


def paths(tree: Tree) -> list[list[int]]:
    """Return for each node the ids from the root to its end."""
    found: list[list[int]] = []
    for index, node in enumerate(tree.nodes):
        before = found[node.parent] if node.parent >= 0 else []
        assert node.parent < index and node.position == len(before) and len(node.ids) > 0
        found.append(before + list(node.ids))
    return found


def edges(trees: list[Tree]) -> Counter[tuple[tuple[int, ...], int, str | None]]:
    """Return the weight of each (prefix, next token, channel)."""
    found: Counter[tuple[tuple[int, ...], int, str | None]] = Counter()
    for tree in trees:
        prefixes = [path[: node.position + i + 1] for node, path in zip(tree.nodes, paths(tree), strict=True)
                    for i in range(len(node.ids))]  # fmt: skip
        for edge in tree.edges:
            found[tuple(prefixes[edge.row]), edge.target, edge.channel] += edge.weight
    return found


def expected_edges(examples: list[Sequence]) -> Counter[tuple[tuple[int, ...], int, str | None]]:
    found: Counter[tuple[tuple[int, ...], int, str | None]] = Counter()
    for e in examples:
        for i in range(1, len(e.ids)):
            if e.weights[i]:
                found[tuple(e.ids[:i]), e.ids[i], e.channels[i]] += e.weights[i]
    return found


def check(trees: list[Tree], examples: list[Sequence]) -> None:
    ends = []
    for tree in trees:
        for node, path in zip(tree.nodes, paths(tree), strict=True):
            for index in node.ends:
                assert path == examples[index].ids
                ends.append(index)
        assert tree.unshared == sum(len(examples[index].ids) for index in tree.examples)
        subtree = [{index} for index in range(len(tree.nodes))]
        for index in range(len(tree.nodes) - 1, 0, -1):
            assert subtree[index] == set(range(index, index + len(subtree[index])))
            subtree[tree.nodes[index].parent] |= subtree[index]
    assert sorted(ends) == list(range(len(examples)))
    assert edges(trees) == expected_edges(examples)


@given(sets())
@settings(max_examples=300, deadline=None)
def test_trees_have_every_prefix_once_and_every_edge_with_its_weight(examples: list[Sequence]) -> None:
    trees = grow(examples)
    check(trees, examples)
    prefixes = {tuple(e.ids[:i]) for e in examples for i in range(1, len(e.ids) + 1)}
    assert sum(tree.tokens for tree in trees) == len(prefixes)
    assert saving([examples]) == (sum(len(e.ids) for e in examples), len(prefixes))
    assert len(trees) == len({e.ids[0] for e in examples})


@pytest.mark.parametrize(("shortest", "tokens"), [(1, 7), (3, 7), (4, 10)])
def test_a_shared_stretch_of_the_least_length_is_shared(shortest: int, tokens: int) -> None:
    """The two sequences of five tokens begin with the same three tokens."""
    trees = grow([sequence([1, 2, 3, 4, 5]), sequence([1, 2, 3, 6, 7])], shortest)
    assert sum(tree.tokens for tree in trees) == tokens


def test_a_piece_may_be_filled_to_the_last_token() -> None:
    (tree,) = grow([sequence([1, 2, 3, 4, 5]), sequence([1, 2, 3, 6, 7])])
    assert [piece.tokens for piece in split_tree(tree, 7)] == [7]
    assert [piece.tokens for piece in split_tree(tree, 6)] == [5, 5]
    assert [piece.tokens for piece in split_tree(tree, 5)] == [5, 5]
    with pytest.raises(ValueError, match="a piece holds 4"):
        split_tree(tree, 4)
    assert [len(group) for group in pack_trees([tree, tree], 14)] == [2]
    assert [len(group) for group in pack_trees([tree, tree], 13)] == [1, 1]


@given(sets(), st.integers(2, 5))
@settings(max_examples=200, deadline=None)
def test_short_shared_stretches_are_repeated(examples: list[Sequence], shortest: int) -> None:
    trees = grow(examples, shortest)
    check(trees, examples)
    for tree in trees:
        parents = {node.parent for node in tree.nodes}
        assert all(len(node.ids) >= shortest or node.ends or i not in parents for i, node in enumerate(tree.nodes))
    assert tokens_computed(examples, shortest=shortest) == sum(tree.tokens for tree in trees)


@given(sets(), st.integers(9, 20))
@settings(max_examples=300, deadline=None)
def test_pieces_are_small_whole_and_have_each_edge_once(examples: list[Sequence], most: int) -> None:
    trees = grow(examples)
    pieces = [piece for tree in trees for piece in split_tree(tree, most)]
    assert all(piece.tokens <= most for piece in pieces)
    check(pieces, examples)
    groups = pack_trees(pieces, most)
    assert all(sum(tree.tokens for tree in group) <= most for group in groups)
    assert sorted(map(id, pieces)) == sorted(id(tree) for group in groups for tree in group)
    # No two groups fit into one.
    sizes = [sum(tree.tokens for tree in group) for group in groups]
    assert all(a + b > most for i, a in enumerate(sizes) for b in sizes[:i])


@given(sets(), st.integers(9, 30))
@settings(max_examples=200, deadline=None)
def test_a_flat_batch_shows_each_row_its_path(examples: list[Sequence], most: int) -> None:
    pieces = [piece for tree in grow(examples) for piece in split_tree(tree, most)]
    batch = from_trees(pieces)
    segments = Segments.of(batch.segments_N2, batch.ancestors_M3, batch.positions_T)
    seen = []
    for (start, end), before in zip(segments.ranges, segments.ancestors, strict=True):
        for row in range(start, end):
            ids = torch.cat([batch.ids_T[a:b] for a, b in (*before, (start, row + 1))])
            assert len(ids) == batch.positions_T[row] + 1
            seen.append(tuple(ids.tolist()))
    found: Counter[tuple[tuple[int, ...], int]] = Counter()
    for row, target, weight in zip(
        batch.rows_S.tolist(), batch.targets_S.tolist(), batch.weights_S.tolist(), strict=True
    ):
        found[seen[row], target] += weight
    wanted: Counter[tuple[tuple[int, ...], int]] = Counter()
    for (prefix, target, _), weight in expected_edges(examples).items():
        wanted[prefix, target] += weight
    assert found == wanted


def test_a_conversation_is_a_trunk_and_a_leaf_per_turn() -> None:
    """There are ten turns. The trunk is one range, and each leaf attends to one range before it."""
    system, turns = list(range(100, 140)), []
    history = system
    for turn in range(10):
        question = [*history, 1000 + turn, 1]
        thought, answer = [2, *range(2000 + 50 * turn, 2050 + 50 * turn)], [3, 4000 + turn, 5]
        turns.append(sequence(question + thought + answer))
        history = [*question, *answer[:-1], 6]
    (tree,) = grow(turns)
    batch = from_trees([tree])
    assert len(batch.segments_N2) == 10
    assert sorted(batch.ancestors_M3[:, 0].tolist()) == list(range(1, 10))
    assert (
        saving([turns]) == (tree.unshared, tree.tokens) == (40 * 10 + 5 * 45 + 56 * 10, 40 + 10 * 2 + 9 * 3 + 10 * 54)
    )


def test_a_repeated_sequence_counts_twice_and_a_prefix_ends_within() -> None:
    twice = [sequence([1, 2, 3]), sequence([1, 2]), sequence([1, 2, 3], [1.0, 0.5, 0.5])]
    (tree,) = grow(twice)
    assert [(list(node.ids), node.ends) for node in tree.nodes] == [([1, 2], (1,)), ([3], (0, 2))]
    assert [(edge.row, edge.target, edge.weight) for edge in tree.edges] == [(0, 2, 2.5), (1, 3, 1.5)]
    assert (tree.examples, tree.tokens, tree.unshared) == ([0, 1, 2], 3, 8)


def test_a_sequence_longer_than_a_piece_is_refused() -> None:
    (tree,) = grow([sequence([1, 2, 3, 4]), sequence([1, 5])])
    with pytest.raises(ValueError, match="a sequence has 4 tokens"):
        split_tree(tree, 3)


def test_thousands_of_long_sequences_take_seconds_at_most() -> None:
    """There are 2,000 sequences of 3,000 tokens over one schema. Comparing all pairs would take too long."""
    schema = list(range(5000, 7000))
    examples = [sequence([*schema, n % 50, *range(n, n + 999)], [0.0] * 3000) for n in range(2000)]
    unshared, shared = saving([examples])
    assert unshared == 2000 * 3000
    assert shared == 2000 + 50 + 2000 * 999


def test_rows_without_a_common_beginning_are_the_plain_batch() -> None:
    rows = [([1, 2, 3], [0.0, 1.0, 0.5]), ([4, 5], [0.0, 1.0]), ([6], [1.0])]
    mine = from_trees(grow([sequence(ids, weights) for ids, weights in rows]))
    for name, value in vars(from_rows(rows)).items():
        assert torch.equal(getattr(mine, name), value), name
