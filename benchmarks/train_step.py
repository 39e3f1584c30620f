"""A LoRA step on a slice of gpt-oss: Ossia on packed MXFP4 experts against transformers + PEFT on bf16 or fp32 ones.

Two layers, the same rows, LoRA on attention and every expert (rank 16 and 8), forward, backward and AdamW. The peer has
its default (grouped) experts and eager attention with full logits, as `target_parameters` is documented. On a CPU the
slice has a quarter of the real width; on a GPU the real one.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ossia.model import lora
from ossia.model.batch import from_rows
from ossia.model.layout import Shape
from ossia.model.load import load_model
from ossia.model.tiny import write_tiny

ROWS, LENGTH = 4, 256
STEPS = 7


def run(cuda: bool) -> dict[str, object]:
    """Return median tokens per second of both, their losses of the first step, and peak memory on a GPU."""
    device, dtype = ("cuda", "bfloat16") if cuda else ("cpu", "float32")
    width = 2880 if cuda else 736
    shape = Shape(layers=2, hidden=width, intermediate=width, experts=32, vocabulary=16_768)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(shape.vocabulary, (ROWS, LENGTH), generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        path = write_tiny(Path(folder) / "slice", shape)
        results = {
            "ossia": _measure(lambda: _ossia(path, ids, dtype, device), device),
            "transformers+peft": _measure(lambda: _peer(path, ids, dtype, device), device),
        }
    ratio = results["ossia"]["tokens_per_second"] / results["transformers+peft"]["tokens_per_second"]
    details = {"device": device, "dtype": dtype, "hidden": width, "layers": 2, "experts": 32, "tokens": ROWS * LENGTH}
    return {"unit": "tokens per second", **details, **results, "ratio": round(ratio, 3)}


def _ossia(path: Path, ids: torch.Tensor, dtype: str, device: str) -> tuple[Any, Callable[[], torch.Tensor]]:
    model = lora.attach(load_model(path, dtype=dtype, device=device), rank=16, expert_rank=8)
    rows = [(row, [0.0] + [1.0] * (LENGTH - 1)) for row in ids.tolist()]
    inputs = {name: value.to(device) for name, value in from_rows(rows).inputs().items()}
    return model.train(), lambda: model(**inputs).loss


def _peer(path: Path, ids: torch.Tensor, dtype: str, device: str) -> tuple[Any, Callable[[], torch.Tensor]]:
    from peft import LoraConfig, get_peft_model
    from transformers import GptOssForCausalLM

    base = GptOssForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype), attn_implementation="eager").to(device)
    pattern = {"gate_up_proj": 8, "down_proj": 8}
    attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
    experts = [f"mlp.experts.{name}" for name in pattern]
    config = LoraConfig(r=16, target_modules=attention, target_parameters=experts, rank_pattern=pattern)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base, config)
    batch = ids.to(device)
    return model.train(), lambda: model(input_ids=batch, labels=batch).loss


def _measure(build: Callable[[], tuple[Any, Callable[[], torch.Tensor]]], device: str) -> dict[str, float]:
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(0)
    model, loss = build()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    seconds, first = [], 0.0
    for step in range(STEPS + 2):
        began = time.perf_counter()
        value = loss()
        value.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        first = value.item() if step == 0 else first
    result = {
        "tokens_per_second": round(ROWS * LENGTH / statistics.median(seconds[2:]), 1),
        "first_loss": round(first, 5),
    }
    if device == "cuda":
        result["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
    return result
