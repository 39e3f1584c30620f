"""The kernels of a CPU beside the operations that they replace. Each figure is the median of nine measurements.

The matrix has the size of an expert (5,760 x 2,880).

* Dequantisation, in weights per second: plain torch and the C library.
* Products x W^T and x W with bfloat16 rows, in operations per second. The fused kernel runs beside dequantisation
  followed by torch's product, and beside torch's product with bfloat16 weights.
* Products of one float32 row per second: fused, and dequantisation followed by torch's product.
* The gate and its gradient, in rows per second, beside plain torch.
* Attention with gpt-oss's heads, in operations per second, beside torch's kernel. It runs on rows and on a tree, with
  and without the sliding window. Only pairs of positions that attend to each other count.
* The thin products of LoRA per second, with a fixed number of rows and with a new number of rows each time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from ossia.kernels.cpu import library, paths
from ossia.kernels.dispatch import dequantise_to_scratch, gate, gate_backward, narrow, outer, product
from ossia.kernels.reference import Packed
from ossia.kernels.reference import gate as reference_gate
from ossia.kernels.reference import lowrank as reference_lowrank
from ossia.kernels.reference.mxfp4 import dequantise
from ossia.kernels.reference.product import dense_product
from ossia.model.attention import attend
from ossia.model.batch import Segments

OUTPUTS, INPUTS = 5760, 2880
ROWS = (1, 4, 32, 128, 512)
REPEATS = 9
HEADS, KEY_HEADS = 64, 8
FORESTS = {
    "rows of 512": [(512, -1)] * 2,
    "a row of 2,048": [(2048, -1)],
    "64 branches of 16 on a trunk of 1,024": [(1024, -1)] + [(16, 0)] * 64,
}
"""For each segment, its number of tokens and the index of the segment that it follows (-1: none)."""


def run(cuda: bool) -> dict[str, object]:
    """Return rates per second. The rates of the C library are missing where it is not built."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(256, (OUTPUTS, INPUTS // 32, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(118, 125, blocks.shape[:2], generator=generator, dtype=torch.uint8)
    matrix, weights = Packed(blocks, scales), OUTPUTS * INPUTS
    dense = dequantise(blocks, scales)
    native = library.native()
    rates = {"plain torch": weights / _seconds(lambda: dequantise(blocks, scales))}
    if native.library is not None:
        rates["C library"] = weights / _seconds(lambda: dequantise_to_scratch(blocks, scales, torch.bfloat16))
    products = {str(rows): _products(rows, matrix, dense, generator) for rows in ROWS}
    x = torch.randn(1, INPUTS, generator=generator)
    decoding = {"dequantise, torch": 1 / _seconds(lambda: _dequantised_product(x, matrix, True))}
    if native.library is not None:
        decoding["fused"] = 1 / _seconds(lambda: product(x, matrix, True))
    return {
        "unit": "per second",
        "threads": torch.get_num_threads(),
        "library": native.reason,
        "dequantised weights, bfloat16": _rounded(rates),
        "operations of products by rows, bfloat16": products,
        "products of one float32 row": _rounded(decoding),
        "rows through the gate": _gates(generator),
        "operations of attention": {name: _attention(forest) for name, forest in FORESTS.items()},
        "thin products of rank 16": _thin(generator),
    }


def _products(rows: int, matrix: Packed, dense: torch.Tensor, generator: torch.Generator) -> dict[str, float]:
    x, g = (torch.randn(rows, n, generator=generator).bfloat16() for n in (INPUTS, OUTPUTS))
    work: dict[str, Callable[[], object]] = {
        "x W^T: bfloat16 weights, torch": lambda: x @ dense.T,
        "x W^T: dequantise, torch": lambda: _dequantised_product(x, matrix, True),
        "x W: bfloat16 weights, torch": lambda: g @ dense,
        "x W: dequantise, torch": lambda: _dequantised_product(g, matrix, False),
    }
    if library.native().has_product:
        work |= {
            "x W^T: fused": lambda: product(x, matrix, True),
            "x W: fused": lambda: product(g, matrix, False),
        }
    return _rounded({name: 2 * rows * OUTPUTS * INPUTS / _seconds(do) for name, do in work.items()})


def _dequantised_product(x: torch.Tensor, matrix: Packed, transposed: bool) -> object:
    return dense_product(x, dequantise_to_scratch(*matrix, x.dtype), transposed)


def _gates(generator: torch.Generator) -> dict[str, float]:
    rows, settings = 128, (1.702, 7.0)
    h, grad = (torch.randn(rows, n, generator=generator).bfloat16() for n in (5760, 2880))
    factors = torch.rand(rows, generator=generator)
    work: dict[str, Callable[[], object]] = {
        "forward": lambda: gate(h, *settings),
        "forward, plain torch": lambda: reference_gate.gate(h, *settings),
        "backward": lambda: gate_backward(h.clone(), grad, factors, *settings),
        "backward, plain torch": lambda: reference_gate.gate_backward(h, grad, factors, *settings),
    }
    return _rounded({name: rows / _seconds(do) for name, do in work.items()})


def _attention(forest: list[tuple[int, int]]) -> dict[str, float]:
    """Return the rates of full and windowed attention, forward and backward, in operations per second."""
    ranges: list[tuple[int, int]] = []
    for length, _ in forest:
        start = ranges[-1][1] if ranges else 0
        ranges.append((start, start + length))
    ancestors = tuple((ranges[parent],) if parent >= 0 else () for _, parent in forest)
    T = ranges[-1][1]
    segments = Segments(tuple(ranges), ancestors, torch.zeros(T, dtype=torch.int64))
    q, k, v = (torch.randn(n, T, 64).bfloat16().requires_grad_() for n in (HEADS, KEY_HEADS, KEY_HEADS))
    sinks, grad = torch.zeros(HEADS), torch.randn(T, HEADS, 64).bfloat16()
    rates = {}
    own, served = paths.serves, paths.serves(q.device, q.dtype, 64, HEADS // KEY_HEADS)
    for window in (None, 128):
        places = [ranges[parent][1] - ranges[parent][0] if parent >= 0 else 0 for _, parent in forest]
        seen = sum(
            min(before + n + 1, window or T)
            for before, (length, _) in zip(places, forest, strict=True)
            for n in range(length)
        )
        for name in ("along paths", "torch") if served else ("torch",):
            try:
                paths.serves = own if name == "along paths" else lambda *_: False

                def both(window: int | None = window) -> object:
                    out = attend(q, k, v, sinks, segments, scale=0.125, window=window)
                    return torch.autograd.grad(out, (q, k, v), grad)

                # Two products forward and five backward, with two operations (multiply, add) each.
                rates[f"{'full' if window is None else 'windowed'}, {name}"] = 14 * seen * HEADS * 64 / _seconds(both)
            finally:
                paths.serves = own
    return _rounded(rates)


def _thin(generator: torch.Generator) -> dict[str, float]:
    """Return the rates of x A^T for a layer's input x, together with the gradient of A."""
    rows, new = 128, iter(range(300, 10_000))
    x, low = (torch.randn(10_000, n, generator=generator).bfloat16() for n in (INPUTS, 16))
    a = torch.randn(16, INPUTS, generator=generator).bfloat16()

    def both(down: Callable[..., object], gradient: Callable[..., object], count: int) -> None:
        down(x[:count], a, True, 1.0)
        gradient(low[:count], x[:count], False)

    work: dict[str, Callable[[], object]] = {
        "128 rows": lambda: both(narrow, outer, rows),
        "128 rows, plain torch": lambda: both(reference_lowrank.narrow, reference_lowrank.outer, rows),
        "about 300 rows, a new number each time": lambda: both(narrow, outer, next(new)),
        "about 300 rows, a new number each time, plain torch": lambda: both(
            reference_lowrank.narrow, reference_lowrank.outer, next(new)
        ),
    }
    return _rounded({name: 1 / _seconds(do) for name, do in work.items()})


def _seconds(do: Callable[[], object]) -> float:
    do()
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        do()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _rounded(rates: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{rate:.4g}") for name, rate in rates.items()}
