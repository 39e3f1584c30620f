"""Sliding-window attention as a batch of blocks: stretches of queries, each with all keys that its window can reach.

A path is a sequence, so a block of queries needs the keys of its own stretch and of the window - 1 positions before it,
wherever on the path those lie. Blocks of all segments have one size; what is short is padded and not seen.

Shapes: B blocks, Q queries of a block, C keys of a block (Q + window), H or K heads, T tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST = 16


@dataclass(frozen=True)
class Blocks:
    """Where the queries and keys of each block stand in the flat batch."""

    places_BQ: Tensor
    """int64; padding repeats the segment's last token."""
    is_real: Tensor
    """bool [B, Q]: not padding."""
    keys_BC: Tensor
    """int64; keys that do not exist point to the segment's first token and are not seen."""
    seen: Tensor
    """bool [B, 1, Q, C]."""
    tokens: Tensor
    """int64 [T]: the flat places of the real queries, block after block."""
    real_N: Tensor
    """int64 [T]: where those stand among all B * Q queries."""

    def queries(self, x_HT: Tensor) -> Tensor:
        """[H, T, ...] -> [B, H, Q, ...]."""
        return _picked(x_HT, self.places_BQ).transpose(0, 1)

    def keys(self, x_KTD: Tensor) -> Tensor:
        """[K, T, D] -> [B, K, C, D]."""
        return _picked(x_KTD, self.keys_BC).transpose(0, 1)

    def real(self, x_BHQ: Tensor) -> Tensor:
        """[B, H, Q, ...] -> [H, T, ...] in the order of `tokens`."""
        return x_BHQ.transpose(0, 1).flatten(1, 2).index_select(1, self.real_N)

    def summed(self, x_BKCD: Tensor, kind: torch.dtype, tokens: int) -> Tensor:
        """[B, K, C, D] of keys -> [K, T, D]: what the blocks give to each key, added up in type `kind`."""
        B, K, C, D = x_BKCD.shape
        total_KTD = torch.zeros(K, tokens, D, dtype=kind, device=x_BKCD.device)
        flat_KND = x_BKCD.transpose(0, 1).reshape(K, B * C, D).to(kind)
        return total_KTD.index_add_(1, self.keys_BC.flatten(), flat_KND)


def blocks_of(
    ranges: Sequence[tuple[int, int]],
    ancestors: Sequence[Sequence[tuple[int, int]]],
    window: int,
    device: torch.device | str,
) -> Blocks:
    """Cut segments (see `batch.Segments`) into blocks. Positions on a path count up by one."""
    longest = max(end - start for start, end in ranges)
    Q = max(SMALLEST, min(window, 1 << (longest - 1).bit_length()))
    places, real, keys, exists = [], [], [], []
    columns_Q, columns_C = torch.arange(Q), torch.arange(Q + window)
    for (start, end), before in zip(ranges, ancestors, strict=True):
        reached = tail(before, window - 1)
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
    parts = (places_BQ, is_real, torch.cat(keys), seen[:, None], places_BQ[is_real], real_N)
    return Blocks(*(part.to(device) for part in parts))


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
