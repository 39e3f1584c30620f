"""The speed of this machine, measured in a second or two with the code that training runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ossia import hardware
from ossia.checkpoint.layout import Shape
from ossia.kernels.reference import GROUP_SIZE, LowRank

REPEATS = 3
FEW, MANY = 16, 128
"""Tokens of the expert in two measurements, which give its fixed cost (unpacking) and its cost per token."""
LENGTH = 512
"""Tokens of the sequence that attention is measured on."""
THINNER = 8
"""Divisor of the measured expert's intermediate size. With it a plan takes one second instead of ten."""

RANK = 8
"""LoRA rank of the measured expert."""
FLOPS_SECONDS = 0.3
"""Seconds during which matrix products are repeated to find the fastest."""
BUSY = 0.5
"""Load per core above which the note of a measurement mentions other programs."""


@dataclass(frozen=True)
class Speed:
    """Measured speeds. All but `flops` are seconds."""

    flops: float
    """Floating-point operations per second of a large matrix product in the compute type."""
    expert_forward: float
    """Fixed cost of one expert in a forward pass, mostly for unpacking its weights."""
    expert_backward: float
    token_forward: float
    """Cost of each token of an expert in a forward pass."""
    token_backward: float
    score_forward: float
    """Cost of one attention score in a forward pass."""
    score_backward: float
    note: str
    """The conditions of the measurement in words, such as other programs that ran."""


def measure(shape: Shape, device: str, dtype: str) -> Speed:
    """Return the measured speeds of this machine. Loads torch.

    It times one narrow expert with LoRA at two numbers of tokens, attention over one sequence, and a matrix product.

    Args:
        device: cpu or cuda.
        dtype: the compute type, bfloat16 or float32.
    """
    import torch

    bench = _Bench(device, getattr(torch, dtype), torch.Generator().manual_seed(0))
    few, many = bench.expert(shape, FEW), bench.expert(shape, MANY)
    # On a busy machine the measurement with fewer tokens can take longer. A cost is never negative.
    per_token = [max(0.0, (b - a) / (MANY - FEW)) for a, b in zip(few, many, strict=True)]
    fixed = [max(0.0, a - FEW * s) for a, s in zip(few, per_token, strict=True)]
    score = bench.attention(shape)
    return Speed(
        flops=bench.flops(shape),
        expert_forward=fixed[0],
        expert_backward=fixed[1],
        token_forward=per_token[0],
        token_backward=per_token[1],
        score_forward=score[0],
        score_backward=score[1],
        note=_note(device),
    )


def matmul(shape: Shape, device: str, dtype: str) -> float:
    """Return the operations per second of a large matrix product, as in `Speed.flops`. Loads torch."""
    import torch

    return _Bench(device, getattr(torch, dtype), torch.Generator().manual_seed(0)).flops(shape)


@dataclass(frozen=True)
class _Bench:
    device: str
    dtype: Any
    generator: Any

    def expert(self, shape: Shape, count: int) -> tuple[float, float]:
        """Return the seconds of one expert's forward and backward pass with `count` tokens."""
        import torch

        from ossia.model.experts import PackedExperts

        inner = max(GROUP_SIZE, shape.intermediate // THINNER // GROUP_SIZE * GROUP_SIZE)
        config = SimpleNamespace(
            num_local_experts=1,
            hidden_size=shape.hidden,
            intermediate_size=inner,
            swiglu_limit=shape.swiglu_limit,
        )
        experts = PackedExperts(config)
        for name, parameter in experts.named_parameters():
            if name.endswith("blocks"):
                parameter.data = torch.randint(0, 256, parameter.shape, dtype=torch.uint8, generator=self.generator)
            elif name.endswith("scales"):
                parameter.data.fill_(120)
        experts = experts.to(self.device)

        def update(inputs: int, outputs: int) -> LowRank:
            a, b = torch.zeros(1, RANK, inputs), torch.zeros(1, outputs, RANK)
            return LowRank(a.to(self.device).requires_grad_(), b.to(self.device).requires_grad_(), 1.0)

        gate_up, down = update(shape.hidden, 2 * inner), update(inner, shape.hidden)
        x = self._random(count, shape.hidden)
        chosen = torch.zeros(count, 1, dtype=torch.int64, device=self.device)
        weights = torch.ones(count, 1, device=self.device, dtype=self.dtype)
        times = self._time(lambda: experts.run(x, chosen, weights, gate_up, down))
        scale = shape.intermediate / inner
        return times[0] * scale, times[1] * scale

    def attention(self, shape: Shape) -> tuple[float, float]:
        """Return the seconds per attention score, forward and backward.

        They are measured on one group of heads over one sequence of LENGTH tokens.
        """
        import torch

        from ossia.model.attention import attend
        from ossia.model.batch import Segments

        heads = shape.heads // shape.kv_heads
        q, k, v = (self._random(count, LENGTH, shape.head_dim) for count in (heads, 1, 1))
        sinks = torch.zeros(heads, device=self.device, dtype=self.dtype)
        row = Segments(((0, LENGTH),), ((),), torch.arange(LENGTH, device=self.device))
        times = self._time(lambda: attend(q, k, v, sinks, row, scale=shape.head_dim**-0.5, window=None))
        return times[0] / (heads * LENGTH**2), times[1] / (heads * LENGTH**2)

    def flops(self, shape: Shape) -> float:
        """Return the operations per second of a product [512, D] x [D, D].

        The matrix has the layout of the model's matrices, [out, in]. The fastest of many products counts, as in
        `_time`, because other programs on this machine would distort a mean.
        """
        x, w = self._random(512, shape.hidden).detach(), self._random(shape.hidden, shape.hidden).detach()
        times: list[float] = []
        began = time.perf_counter()
        while len(times) < 5 or time.perf_counter() - began < FLOPS_SECONDS:
            self._wait()
            start = time.perf_counter()
            x @ w.T
            self._wait()
            times.append(time.perf_counter() - start)
        return float(2 * len(x) * shape.hidden**2 / min(times))

    def _random(self, *size: int) -> Any:
        import torch

        return torch.randn(*size, generator=self.generator).to(self.device, self.dtype).requires_grad_()

    def _time(self, forward: Callable[[], Any]) -> tuple[float, float]:
        """Return the least seconds of a forward and of a backward pass, over REPEATS passes after one to warm up.

        The least is taken because other programs can only make a pass longer.
        """
        forwards, backwards = [], []
        for _ in range(1 + REPEATS):
            self._wait()
            start = time.perf_counter()
            y = forward()
            self._wait()
            middle = time.perf_counter()
            y.backward(y.detach())
            self._wait()
            forwards.append(middle - start)
            backwards.append(time.perf_counter() - middle)
        return min(forwards[1:]), min(backwards[1:])

    def _wait(self) -> None:
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()


def _note(device: str) -> str:
    note = f"measured just now on this machine ({device})"
    if device == "cpu" and hasattr(os, "getloadavg"):
        load, cores = os.getloadavg()[0], hardware.cores().value
        if load > BUSY * cores:
            note += (
                f", which was busy with other programs (load {load:.1f} on {cores} cores), so the speed may be too low"
            )
    return note
