"""Tests of attention over ranges against a dense softmax with an explicit sink column, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ossia.kernels.cpu import attention as cpu_attention
from ossia.model.attention import attend, attention_forward
from ossia.model.batch import Segments
from support.attention_samples import D, H, K, assert_equals_the_definition, dense, forests, laid_out


@settings(max_examples=60, deadline=None)
@given(forest=forests(), window=st.sampled_from([None, 1, 4, 128]), seed=st.integers(0, 2**16))
def test_a_forest_attends_like_the_dense_definition(
    forest: list[tuple[int | None, int]], window: int | None, seed: int
) -> None:
    assert_equals_the_definition(forest, window, seed)


def test_ranges_that_are_no_forest_are_refused() -> None:
    positions = torch.arange(6)
    none = torch.zeros(0, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="cover"):
        Segments.of(torch.tensor([[0, 2], [3, 6]]), none, positions)
    with pytest.raises(ValueError, match="end at 4"):
        Segments.of(torch.tensor([[0, 4]]), none, positions)
    with pytest.raises(ValueError, match="count up by one"):
        Segments.of(torch.tensor([[0, 3], [3, 6]]), torch.tensor([[1, 0, 3]]), torch.tensor([0, 1, 2, 0, 1, 2]))
    with pytest.raises(ValueError, match="does not lie before"):
        Segments.of(torch.tensor([[0, 3], [3, 6]]), torch.tensor([[1, 2, 4]]), positions)


def test_a_forest_on_the_plain_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices without a kernel of their own run the reference."""
    monkeypatch.setattr(cpu_attention, "serves", lambda _: False)
    for seed, window in ((1, None), (2, 3), (3, 128)):
        assert_equals_the_definition([(None, 9), (0, 4), (1, 1), (0, 7), (None, 3), (3, 5)], window, seed)


@pytest.mark.parametrize("window", [None, 128])
@pytest.mark.parametrize("forest", [[(None, 700)], [(None, 300), (0, 290), (1, 5), (0, 130)]])
def test_long_rows_over_the_window(forest: list[tuple[int | None, int]], window: int | None) -> None:
    assert_equals_the_definition(forest, window, 4)


def test_masks_of_other_programs_give_the_same_with_gradients() -> None:
    """One of two rows is padded on the left, so its first queries attend to no key."""
    generator = torch.Generator().manual_seed(6)
    T, pad = 12, 3

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()

    q, k, v, sinks = random(2, H, T, D), random(2, K, T, D), random(2, K, T, D), random(H)
    seen = torch.ones(T, T, dtype=torch.bool).tril().repeat(2, 1, 1, 1)
    seen[1, :, :, :pad] = False
    module = torch.nn.Module()
    for mask in (seen, torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -torch.inf)):
        ours, _ = attention_forward(module, q, k, v, mask, 0.3, s_aux=sinks)
        truth = torch.stack([dense(q[i], k[i], v[i], sinks, seen[i], 0.3) for i in range(2)])
        torch.testing.assert_close(ours, truth.nan_to_num(0.0), rtol=0, atol=1e-12)
        out_grad = torch.randn(ours.shape, dtype=torch.float64, generator=generator)
        out_grad[1, :pad] = 0
        mine = torch.autograd.grad(ours, (q, k, v, sinks), out_grad)
        real = truth.nan_to_num(0.0)
        for x, y in zip(mine, torch.autograd.grad(real, (q, k, v, sinks), out_grad), strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("queries", [12, 3, 1])
def test_without_a_mask_the_last_queries_see_the_whole_cache(window: int | None, queries: int) -> None:
    """transformers calls it in this way for rows without padding: Q new tokens follow C - Q tokens in the cache."""
    generator = torch.Generator().manual_seed(8)
    T = 12

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()

    q, k, v, sinks = random(2, H, T, D), random(2, K, T, D), random(2, K, T, D), random(H)
    distance = torch.arange(T)[:, None] - torch.arange(T)
    seen = (distance >= 0) & (distance < (window or T))
    new = q[:, :, T - queries :]
    ours, _ = attention_forward(torch.nn.Module(), new, k, v, None, 0.3, sliding_window=window, s_aux=sinks)
    truth = torch.stack([dense(q[i], k[i], v[i], sinks, seen, 0.3)[T - queries :] for i in range(2)])
    torch.testing.assert_close(ours, truth, rtol=0, atol=1e-12)
    grad = torch.randn(ours.shape, dtype=torch.float64, generator=generator)
    for x, y in zip(
        torch.autograd.grad(ours, (q, k, v, sinks), grad),
        torch.autograd.grad(truth, (q, k, v, sinks), grad),
        strict=True,
    ):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("window", [None, 5])
def test_padded_rows_with_a_window_and_gradients(window: int | None, side: str) -> None:
    """The mask of transformers contains the window. Padding is on either side, and its outputs are not compared."""
    generator = torch.Generator().manual_seed(9)
    T, pad = 12, 4

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()

    q, k, v, sinks = random(2, H, T, D), random(2, K, T, D), random(2, K, T, D), random(H)
    real = torch.ones(2, T, dtype=torch.bool)
    real[1, slice(0, pad) if side == "left" else slice(T - pad, T)] = False
    distance = torch.arange(T)[:, None] - torch.arange(T)
    seen = (((distance >= 0) & (distance < (window or T))) & real[:, None, :])[:, None]
    ours, _ = attention_forward(torch.nn.Module(), q, k, v, seen, 0.3, sliding_window=window, s_aux=sinks)
    # The judge gets the rows without their padding.
    grad = torch.randn(ours.shape, dtype=torch.float64, generator=generator) * real[..., None, None]
    total = torch.zeros((), dtype=torch.float64)
    for row in range(2):
        some = real[row]
        short = seen[row, 0][some][:, some]
        truth = dense(q[row][:, some], k[row][:, some], v[row][:, some], sinks, short, 0.3)
        torch.testing.assert_close(ours[row][some], truth, rtol=0, atol=1e-12)
        total = total + (truth * grad[row][some]).sum()
    inputs = (q, k, v, sinks)
    for x, y in zip(torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(total, inputs), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sink", [-60.0, 0.0, 60.0])
def test_sinks_that_take_nothing_or_everything(sink: float) -> None:
    generator = torch.Generator().manual_seed(10)
    q, k, v = (torch.randn(n, 9, D, dtype=torch.float64, generator=generator).requires_grad_() for n in (H, K, K))
    sinks = torch.full((H,), sink, dtype=torch.float64, requires_grad=True)
    segments, seen_TT = laid_out([(None, 5), (0, 2), (0, 2)])
    ours, truth = attend(q, k, v, sinks, segments, scale=0.3, window=None), dense(q, k, v, sinks, seen_TT, 0.3)
    torch.testing.assert_close(ours, truth, rtol=0, atol=1e-12)
    inputs = (q, k, v, sinks)
    mine, other = (torch.autograd.grad(x.sum(), inputs) for x in (ours, truth))
    for x, y in zip(mine, other, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [None, 128])
def test_no_matrix_of_all_pairs_is_ever_made(window: int | None) -> None:
    """Autograd keeps inputs, output and one number per head and token. No intermediate tensor is quadratic."""
    T = 4096
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in (made if isinstance(made, tuple) else (made,)) if isinstance(x, Tensor))
            return made

    q, k, v = torch.randn(H, T, D), torch.randn(K, T, D), torch.randn(K, T, D)
    inputs = [x.requires_grad_() for x in (q, k, v, torch.zeros(H))]
    segments = Segments(((0, T),), ((),), torch.arange(T))
    with Watch():
        attend(*inputs, segments, scale=0.3, window=window).sum().backward()  # type: ignore[arg-type]
    assert max(sizes) <= T * 2 * 256  # the windowed mask: a block of 128 queries has 255 keys
