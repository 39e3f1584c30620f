"""Tests of the reference kernels in plain torch against independent judges.

MXFP4 has three judges: transformers' converter, the `gguf` package, and the definition in exact fractions.
"""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.errors import UserError
from ossia.kernels.reference.attention import VarlenRows, varlen_backward, varlen_forward
from ossia.kernels.reference.gate import gate, gate_backward
from ossia.kernels.reference.mxfp4 import MAGNITUDES, Rule, dequantise, fake_quantise, nan_scales, quantise

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
RULES: tuple[Rule, ...] = ("best", "floor")


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    word = INTEGERS[left.dtype.itemsize]
    return left.dtype == right.dtype and torch.equal(left.contiguous().view(word), right.contiguous().view(word))


def random_packed(seed: int, *groups: int, low: int = 90, high: int = 150) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (*groups, 16), dtype=torch.uint8, generator=generator)
    return blocks, torch.randint(low, high, groups, dtype=torch.uint8, generator=generator)


def every_code_and_scale() -> tuple[torch.Tensor, torch.Tensor]:
    """Return blocks [1, 255, 1, 16] and scales [1, 255, 1], both uint8.

    Each row has one scale byte and all 16 codes, in low and in high halves.
    """
    code = torch.arange(16, dtype=torch.uint8)
    blocks = (code | (code.flip(0) << 4)).expand(1, 255, 1, 16)
    return blocks, torch.arange(255, dtype=torch.uint8).view(1, 255, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64, torch.float16])
def test_every_code_at_every_scale_equals_transformers_bit_for_bit(dtype: torch.dtype) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks, scales = every_code_and_scale()
    theirs = convert_moe_packed_tensors(blocks, scales, dtype=dtype).transpose(1, 2)
    assert same_bits(dequantise(blocks, scales, dtype), theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_few_different_scales_take_a_short_cut_that_changes_nothing(dtype: torch.dtype) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks, scales = every_code_and_scale()
    for first in range(255):
        some = slice(first, first + 24)
        theirs = convert_moe_packed_tensors(blocks[:, some], scales[:, some], dtype=dtype).transpose(1, 2)
        assert same_bits(dequantise(blocks[:, some], scales[:, some], dtype), theirs), first


def test_every_code_at_every_scale_is_the_exact_fraction() -> None:
    blocks, scales = every_code_and_scale()
    values = dequantise(blocks, scales, torch.float64)[0].tolist()
    for byte, row in enumerate(values):
        for place, value in enumerate(row):
            code = place // 2 if place % 2 == 0 else 15 - place // 2
            expected = Fraction(MAGNITUDES[code & 7]) * Fraction(2) ** (byte - 127)
            assert Fraction(value) == (-expected if code & 8 else expected)


def test_many_chunks_equal_transformers() -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks, scales = random_packed(0, 3, 1401, 9)  # 37,827 groups: three chunks, the last one partial
    assert same_bits(dequantise(blocks, scales), convert_moe_packed_tensors(blocks, scales).transpose(1, 2))


def test_views_and_leading_axes() -> None:
    blocks, scales = random_packed(1, 4, 6, 2)
    assert torch.equal(dequantise(blocks[2], scales[2]), dequantise(blocks, scales)[2])
    assert torch.equal(dequantise(blocks[::2, 1:], scales[::2, 1:]), dequantise(blocks, scales)[::2, 1:])


def test_nan_scales_are_counted_and_never_become_numbers() -> None:
    blocks, scales = random_packed(2, 2, 3, 4)
    assert nan_scales(scales) == nan_scales(scales[:0]) == 0
    scales[1, 2, 3] = 255
    assert nan_scales(scales) == 1
    assert torch.isnan(dequantise(blocks, scales)[1, 2, 96:]).all()


def rounded(value: float, exponent: int) -> int:
    """Return the code of value / 2^exponent by the definition.

    It is the code of the nearest magnitude. Ties go to the even code, and large values saturate.
    """
    size = abs(Fraction(value)) / Fraction(2) ** exponent
    index = min(range(8), key=lambda code: (abs(size - Fraction(MAGNITUDES[code])), code % 2))
    return index | (8 if torch.signbit(torch.tensor(value)) else 0)


def reference(row: list[float], rule: str) -> tuple[list[int], int]:
    """Return the codes and the exponent of one group, in exact arithmetic."""
    largest = max(abs(Fraction(value)) for value in row)
    floor = -127
    while largest and floor < 127 and largest >= Fraction(2) ** (floor + 3):
        floor += 1
    best: tuple[Fraction, list[int], int] | None = None
    for exponent in (floor,) if rule == "floor" else (floor, max(floor - 1, -127), floor + 1):
        codes = [rounded(value, exponent) for value in row]
        stored = [Fraction(MAGNITUDES[code & 7]) * Fraction(2) ** exponent for code in codes]
        error = sum(((abs(Fraction(v)) - s) ** 2 for v, s in zip(row, stored, strict=True)), Fraction(0))
        if best is None or error < best[0]:
            best = error, codes, exponent
    assert best is not None
    return best[1], best[2]


def codes_of(blocks: torch.Tensor) -> list[int]:
    return torch.stack([blocks & 15, blocks >> 4], dim=-1).flatten().tolist()


# With few mantissa bits, ties and equal errors are common. The exponents reach the limits of float32.
lattice = st.builds(
    lambda mantissa, exponent, sign: sign * mantissa / 16 * 2.0**exponent,
    st.integers(0, 63),
    st.integers(-6, 3),
    st.sampled_from([1.0, -1.0]),
)
groups = st.builds(
    lambda row, shift: [value * 2.0**shift for value in row],
    st.lists(lattice, min_size=32, max_size=32),
    st.sampled_from([0, 0, -100, -125, 100, 118]),
)


@settings(max_examples=150, deadline=None)
@given(row=groups, rule=st.sampled_from(RULES))
def test_rounding_is_the_definition(row: list[float], rule: Rule) -> None:
    blocks, scales = quantise(torch.tensor(row), rule)
    codes, exponent = reference(torch.tensor(row).tolist(), rule)
    assert (codes_of(blocks), int(scales) - 127) == (codes, exponent)


@pytest.mark.parametrize("rule", RULES)
def test_rounding_of_full_precision_numbers_is_the_definition(rule: Rule) -> None:
    """The numbers are next to every tie, where rounding twice gives wrong codes."""
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0])
    near = torch.cat([ties, torch.nextafter(ties, torch.tensor(9.0)), torch.nextafter(ties, torch.tensor(0.0)), -ties])
    for scale in (1.0, 2.0**-20):
        blocks, scales = quantise(near * scale, rule)
        codes, exponent = reference((near * scale).tolist(), rule)
        assert (codes_of(blocks), int(scales) - 127) == (codes, exponent)


def test_floor_rule_equals_gguf_but_for_ties() -> None:
    gguf = pytest.importorskip("gguf", reason="the gguf package is an optional second judge")
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(3))  # no ties in full-precision noise
    theirs = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType.MXFP4)
    theirs_nb = torch.from_numpy(theirs).view(64 * 8, 17)
    blocks, scales = quantise(weight, "floor")
    assert torch.equal(scales.flatten(), theirs_nb[:, 0])
    halves = torch.cat([theirs_nb[:, 1:] & 15, theirs_nb[:, 1:] >> 4], dim=1)  # gguf pairs code j with code j + 16
    ours = [0 if code == 8 else code for code in codes_of(blocks)]  # gguf has no negative zero
    assert ours == halves.flatten().tolist()


@pytest.mark.parametrize("rule", RULES)
def test_packing_unpacked_weights_keeps_the_values(rule: Rule) -> None:
    blocks, scales = random_packed(4, 2, 500, 8, low=0, high=252)
    values = dequantise(blocks, scales)
    assert torch.equal(dequantise(*quantise(values, rule)), values)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), low=st.integers(0, 250), zeros=st.booleans())
def test_bytes_survive_when_the_scales_are_known(seed: int, low: int, zeros: bool) -> None:
    blocks, scales = random_packed(seed, 4, 3, low=low, high=252)
    if zeros:
        blocks[1] = 0  # the scale byte of an all-zero group is arbitrary and must survive as well
    if seed % 2:
        blocks &= 0x99  # codes 0, 1 and their negatives: a smaller scale would fit these groups
    values = dequantise(blocks, scales)
    for rule in ("best", "keep"):
        packed, kept = quantise(values, rule, scales)
        assert torch.equal(packed, blocks)
        assert torch.equal(kept, scales)


def test_best_is_never_worse_than_the_other_rules() -> None:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(200, 96, generator=generator)
    _, far = random_packed(6, 200, 3, low=0, high=255)

    def error(packed: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return (dequantise(*packed, torch.float64) - weight.double()).square().view(200, 3, 32).sum(-1)

    best, floor = error(quantise(weight, "best")), error(quantise(weight, "floor"))
    assert (best <= floor * (1 + 1e-6)).all()
    assert (error(quantise(weight, "best", far)) <= best * (1 + 1e-6)).all()  # a useless base scale has no effect
    # The literature gives relative errors on Gaussian rows: 0.1155 by the floor rule and 0.1118 with the best scale.
    relative = (best.sum() / weight.double().square().sum()).sqrt()
    assert 0.105 < relative < 0.118 < (floor.sum() / weight.double().square().sum()).sqrt() + 0.004


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(bad: float) -> None:
    weight = torch.ones(2, 32)
    weight[1, 7] = bad
    with pytest.raises(UserError, match="NaN or infinite"):
        quantise(weight)


def test_fake_quantisation_stores_what_the_exporter_stores_and_passes_gradients() -> None:
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(7)).bfloat16().requires_grad_()
    out = fake_quantise(weight)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, dequantise(*quantise(weight)))
    upstream = torch.randn(3, 64, generator=torch.Generator().manual_seed(8)).bfloat16()
    out.backward(upstream)
    assert weight.grad is not None
    assert torch.equal(weight.grad, upstream)


# Gate and attention


def test_the_gate_gradient_is_that_of_autograd() -> None:
    generator, alpha, limit = torch.Generator().manual_seed(0), 1.702, 7.0
    h = torch.randn(5, 66, generator=generator, dtype=torch.float64) * 5
    h[0, :8] = torch.tensor([limit, limit, -limit, -limit, 90.0, -90.0, -1e30, 1e30])
    grad, factors = torch.randn(5, 33, generator=generator).double(), torch.rand(5, generator=generator).double()
    wide, factors_wide = h.clone().requires_grad_(), factors.clone().requires_grad_()
    (gate(wide, alpha, limit) * grad * factors_wide[:, None]).sum().backward()
    out, dh, dots = gate_backward(h, grad, factors, alpha, limit)
    torch.testing.assert_close(out, gate(h, alpha, limit))
    torch.testing.assert_close(dh, wide.grad)
    torch.testing.assert_close(dots, factors_wide.grad)


@pytest.mark.parametrize(("causal", "window"), [(False, None), (True, None), (True, 3)])
def test_rows_of_different_lengths_are_the_definition(causal: bool, window: int | None) -> None:
    """The judge is one dense softmax per row, with autograd."""
    generator = torch.Generator().manual_seed(2)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    keys = [4, 5] if causal else [2, 7]
    q, k, v = random(9, 4, 8), random(9, 2, 8), random(9, 2, 8)
    rows, how = VarlenRows.of([4, 5], keys, "cpu"), {"causal": causal, "window": window, "scale": 0.3}
    out, lse = varlen_forward(q, k, v, rows, **how)  # type: ignore[arg-type]
    truth, true_lse = [], []
    for own, seen in ((slice(0, 4), slice(0, keys[0])), (slice(4, 9), slice(keys[0], 9))):
        wide_k, wide_v = (x[seen].repeat_interleave(2, 1) for x in (k, v))
        distance = torch.arange(own.stop - own.start)[:, None] - torch.arange(seen.stop - seen.start)
        logits = torch.einsum("qhd,chd->hqc", q[own], wide_k) * 0.3
        if causal:
            logits = logits.masked_fill((distance < 0) | (distance >= (window or 9)), -torch.inf)
        true_lse.append(logits.logsumexp(-1))
        truth.append(torch.einsum("hqc,chd->qhd", logits.softmax(-1), wide_v))
    torch.testing.assert_close(out, torch.cat(truth))
    torch.testing.assert_close(lse, torch.cat(true_lse, 1))
    grad = torch.randn(9, 4, 8, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        grads = varlen_backward(grad, q, k, v, out, lse, rows, **how)  # type: ignore[arg-type]
    for mine, other in zip(grads, torch.autograd.grad(torch.cat(truth), (q, k, v), grad), strict=True):
        torch.testing.assert_close(mine, other)
