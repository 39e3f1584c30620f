"""Kernels on a CPU, on one matrix of expert size (5,760 x 2,880), beside what they replace: medians of nine.

Dequantisation in weights per second; products x W^T and x W with bfloat16 rows in operations per second, fused and as
dequantisation with the C library followed by torch's product, beside torch's product with bfloat16 weights alone; the
gate and its gradient in rows per second beside plain torch.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from ossia.kernels import library
from ossia.kernels.gate import gate, gate_backward, plain_gate, plain_gate_backward
from ossia.kernels.mxfp4 import dequantised
from ossia.kernels.product import Packed, few, plain_product, product
from ossia.model.mxfp4 import dequantise

OUTPUTS, INPUTS = 5760, 2880
ROWS = (1, 4, 32, 128, 512)
REPEATS = 9


def run(cuda: bool) -> dict[str, object]:
    """Return rates; the C library's are missing where it is not built."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(256, (OUTPUTS, INPUTS // 32, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(118, 125, blocks.shape[:2], generator=generator, dtype=torch.uint8)
    matrix, weights = Packed(blocks, scales), OUTPUTS * INPUTS
    dense = dequantise(blocks, scales)
    native = library.native()
    rates = {"plain torch": weights / _seconds(lambda: dequantise(blocks, scales))}
    if native.library is not None:
        rates["C library"] = weights / _seconds(lambda: dequantised(blocks, scales, torch.bfloat16))
    products = {str(rows): _products(rows, matrix, dense, generator) for rows in ROWS}
    x = torch.randn(1, INPUTS, generator=generator)
    decoding = {"dequantise, torch": 1 / _seconds(lambda: plain_product(x, matrix, True))}
    if native.library is not None:
        decoding["fused"] = 1 / _seconds(lambda: few(x, matrix))
    return {
        "unit": "per second",
        "threads": torch.get_num_threads(),
        "library": native.reason,
        "dequantised weights, bfloat16": _rounded(rates),
        "operations of products by rows, bfloat16": products,
        "products of one float32 row": _rounded(decoding),
        "rows through the gate": _gates(generator),
    }


def _products(rows: int, matrix: Packed, dense: torch.Tensor, generator: torch.Generator) -> dict[str, float]:
    x, g = (torch.randn(rows, n, generator=generator).bfloat16() for n in (INPUTS, OUTPUTS))
    work: dict[str, Callable[[], object]] = {
        "x W^T: bfloat16 weights, torch": lambda: x @ dense.T,
        "x W^T: dequantise, torch": lambda: plain_product(x, matrix, True),
        "x W: bfloat16 weights, torch": lambda: g @ dense,
        "x W: dequantise, torch": lambda: plain_product(g, matrix, False),
    }
    if library.native().has_product:
        work |= {
            "x W^T: fused": lambda: product(x, matrix, True),
            "x W: fused": lambda: product(g, matrix, False),
        }
    return _rounded({name: 2 * rows * OUTPUTS * INPUTS / _seconds(do) for name, do in work.items()})


def _gates(generator: torch.Generator) -> dict[str, float]:
    rows, settings = 128, (1.702, 7.0)
    h, grad = (torch.randn(rows, n, generator=generator).bfloat16() for n in (5760, 2880))
    factors = torch.rand(rows, generator=generator)
    work: dict[str, Callable[[], object]] = {
        "forward": lambda: gate(h, *settings),
        "forward, plain torch": lambda: plain_gate(h, *settings),
        "backward": lambda: gate_backward(h.clone(), grad, factors, *settings),
        "backward, plain torch": lambda: plain_gate_backward(h, grad, factors, *settings),
    }
    return _rounded({name: rows / _seconds(do) for name, do in work.items()})


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
