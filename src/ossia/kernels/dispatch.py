"""The functions that the rest of Ossia calls. Each hands its work to a backend that supports its inputs.

`ossia.kernels.reference` documents the functions, and computes them where no other backend supports the inputs. A
backend whose import is expensive must be imported in the function that detects its device.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ossia.kernels.cpu import attention as cpu_attention
from ossia.kernels.cpu import gate as cpu_gate
from ossia.kernels.cpu import lowrank as cpu_lowrank
from ossia.kernels.cpu import mxfp4 as cpu_mxfp4
from ossia.kernels.cpu import paths as cpu_paths
from ossia.kernels.cpu import product as cpu_product
from ossia.kernels.cpu.library import native
from ossia.kernels.cuda import flash
from ossia.kernels.reference import Into, Packed, Update
from ossia.kernels.reference import attention as reference_attention
from ossia.kernels.reference import gate as reference_gate
from ossia.kernels.reference import lowrank as reference_lowrank
from ossia.kernels.reference import mxfp4 as reference_mxfp4
from ossia.kernels.reference import product as reference_product

# Experts


def dequantise(blocks: Tensor, scales: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return the values of packed weights, [..., rows, 32 * G] in `dtype`; see `reference.mxfp4.dequantise`."""
    if cpu_mxfp4.serves(blocks.device, dtype):
        return cpu_mxfp4.dequantise(blocks, scales, dtype)
    return reference_mxfp4.dequantise(blocks, scales, dtype)


def dequantise_to_scratch(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the values as `dequantise` does, possibly in memory that the next call overwrites."""
    if cpu_mxfp4.serves(blocks.device, dtype):
        return cpu_mxfp4.dequantise_to_scratch(blocks, scales, dtype)
    return reference_mxfp4.dequantise(blocks, scales, dtype)


def product(
    x: Tensor,
    matrix: Packed,
    transposed: bool,
    *,
    bias: Tensor | None = None,
    update: Update | None = None,
    into: Into | None = None,
) -> Tensor | None:
    """Return x W^T + bias + update or x W + update, or add it to `into`; see `reference.product.product`."""
    if cpu_product.serves(x, transposed):
        return cpu_product.product(x, matrix, transposed, bias=bias, update=update, into=into)
    w_OI = dequantise_to_scratch(*matrix, x.dtype)
    return reference_product.dense_product(x, w_OI, transposed, bias=bias, update=update, into=into)


def gate(h_N2F: Tensor, alpha: float, limit: float) -> Tensor:
    """Return gpt-oss's SwiGLU, [N, F]; see `reference.gate.gate`. Not differentiable."""
    if cpu_gate.serves(h_N2F):
        return cpu_gate.gate(h_N2F, alpha, limit)
    return reference_gate.gate(h_N2F, alpha, limit)


def gate_backward(
    h_N2F: Tensor, grad_NF: Tensor, factors_N: Tensor, alpha: float, limit: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gate's output and two gradients; see `reference.gate.gate_backward`. `h_N2F` may be overwritten."""
    if cpu_gate.serves(h_N2F):
        return cpu_gate.gate_backward(h_N2F, grad_NF, factors_N, alpha, limit)
    return reference_gate.gate_backward(h_N2F, grad_NF, factors_N, alpha, limit)


# LoRA


def narrow(x_ND: Tensor, w: Tensor, transposed: bool, scale: float) -> Tensor:
    """Return scale * x w, [N, R]; see `reference.lowrank.narrow`."""
    if cpu_lowrank.serves_narrow(x_ND, w):
        return cpu_lowrank.narrow(x_ND, w, transposed, scale)
    return reference_lowrank.narrow(x_ND, w, transposed, scale)


def outer(a_NR: Tensor, b_NW: Tensor, transposed: bool) -> Tensor:
    """Return a^T b, [R, W], or its transpose, in float32 or the inputs' dtype; see `reference.lowrank.outer`."""
    if cpu_lowrank.serves_outer(a_NR, b_NW):
        return cpu_lowrank.outer(a_NR, b_NW, transposed)
    return reference_lowrank.outer(a_NR, b_NW, transposed)


# Attention

Form = Literal["varlen", "paths", "dense"]
"""The form in which a forest of segments reaches the kernels.

* varlen: rows of different lengths laid end to end (`varlen_forward`, `varlen_backward`).
* paths: the forest itself, all segments in one call (`paths_forward`, `paths_backward`).
* dense: batches of rows of one length, with a mask (`dense_forward`, `dense_backward`). Every device supports it.
"""


def attention_form(device: torch.device, dtype: torch.dtype, head_dim: int, group: int = 1) -> Form:
    """Return the preferred form among those that support these inputs. `group`: query heads per key head."""
    if flash.serves(device, dtype, head_dim):
        return "varlen"
    if cpu_paths.serves(device, dtype, head_dim, group):
        return "paths"
    return "dense"


def attention_described(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Return a sentence for users: the form of attention in training, and the reason for it."""
    name, form = str(dtype).removeprefix("torch."), attention_form(device, dtype, head_dim)
    if form == "varlen":
        return f"attention goes through torch's flash kernels, all branches at once ({name} on {device})"
    if device.type != "cpu":
        needs = "bfloat16 or float16 and compute capability 8.0"
        return f"attention is plain torch in chunks of queries ({name} on {device}; torch's flash kernels need {needs})"
    if form == "paths":
        return f"attention follows paths in C, all branches at once ({name}, {native().reason})"
    needs = f"bfloat16, heads of {cpu_paths.HEAD_DIM} and AVX-512 BF16"
    here = f"{name}, heads of {head_dim}, {native().reason}"
    return f"attention goes through torch's CPU kernel, a branch at a time (the one in C needs {needs}; here: {here})"


def dense_forward(
    q_BHQD: Tensor, k_BKCD: Tensor, v_BKCD: Tensor, seen: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Return (output [B, H, Q, D], log-sum-exp [B, H, Q]); see `reference.attention.dense_forward`."""
    if cpu_attention.serves(q_BHQD.device):
        return cpu_attention.dense_forward(q_BHQD, k_BKCD, v_BKCD, seen, causal, scale)
    return reference_attention.dense_forward(q_BHQD, k_BKCD, v_BKCD, seen, causal, scale)


def dense_backward(
    grad_BHQD: Tensor,
    q_BHQD: Tensor,
    k_BKCD: Tensor,
    v_BKCD: Tensor,
    out_BHQD: Tensor,
    lse_BHQ: Tensor,
    seen: Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v; see `reference.attention.dense_backward`."""
    if cpu_attention.serves(q_BHQD.device):
        return cpu_attention.dense_backward(grad_BHQD, q_BHQD, k_BKCD, v_BKCD, out_BHQD, lse_BHQ, seen, causal, scale)
    return reference_attention.dense_backward(grad_BHQD, q_BHQD, k_BKCD, v_BKCD, out_BHQD, lse_BHQ, seen, causal, scale)


# The forms varlen and paths have one backend each, so these names need no choice.

varlen_forward = flash.varlen_forward
varlen_backward = flash.varlen_backward
paths_forward = cpu_paths.paths_forward
paths_backward = cpu_paths.paths_backward
tokens_per_chunk = cpu_paths.tokens_per_chunk
