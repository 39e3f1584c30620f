"""Tests of dense attention by torch's CPU kernel against the reference."""

from __future__ import annotations

import pytest
import torch

from ossia.kernels.cpu.attention import dense_backward, dense_forward
from ossia.kernels.reference import attention as reference

H, K, D = 4, 2, 8


@pytest.mark.parametrize("mode", ["all", "causal", "masked"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_fused_kernel_equals_its_plain_twin(mode: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output and the log-sum-exp may come from more keys than these. The reference runs in small chunks."""
    monkeypatch.setattr(reference, "CHUNK_SCORES", 3 * H * 11 * 4)
    generator = torch.Generator().manual_seed(5)
    Q, C = (11, 11) if mode == "causal" else (7, 11)
    q, grad = (torch.randn(3, H, Q, D, dtype=dtype, generator=generator) for _ in range(2))
    k, v = (torch.randn(3, K, C, D, dtype=dtype, generator=generator) for _ in range(2))
    seen = torch.rand(3, 1, Q, C, generator=generator) < 0.6 if mode == "masked" else None
    if seen is not None:
        seen[..., 0] = True
    arguments = (seen, mode == "causal", 0.3)
    bound = {"rtol": 0, "atol": 1e-12 if dtype == torch.float64 else 1e-5}
    fused, plain = dense_forward(q, k, v, *arguments), reference.dense_forward(q, k, v, *arguments)
    torch.testing.assert_close(fused, plain, **bound)
    out, lse = plain[0] * 0.7, plain[1] + 0.5
    torch.testing.assert_close(
        dense_backward(grad, q, k, v, out, lse, *arguments),
        reference.dense_backward(grad, q, k, v, out, lse, *arguments),
        **bound,
    )
