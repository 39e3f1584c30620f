"""MXFP4, the four-bit format of the published models, in plain torch.

Source: OCP Microscaling Formats (MX) specification 1.0. The weights of a row are divided into groups of 32. Each
weight is an E2M1 code. Bit 3 is its sign, and bits 0 to 2 are an index into 0, 0.5, 1, 1.5, 2, 3, 4, 6. Each group has
one scale byte s, which means 2^(s - 127), or NaN if s = 255. In gpt-oss the low half of byte j holds code 2j, and the
high half holds code 2j + 1.

Legend: rows are outputs, columns are inputs, G = columns / 32 groups, `...` are any leading axes, usually experts.

* blocks: uint8 [..., rows, G, 16]
* scales: uint8 [..., rows, G]
* values: [..., rows, columns]; transformers transposes the last two axes, but its bytes are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from ossia.errors import UserError
from ossia.kernels.reference import GROUP_SIZE

Rule = Literal["best", "floor", "keep"]

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
BIAS = 127
NAN_SCALE = 255
# Number of groups that are processed at a time. On a CPU the temporaries (2 MB each in float32) stay in cache, which is
# five times faster than in memory. On a GPU the number is large enough to keep it busy.
_CHUNK_CPU, _CHUNK_GPU = 1 << 14, 1 << 18
_FEW_SCALES = 24
"""Number of consecutive scale bytes in the table of scaled pairs, which then fits in the level-1 cache."""


def nan_scales(scales: Tensor) -> int:
    """Return how many scale bytes are 255, the format's NaN. Such weights give NaN for every token that uses them."""
    if not scales.numel() or int(scales.max()) < NAN_SCALE:  # one pass at memory speed; the 20b has 600 MB of scales
        return 0
    return int((scales == NAN_SCALE).sum())


def dequantise(blocks: Tensor, scales: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return the values of packed weights: uint8 [..., rows, G, 16] and [..., rows, G] to `dtype` [..., rows, 32 * G].

    The values are exact in bfloat16, float32 and float64. A code has one mantissa bit, which fits in each of them. So
    does 2^(s - 127), as a subnormal at s = 0. Values of 2^128 and more become infinite, as in transformers. A group
    with s = 255 is NaN. In float16 the values are rounded from float32.
    """
    assert blocks.shape == (*scales.shape, GROUP_SIZE // 2), (blocks.shape, scales.shape)
    if dtype == torch.float16:
        return dequantise(blocks, scales, torch.float32).to(dtype)
    blocks_nb, scales_n = blocks.reshape(-1, GROUP_SIZE // 2), scales.reshape(-1)
    out_nw = torch.empty(len(scales_n), GROUP_SIZE, dtype=dtype, device=blocks.device)
    pairs = _pairs(dtype, blocks.device)
    if len(scales_n) and pairs.dtype != dtype and blocks.device.type == "cpu":
        lowest, highest = int(scales_n.min()), int(scales_n.max())
        if highest - lowest < _FEW_SCALES:
            _look_up(blocks_nb, scales_n, lowest, _scaled_pairs(dtype, lowest), out_nw)
            return out_nw.view(*scales.shape[:-1], scales.shape[-1] * GROUP_SIZE)
    powers = _powers(dtype, blocks.device)
    for part in _chunks(scales_n):
        values = out_nw[part]
        words = values.view(-1, *pairs.shape[1:]) if pairs.dtype == dtype else values.view(-1).view(pairs.dtype)
        torch.index_select(pairs, 0, blocks_nb[part].reshape(-1).int(), out=words)
        values.mul_(powers.index_select(0, scales_n[part].int())[:, None])
    return out_nw.view(*scales.shape[:-1], scales.shape[-1] * GROUP_SIZE)


def _look_up(blocks_nb: Tensor, scales_n: Tensor, lowest: int, table: Tensor, out_nw: Tensor) -> None:
    """Write the values of packed weights to `out_nw`, by a look-up of each byte and its scale in `table`."""
    for part in _chunks(scales_n):
        offset = (scales_n[part, None].int() - lowest) * 256
        words = out_nw[part].view(-1).view(table.dtype)
        torch.index_select(table, 0, (offset + blocks_nb[part]).view(-1), out=words)


def quantise(weight: Tensor, rule: Rule = "best", base_scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Pack weights [..., rows, columns] into (blocks uint8 [..., rows, G, 16], scales uint8 [..., rows, G]).

    Elements are rounded to nearest, ties to even, and saturate at 6 (OCP MX 1.0, section 6.3). `rule` determines the
    scale of a group:

    * "floor": 2^(floor(log2 of the largest magnitude) - 2), as in the specification's example and in llama.cpp.
    * "best": the scale with the least squared error. The candidates are the "floor" scale, its half, its double and,
      if given, the one in `base_scales`. On a tie `base_scales` wins, so that weights already on its lattice keep
      their bytes.
    * "keep": `base_scales` unchanged.

    Packing dequantised weights gives the same values back. Under "keep" the scales are the same, too. `base_scales`
    must not contain NaN (`nan_scales`).

    Raises:
        UserError: the weights contain NaN or infinite values.
    """
    columns = weight.shape[-1]
    assert columns % GROUP_SIZE == 0, f"{columns} columns are not a multiple of {GROUP_SIZE}"
    assert rule != "keep" or base_scales is not None, "rule 'keep' needs base_scales"
    assert rule != "floor" or base_scales is None, "rule 'floor' takes no base_scales"
    weight_nw = weight.detach().reshape(-1, GROUP_SIZE)
    base_n = None if base_scales is None else base_scales.reshape(-1)
    scales_n = torch.empty(len(weight_nw), dtype=torch.uint8, device=weight.device)
    blocks_nb = torch.empty(len(weight_nw), GROUP_SIZE // 2, dtype=torch.uint8, device=weight.device)
    for part in _chunks(scales_n):
        values = weight_nw[part].float()
        base = None if base_n is None else base_n[part].int() - BIAS
        exponent = _floor_exponent(values)
        if rule == "best":
            exponent = _best_exponent(values, exponent, base)
        elif base is not None:
            exponent = base
        code = _encode(values, exponent)
        blocks_nb[part] = code[:, 0::2] | (code[:, 1::2] << 4)
        scales_n[part] = (exponent + BIAS).to(torch.uint8)
    groups = (*weight.shape[:-1], columns // GROUP_SIZE)
    return blocks_nb.view(*groups, GROUP_SIZE // 2), scales_n.view(groups)


def fake_quantise(weight: Tensor, rule: Rule = "best", base_scales: Tensor | None = None) -> Tensor:
    """Return the values that `quantise` would store, in weight's dtype and shape; gradients pass straight through.

    A model that is trained with this function loses nothing when `quantise` packs it by the same rule.
    """
    result: Tensor = _StraightThrough.apply(weight, rule, base_scales)
    return result


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, weight: Tensor, rule: Rule, base_scales: Tensor | None) -> Tensor:
        blocks, scales = quantise(weight, rule, base_scales)
        return dequantise(blocks, scales, weight.dtype).view(weight.shape)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return gradient, None, None


def _chunks(groups_n: Tensor) -> Iterator[slice]:
    size = _CHUNK_CPU if groups_n.device.type == "cpu" else _CHUNK_GPU
    return (slice(at, at + size) for at in range(0, len(groups_n), size))


@lru_cache(maxsize=16)
def _pairs(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the two values in each byte, low half first, at scale one: [256] words, each a pair of `dtype`.

    Dtypes of eight bytes have no such word and give [256, 2] values.
    """
    codes = torch.tensor([*MAGNITUDES, *(-value for value in MAGNITUDES)], dtype=dtype)
    byte = torch.arange(256)
    pairs = torch.stack([codes[byte & 15], codes[byte >> 4]], dim=1)
    word = {2: torch.int32, 4: torch.int64}.get(dtype.itemsize)
    return (pairs if word is None else pairs.view(word).view(-1)).to(device)


@lru_cache(maxsize=16)
def _scaled_pairs(dtype: torch.dtype, lowest: int) -> Tensor:
    """Return the two values in each byte, under each scale byte from `lowest` on: [_FEW_SCALES * 256] words."""
    bytes_s = torch.arange(lowest, lowest + _FEW_SCALES).clamp(max=NAN_SCALE)
    powers_s = _powers(dtype, torch.device("cpu"))[bytes_s]
    pairs = _pairs(dtype, torch.device("cpu"))
    values_s512 = pairs.view(dtype).view(1, -1) * powers_s[:, None]
    return values_s512.view(-1).view(pairs.dtype)


@lru_cache(maxsize=16)
def _powers(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return 2^(s - 127) for each scale byte s, [256], and NaN for 255. Every power is exact as a Python float."""
    powers = [2.0 ** (byte - BIAS) for byte in range(NAN_SCALE)]
    return torch.tensor([*powers, float("nan")], dtype=dtype).to(device)


def _floor_exponent(values_nw: Tensor) -> Tensor:
    """Return floor(log2 of each row's largest magnitude) - 2, int32 [n]; -127 for a row of zeros.

    Divided by two to this power, the largest magnitude lies between 4 and 8. Raises UserError for non-finite values.
    """
    largest_n = values_nw.abs().amax(dim=1)
    if not bool(torch.isfinite(largest_n).all()):
        raise UserError("the weights hold NaN or infinite values and cannot be quantised")
    exponent_n = torch.frexp(largest_n).exponent - 3
    return exponent_n.masked_fill_(largest_n == 0, -BIAS).clamp_(min=-BIAS)


def _power(exponent_n: Tensor) -> Tensor:
    """Return 2^exponent, float32 [n, 1], for exponents from -127 to 127.

    The powers come from a table, because `ldexp` is slow: it calls `pow`.
    """
    return _powers(torch.float32, exponent_n.device).index_select(0, exponent_n + BIAS)[:, None]


def _round(size_nw: Tensor) -> Tensor:
    """Return magnitudes from 0 to 8 rounded to the nearest of 0, 0.5, 1, 1.5, 2, 3, 4 and 6; ties go to even codes.

    The step is half of the power of two at or below the magnitude, and at least 0.5. Adding 2^23 steps makes the
    floating-point unit round to whole steps, ties to even. Subtracting them again is exact.
    """
    power = (size_nw.view(torch.int32) & 0x7F80_0000).view(torch.float32)
    offset = power.clamp_(min=1.0).mul_(2.0**22)
    return (size_nw + offset).sub_(offset).clamp_(max=MAGNITUDES[-1])


def _encode(values_nw: Tensor, exponent_n: Tensor) -> Tensor:
    """Return the codes of values / 2^exponent, uint8 [n, 32]."""
    size = _round((values_nw.abs() * _power(-exponent_n)).clamp_(max=8.0))
    # The magnitudes are evenly spaced in 0..2, 2..4 and 4..6, so the index is the minimum of three linear functions.
    index = torch.minimum(torch.minimum(2 * size, size + 2), size / 2 + 4)
    return index.to(torch.uint8) | (torch.signbit(values_nw).to(torch.uint8) << 3)


def _best_exponent(values_nw: Tensor, floor_n: Tensor, base_n: Tensor | None) -> Tensor:
    """Return the exponent with the least squared error, int32 [n]: the base's, the floor rule's or a neighbour of it.

    On a tie, the first in this order wins.
    """
    size_nw = values_nw.abs() * _power(-floor_n)
    best_n, least_n = floor_n, torch.full(floor_n.shape, float("inf"), device=floor_n.device)
    candidates = [floor_n, (floor_n - 1).clamp_(min=-BIAS), floor_n + 1]
    for exponent_n in candidates if base_n is None else [base_n, *candidates]:
        # Beyond 2^50 either way every weight saturates or vanishes, and the squares below would not fit in float32.
        shift_n = (exponent_n - floor_n).clamp_(-50, 50)
        scaled_nw = size_nw * _power(-shift_n)
        rest_nw = scaled_nw.sub(_round(scaled_nw.clamp(max=8.0)))
        error_n = rest_nw.square_().sum(dim=1) * _power(2 * shift_n)[:, 0]
        better_n = error_n < least_n
        best_n = torch.where(better_n, exponent_n, best_n)
        least_n = torch.where(better_n, error_n, least_n)
    return best_n
