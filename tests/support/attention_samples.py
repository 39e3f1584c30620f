"""Attention by its definition, a dense softmax with an explicit sink column, and random forests of segments."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from ossia.model.attention import attend
from ossia.model.batch import Segments

H, K, D = 4, 2, 8


def dense(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, seen_TT: Tensor, scale: float) -> Tensor:
    """Return attention by its definition: one softmax over [visible keys, sink], without the sink's probability.

    The output is [T, H, D]. `seen_TT` is true where a query attends to a key.
    """
    T = q.shape[1]
    k, v = k.repeat_interleave(H // K, 0), v.repeat_interleave(H // K, 0)
    logits = (q @ k.transpose(1, 2) * scale).masked_fill(~seen_TT, -torch.inf)
    weights = torch.cat([logits, sinks[:, None, None].expand(H, T, 1)], -1).softmax(-1)[..., :-1]
    return (weights @ v).transpose(0, 1)


@st.composite
def forests(draw: st.DrawFn) -> list[tuple[int | None, int]]:
    """Draw the segments of a forest in order, each as (parent's index or None, length)."""
    count = draw(st.integers(1, 7))
    return [
        (draw(st.one_of(st.none(), st.integers(0, i - 1))) if i else None, draw(st.integers(1, 9)))
        for i in range(count)
    ]


def laid_out(forest: list[tuple[int | None, int]]) -> tuple[Segments, Tensor]:
    """Return the forest as Segments, and the dense mask of ancestors, which is built token by token."""
    ranges: list[tuple[int, int]] = []
    ancestors: list[tuple[tuple[int, int], ...]] = []
    positions: list[int] = []
    parents: list[int | None] = []
    for parent, length in forest:
        start = len(positions)
        path = () if parent is None else (*ancestors[parent], ranges[parent])
        ranges.append((start, start + length))
        ancestors.append(path)
        first = 0 if parent is None else positions[ranges[parent][1] - 1] + 1
        positions += range(first, first + length)
        parents += [None if parent is None else ranges[parent][1] - 1, *range(start, start + length - 1)]
    seen_TT = torch.zeros(len(positions), len(positions), dtype=torch.bool)
    for token in range(len(positions)):
        here: int | None = token
        while here is not None:
            seen_TT[token, here] = True
            here = parents[here]
    return Segments(tuple(ranges), tuple(ancestors), torch.tensor(positions)), seen_TT


def assert_equals_the_definition(forest: list[tuple[int | None, int]], window: int | None, seed: int) -> None:
    segments, seen_TT = laid_out(forest)
    if window is not None:
        seen_TT = seen_TT & (segments.positions_T[:, None] - segments.positions_T < window)
    generator = torch.Generator().manual_seed(seed)
    T = len(segments.positions_T)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()

    inputs = (random(H, T, D), random(K, T, D), random(K, T, D), random(H))
    ours = attend(*inputs, segments, scale=0.3, window=window)
    truth = dense(*inputs, seen_TT, 0.3)
    torch.testing.assert_close(ours, truth, rtol=0, atol=1e-12)
    out_grad = torch.randn(ours.shape, dtype=torch.float64, generator=generator)
    for mine, other in zip(
        torch.autograd.grad(ours, inputs, out_grad), torch.autograd.grad(truth, inputs, out_grad), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)
