"""Sliding-window attention as a batch of blocks: stretches of queries, each with all keys that its window can reach.

A path is a sequence, so a block of queries needs the keys of its own stretch and of the window - 1 positions before it,
wherever on the path those lie. Long segments are cut into blocks of the window's length. What is left of them, and
short segments, go into blocks of the next power of two: a tree has many short branches, and a block costs what its size
is. Blocks of one size are one batch; what is short is padded and not seen.

Shapes: B blocks, Q queries of a block, C keys of a block (Q + window), H or K heads, T tokens, D head size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST = 16


@dataclass(frozen=True)
class Blocks:
    """Where the queries and keys of each block stand in the flat batch, for the blocks of one size."""

    places_BQ: Tensor
    """int64; padding repeats the segment's last token."""
    is_real: Tensor
    """bool [B, Q]: not padding."""
    keys_BC: Tensor
    """int64; keys that do not exist point to the segment's first token and are not seen."""
    seen: Tensor
    """bool [B, 1, Q, C]."""
    tokens: Tensor
    """int64 [R]: the flat places of the real queries, block after block."""
    real_N: Tensor
    """int64 [R]: where those stand among all B * Q queries."""

    def to(self, device: torch.device | str) -> Blocks:
        """The same on a device."""
        return Blocks(**{field.name: getattr(self, field.name).to(device) for field in dataclasses.fields(self)})

    def queries(self, x_HT: Tensor) -> Tensor:
        """[H, T, ...] -> [B, H, Q, ...]."""
        return _picked(x_HT, self.places_BQ).transpose(0, 1)

    def keys(self, x_KTD: Tensor) -> Tensor:
        """[K, T, D] -> [B, K, C, D]."""
        return _picked(x_KTD, self.keys_BC).transpose(0, 1)

    def real(self, x_BHQ: Tensor) -> Tensor:
        """[B, H, Q, ...] -> [H, R, ...] in the order of `tokens`."""
        return x_BHQ.transpose(0, 1).flatten(1, 2).index_select(1, self.real_N)

    def add(self, total_KTD: Tensor, x_BKCD: Tensor) -> None:
        """Add what the blocks give to each key, [B, K, C, D], to the sums in `total_KTD`, in its type."""
        B, K, C, D = x_BKCD.shape
        flat_KND = x_BKCD.transpose(0, 1).reshape(K, B * C, D).to(total_KTD.dtype)
        total_KTD.index_add_(1, self.keys_BC.flatten(), flat_KND)


def blocks_of(
    ranges: Sequence[tuple[int, int]],
    ancestors: Sequence[Sequence[tuple[int, int]]],
    window: int,
    device: torch.device | str,
) -> tuple[Blocks, ...]:
    """Cut segments (see `batch.Segments`) into blocks, largest first. Positions on a path count up by one."""
    largest = max(SMALLEST, window)
    sizes: dict[int, list[tuple[int, int, int]]] = {}  # size -> (segment, start, end)
    for segment, (start, end) in enumerate(ranges):
        whole = end - (end - start) % largest
        if whole > start:
            sizes.setdefault(largest, []).append((segment, start, whole))
        if end > whole:
            size = max(SMALLEST, 1 << (end - whole - 1).bit_length())
            sizes.setdefault(min(size, largest), []).append((segment, whole, end))
    made = []
    for size in sorted(sizes, reverse=True):
        pieces = [(ranges[number][0], start, end, ancestors[number]) for number, start, end in sizes[size]]
        made.append(_of_one_size(size, pieces, window).to(device))
    return tuple(made)


def _of_one_size(Q: int, pieces: Sequence[tuple[int, int, int, Sequence[tuple[int, int]]]], window: int) -> Blocks:
    """Pieces are (start of the segment, start, end, the segment's ancestors); see `blocks_of`."""
    places, real, keys, exists = [], [], [], []
    columns_Q, columns_C = torch.arange(Q), torch.arange(Q + window)
    for begin, start, end, before in pieces:
        own = max(begin, start - window + 1)
        reached = torch.cat([tail(before, window - 1 - (start - own)), torch.arange(own, start)])
        path = torch.cat([reached, torch.arange(start, end)])
        firsts_B = torch.arange(0, end - start, Q)
        queries_BQ = firsts_B[:, None] + columns_Q
        # Place on the path of each key of each block.
        steps_BC = len(reached) + firsts_B[:, None] - window + columns_C
        inside_BC = (steps_BC >= 0) & (steps_BC < len(path))
        places.append(start + queries_BQ.clamp(max=end - start - 1))
        real.append(queries_BQ < end - start)
        keys.append(path[steps_BC.clamp(0, len(path) - 1)])
        exists.append(inside_BC)
    places_BQ, is_real = torch.cat(places), torch.cat(real)
    distance_QC = columns_Q[:, None] + window - columns_C
    band_QC = (distance_QC >= 0) & (distance_QC < window)
    # A padded query sees what the real ones see at its place, at least its own (padded) key: never nothing.
    seen = band_QC & (torch.cat(exists)[:, None, :] | (distance_QC == 0))
    real_N = is_real.flatten().nonzero()[:, 0]
    return Blocks(places_BQ, is_real, torch.cat(keys), seen[:, None], places_BQ[is_real], real_N)


def _picked(x_HT: Tensor, places_BN: Tensor) -> Tensor:
    """x[:, places], [H, B, N, ...]; `index_select` copies rows, many times faster than indexing with a matrix."""
    return x_HT.index_select(1, places_BN.flatten()).unflatten(1, places_BN.shape)


def tail(ranges: Sequence[tuple[int, int]], count: int) -> Tensor:
    """The last `count` places of a path."""
    parts: list[Tensor] = []
    for start, end in reversed(ranges):
        if count <= 0:
            break
        parts.append(torch.arange(max(start, end - count), end))
        count -= len(parts[-1])
    return torch.cat(parts[::-1]) if parts else torch.zeros(0, dtype=torch.int64)
