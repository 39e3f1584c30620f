"""Tests of attention along paths in C against the dense form in float64 (which has its own tests)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ossia.kernels import dispatch
from ossia.kernels.cpu import library, paths
from ossia.model.attention import attend
from ossia.model.batch import Segments

D, SCALE = paths.HEAD_DIM, 0.125
Forest = list[tuple[int, int, int]]
"""For each segment: length, parent (-1: none), and the number of the parent's tokens on the path (at least one)."""


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    if not library.native().paths_rows:
        pytest.skip(f"attention along paths: {library.native().reason}")


@st.composite
def forests(draw: st.DrawFn) -> Forest:
    """Draw lengths around the kernel's blocks of 64 keys, its chunks of 32 tokens and the window of 128."""
    lengths = st.sampled_from([1, 2, 3, 5, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200])
    count = draw(st.integers(1, 8))
    return [(draw(lengths), draw(st.integers(-1, n - 1)), draw(st.integers(1, 200))) for n in range(count)]


def laid_out(forest: Forest) -> Segments:
    ranges: list[tuple[int, int]] = []
    ancestors: list[tuple[tuple[int, int], ...]] = []
    for length, parent, taken in forest:
        start = ranges[-1][1] if ranges else 0
        first, last = ranges[parent] if parent >= 0 else (0, 0)
        ancestors.append((*ancestors[parent], (first, min(last, first + taken))) if parent >= 0 else ())
        ranges.append((start, start + length))
    return Segments(tuple(ranges), tuple(ancestors), torch.zeros(ranges[-1][1], dtype=torch.int64))


def results(inputs: list[Tensor], grad: Tensor, segments: Segments, window: int | None) -> list[Tensor]:
    """Return the output and the gradients of queries, keys, values and sinks, as float64."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = attend(*inputs, segments, scale=SCALE, window=window)  # type: ignore[arg-type]
    return [x.detach().double() for x in (out, *torch.autograd.grad(out, inputs, grad.to(out.dtype)))]


def drawn(heads: tuple[int, int], tokens: int, seed: int) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    H, K = heads
    inputs = [torch.randn(n, tokens, D, generator=generator).bfloat16() for n in (H, K, K)]
    inputs.append(torch.randn(H, generator=generator))
    return inputs, torch.randn(tokens, H, D, generator=generator).bfloat16()


@settings(max_examples=60, deadline=None)
@given(
    forest=forests(),
    heads=st.sampled_from([(64, 8), (8, 8), (6, 2), (7, 1), (10, 2)]),
    window=st.sampled_from([None, 1, 16, 128]),
    seed=st.integers(0, 2**16),
)
def test_a_forest_within_what_rounding_does(
    forest: Forest, heads: tuple[int, int], window: int | None, seed: int
) -> None:
    """The error is at most that of torch's own bfloat16 kernels, or that of rounding the factors and the result."""
    segments = laid_out(forest)
    inputs, grad = drawn(heads, segments.ranges[-1][1], seed)
    truth = results([x.double() for x in inputs], grad, segments, window)
    ours = results(inputs, grad, segments, window)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "serves", lambda *_: False)
        torchs = results(inputs, grad, segments, window)
    for name, true, mine, other in zip(("out", "dq", "dk", "dv", "dsinks"), truth, ours, torchs, strict=True):
        size = true.norm() + 1e-6
        allowed = max(1.25 * float((other - true).norm() / size), 2**-8)
        if name == "dsinks":  # in a sum over tokens, errors may exceed the cancelled result
            allowed = max(allowed, 2**-8 * (segments.ranges[-1][1] * D) ** 0.5 / float(size))
        assert float((mine - true).norm() / size) <= allowed, name


def test_inputs_in_any_layout() -> None:
    segments = laid_out([(70, -1, 0), (40, 0, 50)])
    inputs, grad = drawn((8, 2), 110, 0)
    straight = results(inputs, grad, segments, 128)
    bent = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in inputs[:2]]
    bent.append(inputs[2].transpose(1, 2).contiguous().transpose(1, 2))
    other = grad.transpose(1, 2).contiguous().transpose(1, 2)
    *first, dsinks = straight
    *second, dsinks_too = results([*bent, inputs[3]], other, segments, 128)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    torch.testing.assert_close(dsinks, dsinks_too, rtol=1e-5, atol=1e-5)  # torch sums it in another order


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_more_threads_than_key_heads(threads: int) -> None:
    """With more threads, the gradients of keys are summed in parts."""
    segments = laid_out([(300, -1, 0), (150, 0, 200)])
    inputs, grad = drawn((8, 2), 450, 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = results(inputs, grad, segments, None)
        torch.set_num_threads(threads)
        several = results(inputs, grad, segments, None)
    finally:
        torch.set_num_threads(before)
    for x, y in zip(one, several, strict=True):
        torch.testing.assert_close(x, y, rtol=2**-7, atol=1e-3)


def test_no_sink_a_huge_one_and_large_logits() -> None:
    segments = laid_out([(90, -1, 0)])
    inputs, grad = drawn((4, 2), 90, 2)
    inputs[0] *= 30  # logits of some hundreds
    inputs[3] = torch.tensor([-torch.inf, 1e4, 0.0, -1e4])
    out, *grads = results(inputs, grad, segments, None)
    truth, *others = results([x.double() for x in inputs], grad, segments, None)
    assert not out[:, 1].any()
    assert float((out - truth).norm() / truth.norm()) < 2**-7
    for mine, other in zip(grads[:3], others[:3], strict=True):
        assert float((mine - other).norm() / other.norm()) < 2**-6
    assert grads[3].isfinite().all()


def test_what_is_not_a_number_stays_visible_and_in_its_path() -> None:
    segments = laid_out([(40, -1, 0), (20, -1, 0)])
    inputs, _ = drawn((4, 2), 60, 3)
    inputs[2][0, 50] = torch.nan
    out = attend(*inputs, segments, scale=SCALE, window=None)  # type: ignore[arg-type]
    assert out[50:, :2].isnan().any(-1).all()
    assert out[:40].isfinite().all() and out[:, 2:].isfinite().all()


def test_other_types_and_sizes_are_left_to_torch() -> None:
    cpu, rows = torch.device("cpu"), library.native().paths_rows
    assert paths.tokens_per_chunk(4) == rows // 4
    assert paths.serves(cpu, torch.bfloat16, D, 4) and paths.serves(cpu, torch.bfloat16, D, rows)
    assert not paths.serves(cpu, torch.bfloat16, D, rows + 1)
    assert not paths.serves(cpu, torch.float32, D, 4)
    assert not paths.serves(cpu, torch.bfloat16, 32, 4)
    assert not paths.serves(torch.device("meta"), torch.bfloat16, D, 4)


def test_what_runs_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert "follows paths in C" in dispatch.attention_described(cpu, torch.bfloat16, D)
    assert "here: float32, heads of 64" in dispatch.attention_described(cpu, torch.float32, D)
    monkeypatch.setattr(library, "native", lambda: library.Native(None, "not built"))
    monkeypatch.setattr(paths, "native", library.native)
    monkeypatch.setattr(dispatch, "native", library.native)
    assert "not built" in dispatch.attention_described(cpu, torch.bfloat16, D)


def test_what_does_not_fit_together_never_reaches_c() -> None:
    segments = laid_out([(9, -1, 0)])
    (q, k, v, sinks), _ = drawn((8, 2), 9, 4)
    for bad in (
        (q, k, v[:, :5], sinks), (q, k, v.float(), sinks), (q, k, v, sinks[:3]), (q[:, :5], k, v, sinks),
        (q[:7], k, v, sinks[:7]),
    ):  # fmt: skip
        with pytest.raises(AssertionError):
            attend(*bad, segments, scale=SCALE, window=None)  # type: ignore[arg-type]


def test_a_second_derivative_is_refused() -> None:
    segments = laid_out([(9, -1, 0)])
    inputs = [x.requires_grad_() for x in drawn((8, 2), 9, 5)[0]]
    out = attend(*inputs, segments, scale=SCALE, window=None)  # type: ignore[arg-type]
    (dq,) = torch.autograd.grad(out.float().square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dq.float().sum().backward()


def test_empty_ranges_on_a_path_and_a_gradient_that_is_one_number() -> None:
    """`.sum().backward()` passes an expanded gradient, which has only one number in memory."""
    inputs, _ = drawn((8, 2), 8, 6)
    grads = []
    for before in (((0, 4),), ((0, 4), (4, 4))):
        segments = Segments(((0, 4), (4, 8)), ((), before), torch.zeros(8, dtype=torch.int64))
        leaves = [x.clone().requires_grad_() for x in inputs]
        attend(*leaves, segments, scale=SCALE, window=None).sum().backward()  # type: ignore[arg-type]
        grads.append([x.grad for x in leaves])
    for x, y in zip(*grads, strict=True):
        assert x is not None and y is not None and x.isfinite().all() and torch.equal(x, y)
