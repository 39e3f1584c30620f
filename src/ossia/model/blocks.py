"""Sliding-window attention as a batch of blocks: stretches of queries, each with all keys that its window can reach.

A path is a sequence. A block of queries therefore needs the keys of its own stretch and of the window - 1 positions
before it on the path. Long segments are cut into blocks of the window's length. Their remainders and short segments get
blocks of the next power of two. A tree has many short branches, and the cost of a block depends on its size. Blocks of
one size are one batch. Shorter stretches are padded, and padding is masked.

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
    """The places in the flat batch of each block's queries and keys, for the blocks of one size."""

    places_BQ: Tensor
    """int64; padding repeats the last token of its stretch."""
    is_real: Tensor
    """bool [B, Q]: False for padding."""
    keys_BC: Tensor
    """int64; a key that does not exist has the place of the first or last one in reach, and no real query sees it."""
    seen: Tensor
    """bool [B, 1, Q, C]: the keys that each query sees."""
    tokens: Tensor
    """int64 [R]: the flat places of the real queries, block after block."""
    real_N: Tensor
    """int64 [R]: the places of the real queries among all B * Q queries."""

    def to(self, device: torch.device | str) -> Blocks:
        """Return the same blocks on a device."""
        return Blocks(**{field.name: getattr(self, field.name).to(device) for field in dataclasses.fields(self)})

    def queries(self, x_HT: Tensor) -> Tensor:
        """Return each block's queries, [B, H, Q, ...], of [H, T, ...]."""
        return _picked(x_HT, self.places_BQ).transpose(0, 1)

    def keys(self, x_KTD: Tensor) -> Tensor:
        """Return each block's keys (or values), [B, K, C, D], of [K, T, D]."""
        return _picked(x_KTD, self.keys_BC).transpose(0, 1)

    def real(self, x_BHQ: Tensor) -> Tensor:
        """Return the real queries, [H, R, ...] in the order of `tokens`, of [B, H, Q, ...]."""
        return x_BHQ.transpose(0, 1).flatten(1, 2).index_select(1, self.real_N)

    def add(self, total_KTD: Tensor, x_BKCD: Tensor) -> None:
        """Add the blocks' values for each key, [B, K, C, D], to the sums in `total_KTD`, in its dtype."""
        B, K, C, D = x_BKCD.shape
        flat_KND = x_BKCD.transpose(0, 1).reshape(K, B * C, D).to(total_KTD.dtype)
        total_KTD.index_add_(1, self.keys_BC.flatten(), flat_KND)


def blocks_of(
    ranges: Sequence[tuple[int, int]],
    ancestors: Sequence[Sequence[tuple[int, int]]],
    window: int,
    device: torch.device | str,
) -> tuple[Blocks, ...]:
    """Return the blocks of segments (see `batch.Segments`), largest first. Positions on a path must count up by one."""
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
    """Return the blocks of size Q. Pieces are (start of the segment, start, end, ancestors); see `blocks_of`."""
    places, real, keys, exists = [], [], [], []
    columns_Q, columns_C = torch.arange(Q), torch.arange(Q + window)
    for begin, start, end, before in pieces:
        own = max(begin, start - window + 1)
        reached = torch.cat([tail(before, window - 1 - (start - own)), torch.arange(own, start)])
        path = torch.cat([reached, torch.arange(start, end)])
        firsts_B = torch.arange(0, end - start, Q)
        queries_BQ = firsts_B[:, None] + columns_Q
        # The place of each key of each block in `path`.
        steps_BC = len(reached) + firsts_B[:, None] - window + columns_C
        inside_BC = (steps_BC >= 0) & (steps_BC < len(path))
        places.append(start + queries_BQ.clamp(max=end - start - 1))
        real.append(queries_BQ < end - start)
        keys.append(path[steps_BC.clamp(0, len(path) - 1)])
        exists.append(inside_BC)
    places_BQ, is_real = torch.cat(places), torch.cat(real)
    distance_QC = columns_Q[:, None] + window - columns_C
    band_QC = (distance_QC >= 0) & (distance_QC < window)
    # A padded query sees the keys in its window and its own padded key, so that every query sees at least one key.
    seen = band_QC & (torch.cat(exists)[:, None, :] | (distance_QC == 0))
    real_N = is_real.flatten().nonzero()[:, 0]
    return Blocks(places_BQ, is_real, torch.cat(keys), seen[:, None], places_BQ[is_real], real_N)


def _picked(x_HT: Tensor, places_BN: Tensor) -> Tensor:
    """Return x[:, places], [H, B, N, ...]. `index_select` is many times faster than indexing with a matrix."""
    return x_HT.index_select(1, places_BN.flatten()).unflatten(1, places_BN.shape)


def tail(ranges: Sequence[tuple[int, int]], count: int) -> Tensor:
    """Return the last `count` flat places of a path, int64, or all if there are fewer."""
    parts: list[Tensor] = []
    for start, end in reversed(ranges):
        if count <= 0:
            break
        parts.append(torch.arange(max(start, end - count), end))
        count -= len(parts[-1])
    return torch.cat(parts[::-1]) if parts else torch.zeros(0, dtype=torch.int64)
