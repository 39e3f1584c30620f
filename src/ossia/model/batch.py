"""The flat batch without padding. Every loss is computed on it.

A batch is a list of tokens and a forest over them. A *segment* is a stretch of consecutive tokens (its query range). A
token sees its own segment up to itself, and every token of the segment's *ancestors*, which are further key ranges. A
plain row is a tree with one segment and no ancestors. A conversation whose turns share a prefix is a tree with
branches. Positions count along each path from the root. Rotary embeddings and the sliding window therefore treat each
path as a separate sequence.

Supervision is a list of (source row, target id, weight) triples. One token can therefore predict several children, and
labels are never shifted. The loss of a step is sum(weight * -log p(target | source)) / denominator. The denominator is
the same for the whole step, in however many micro-batches.

Shapes: T tokens, N segments, M ancestor ranges, S supervised triples.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ossia.kernels.reference.attention import Paths
from ossia.model.blocks import Blocks, blocks_of
from ossia.model.varlen import VarlenPlan, varlen_plan
from ossia.sequences.tree import Tree


@dataclass(frozen=True)
class FlatBatch:
    """Tensors of one micro-batch.

    Attributes:
        ids_T, positions_T: int64.
        segments_N2: int64, start and end of each query range. Together they cover 0..T in order.
        ancestors_M3: int64, (segment, key start, key end) of the key ranges beyond a segment's own, in path order.
        rows_S, targets_S: int64, the source row and the target id of each triple.
        weights_S: float32, the weight of each triple.
    """

    ids_T: Tensor
    positions_T: Tensor
    segments_N2: Tensor
    ancestors_M3: Tensor
    rows_S: Tensor
    targets_S: Tensor
    weights_S: Tensor

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.ids_T.shape[0]

    def inputs(self) -> dict[str, Tensor]:
        """Return the keyword arguments of `OssiaForCausalLM.forward`, except the denominator."""
        return {
            "input_ids": self.ids_T[None],
            "position_ids": self.positions_T[None],
            "segments": self.segments_N2,
            "ancestors": self.ancestors_M3,
            "rows": self.rows_S,
            "targets": self.targets_S,
            "weights": self.weights_S,
        }


def from_rows(rows: Iterable[tuple[Sequence[int], Sequence[float]]]) -> FlatBatch:
    """Return plain rows laid end to end, each as a tree of one segment.

    Args:
        rows: (ids, weights) pairs of equal length, where `weights[i]` is the weight of predicting `ids[i]` from
            `ids[:i]`. The first weight is ignored, because no token precedes it.
    """
    ids: list[int] = []
    positions: list[int] = []
    segments: list[tuple[int, int]] = []
    triples: list[tuple[int, int, float]] = []
    for row_ids, row_weights in rows:
        start = len(ids)
        ids.extend(row_ids)
        positions.extend(range(len(row_ids)))
        segments.append((start, len(ids)))
        triples += [
            (start + i - 1, target, weight)
            for i, (target, weight) in enumerate(zip(row_ids, row_weights, strict=True))
            if i and weight
        ]
    sources, targets, weights = zip(*triples, strict=True) if triples else ((), (), ())
    return FlatBatch(
        ids_T=torch.tensor(ids, dtype=torch.int64),
        positions_T=torch.tensor(positions, dtype=torch.int64),
        segments_N2=torch.tensor(segments, dtype=torch.int64).reshape(-1, 2),
        ancestors_M3=torch.zeros(0, 3, dtype=torch.int64),
        rows_S=torch.tensor(sources, dtype=torch.int64),
        targets_S=torch.tensor(targets, dtype=torch.int64),
        weights_S=torch.tensor(weights, dtype=torch.float32),
    )


def from_branches(rows: Sequence[tuple[Sequence[int], Sequence[float]]], trunk: int) -> FlatBatch:
    """Return rows as branches of one trunk: their first `trunk` ids, which must be equal and have no weight.

    The loss is that of `from_rows` on the same rows, but the trunk is computed once. Each branch must have at least one
    unsupervised token before its first supervised one, so that every source row lies in its branch.
    """
    if trunk <= 0:
        return from_rows(rows)
    ids, weights = rows[0]
    assert all(list(row[:trunk]) == list(ids[:trunk]) for row, _ in rows) and not any(weights[: trunk + 1])
    batch = from_rows([(ids[:trunk], [0.0] * trunk), *((row[trunk:], weight[trunk:]) for row, weight in rows)])
    positions_T = batch.positions_T.clone()
    positions_T[trunk:] += trunk
    branches_B = torch.arange(1, len(rows) + 1)
    ancestors_B3 = torch.stack([branches_B, torch.zeros_like(branches_B), torch.full_like(branches_B, trunk)], dim=1)
    return dataclasses.replace(batch, positions_T=positions_T, ancestors_M3=ancestors_B3)


def from_trees(trees: Iterable[Tree]) -> FlatBatch:
    """Return prefix trees laid end to end, with the supervision of their edges.

    A node directly after its parent continues the parent's segment. There are therefore as many segments as leaves, and
    the longest paths are one segment each.
    """
    ids, positions, triples = array("i"), array("i"), []
    segments: list[tuple[int, int]] = []
    ancestors: list[tuple[int, int, int]] = []
    for tree in trees:
        starts = [len(ids) + start for start in tree.starts]
        paths: list[tuple[tuple[int, int], ...]] = []  # per node: the ranges before its segment
        opened: list[int] = []  # per node: where its segment begins
        for index, node in enumerate(tree.nodes):
            follows = node.parent == index - 1 >= 0
            if follows:
                segments[-1] = (opened[-1], starts[index + 1])
                paths.append(paths[-1])
                opened.append(opened[-1])
            else:
                parent = node.parent
                before = (*paths[parent], (opened[parent], starts[parent + 1])) if parent >= 0 else ()
                ancestors += [(len(segments), *part) for part in before]
                segments.append((starts[index], starts[index + 1]))
                paths.append(before)
                opened.append(starts[index])
            positions.extend(range(node.position, node.position + len(node.ids)))
        triples += [(starts[0] + edge.row, edge.target, edge.weight) for edge in tree.edges]
        for node in tree.nodes:
            ids.extend(node.ids)
    sources, targets, weights = zip(*triples, strict=True) if triples else ((), (), ())
    return FlatBatch(
        ids_T=torch.tensor(ids, dtype=torch.int64),
        positions_T=torch.tensor(positions, dtype=torch.int64),
        segments_N2=torch.tensor(segments, dtype=torch.int64).reshape(-1, 2),
        ancestors_M3=torch.tensor(ancestors, dtype=torch.int64).reshape(-1, 3),
        rows_S=torch.tensor(sources, dtype=torch.int64),
        targets_S=torch.tensor(targets, dtype=torch.int64),
        weights_S=torch.tensor(weights, dtype=torch.float32),
    )


def from_padded(
    input_ids_BT: Tensor,
    attention_mask_BT: Tensor | None,
    labels_BT: Tensor,
    position_ids_BT: Tensor | None = None,
) -> FlatBatch:
    """Return the batch of another trainer as a flat batch: padded rows, and labels with -100 where not supervised.

    Each label is at the position of the token itself, as in transformers. Padding may be on either side. Without a
    mask, a position of 0 begins a new sequence in the same row, as in padding-free batches.

    Raises:
        ValueError: a label is neither -100 nor the token at its position.
    """
    if attention_mask_BT is None and position_ids_BT is not None:
        input_ids_BT, labels_BT, attention_mask_BT = _apart(input_ids_BT, labels_BT, position_ids_BT)
    keep_BT = torch.ones_like(input_ids_BT, dtype=torch.bool) if attention_mask_BT is None else attention_mask_BT.bool()
    pairs = []
    for ids_T, labels_T, keep_T in zip(input_ids_BT, labels_BT, keep_BT, strict=True):
        ids, labels = ids_T[keep_T], labels_T[keep_T]
        if not torch.equal(ids[labels != -100], labels[labels != -100]):
            raise ValueError("labels must repeat input_ids where they are not -100; for other targets pass triples")
        pairs.append((ids.tolist(), (labels != -100).float().tolist()))
    batch = from_rows(pairs)
    return FlatBatch(**{name: value.to(input_ids_BT.device) for name, value in vars(batch).items()})


def _apart(ids_BT: Tensor, labels_BT: Tensor, positions_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (ids, labels, mask) in which each sequence of a row has a padded row of its own."""
    pieces = []
    for ids_T, labels_T, positions_T in zip(ids_BT, labels_BT, positions_BT.expand_as(ids_BT), strict=True):
        starts = [0, *(start for start in (positions_T == 0).nonzero()[:, 0].tolist() if start)]
        lengths = [end - start for start, end in zip(starts, [*starts[1:], len(ids_T)], strict=True)]
        pieces += list(zip(ids_T.split(lengths), labels_T.split(lengths), strict=True))
    ids, labels = (list(part) for part in zip(*pieces, strict=True))
    mask = [torch.ones_like(ids_T) for ids_T in ids]
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(ids, batch_first=True), pad(labels, batch_first=True, padding_value=-100), pad(mask, batch_first=True)


@dataclass(frozen=True)
class Segments:
    """The forest in the form that attention takes: Python ranges, made once per micro-batch.

    Attributes:
        ranges: (start, end) of each segment.
        ancestors: the further key ranges of each segment, in path order.
        positions_T: the position of each token on its path.
    """

    ranges: tuple[tuple[int, int], ...]
    ancestors: tuple[tuple[tuple[int, int], ...], ...]
    positions_T: Tensor
    _blocks: dict[int, tuple[Blocks, ...]] = field(default_factory=dict, repr=False, compare=False)
    _paths: dict[int, Paths] = field(default_factory=dict, repr=False, compare=False)
    _varlen: dict[int | None, VarlenPlan] = field(default_factory=dict, repr=False, compare=False)

    def blocks(self, window: int) -> tuple[Blocks, ...]:
        """Return the blocks for windowed layers in the dense form. They are made once and kept for all layers."""
        if window not in self._blocks:
            self._blocks[window] = blocks_of(self.ranges, self.ancestors, window, self.positions_T.device)
        return self._blocks[window]

    def varlen(self, window: int | None) -> VarlenPlan:
        """Return the rows for kernels that take rows of different lengths, made once for each kind of layer."""
        if window not in self._varlen:
            self._varlen[window] = varlen_plan(self.ranges, self.ancestors, window, self.positions_T.device)
        return self._varlen[window]

    def paths(self, tokens_per_chunk: int) -> Paths:
        """Return the paths for kernels that take a forest as paths, made once for all layers."""
        if tokens_per_chunk not in self._paths:
            self._paths[tokens_per_chunk] = Paths.of(self.ranges, self.ancestors, tokens_per_chunk)
        return self._paths[tokens_per_chunk]

    @staticmethod
    def of(segments_N2: Tensor, ancestors_M3: Tensor, positions_T: Tensor) -> Segments:
        """Return the segments in the tensors of a batch.

        Raises:
            ValueError: the segments do not cover the tokens in order, or a key range does not lie before its segment.
                Also if positions do not count up by one along a path.
        """
        ranges = tuple((int(start), int(end)) for start, end in segments_N2.tolist())
        ends = [0, *(end for _, end in ranges)]
        if any(start != before or end <= start for (start, end), before in zip(ranges, ends, strict=False)):
            raise ValueError(f"segments must cover the tokens in order without gaps: {ranges}")
        if ends[-1] != positions_T.shape[0]:
            raise ValueError(f"segments end at {ends[-1]} but there are {positions_T.shape[0]} tokens")
        keys: list[list[tuple[int, int]]] = [[] for _ in ranges]
        for segment, start, end in ancestors_M3.tolist():
            if not 0 <= start < end <= ranges[segment][0]:
                raise ValueError(f"key range {start}..{end} of segment {segment} does not lie before it")
            keys[segment].append((start, end))
        _check_positions(ranges, keys, positions_T.tolist())
        return Segments(ranges, tuple(tuple(key) for key in keys), positions_T)


def _check_positions(
    ranges: Sequence[tuple[int, int]], ancestors: Sequence[Sequence[tuple[int, int]]], positions: Sequence[int]
) -> None:
    """Check that positions count up by one on every path, because windows are cut along paths.

    Raises:
        ValueError: they do not.
    """
    for own, before in zip(ranges, ancestors, strict=True):
        path = [place for start, end in (*before, own) for place in (start, end - 1)]
        lengths = [0, *(end - start for start, end in (*before, own))]
        for number, (first, last) in enumerate(zip(path[::2], path[1::2], strict=True)):
            expected = positions[path[0]] + sum(lengths[: number + 1])
            if positions[first] != expected or positions[last] != expected + last - first:
                raise ValueError(f"positions do not count up by one along the path to {own}")
