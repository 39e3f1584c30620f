"""Verification of a merged model: its bytes on disk, and its predictions.

* Bytes: the written folder is opened again and its tensors are compared with the layout. Each tensor's hash is compared
  with the hash that was taken while the tensor was made. For copied tensors that is the hash of the source's bytes.
* Predictions: the next-token distributions of the merged model are compared with those of the base with the adapter.
  Both are computed in float32 with the model code of training and serving.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ossia import hardware
from ossia.checkpoint import layout
from ossia.checkpoint.reader import CheckpointReader
from ossia.errors import OssiaError, UserError
from ossia.export import UnitsDone
from ossia.export.writers import WrittenTensors
from ossia.export.writers.safetensors import digest

_QUESTIONS = (
    "What is the capital of Australia?",
    "Write a haiku about rain.",
    "Explain in two sentences why the sky is blue.",
)
_PROMPT = "<|start|>user<|message|>{}<|end|><|start|>assistant<|channel|>analysis<|message|>"
#: Share of the memory that the comparison of logits may take.
_MEMORY_SHARE = 0.7
#: Bounds of the distance between the merged and the tuned model. The first is a share of the distance between the tuned
#: model and its base. The second is the effect of rounding a model to bfloat16, in nats. Exceeding both is a warning.
_SHARE_LOST, _ROUNDING_KL = 0.1, 1e-3


def check_bytes(folder: Path, written: WrittenTensors, *, packed: bool, advance: UnitsDone) -> dict[str, Any]:
    """Compare every tensor of an export with the bytes that were written, and return the counts for the report.

    Args:
        packed: whether the experts are in four bits.
        advance: called with the bytes of each tensor.

    Raises:
        OssiaError: a tensor is missing, or its shape or bytes differ from those that were written.
    """
    reader = CheckpointReader(folder)
    reader.check(mxfp4=packed)
    for name in reader.names():
        tensor = reader.get(name)
        if digest(tensor) != written.digests[name]:
            raise OssiaError(
                f"tensor {name} does not read back as it was written",
                where=str(folder),
                why="the disk or the memory of this machine is faulty",
                do="export again, to another disk",
            )
        advance(tensor.numel() * tensor.element_size())
    return {"tensors": len(reader.names()), "identical_to_source": len(written.copied)}


def compare_logits(base: Path, adapter: Path, folder: Path) -> dict[str, Any]:
    """Compare the predictions of the merged model with those of base + adapter on a few prompts.

    Args:
        base: folder of the base model.
        adapter: folder of the adapter.
        folder: folder of the merged model.

    Returns:
        These keys:

        * tokens: number of tokens of the prompts.
        * effect_kl: mean KL(tuned || base) per token in nats, the effect of tuning.
        * mean_kl, max_kl: KL(tuned || merged) per token in nats, the loss by the export.
        * top1: share of tokens with the same likeliest successor in both models.

        Or only `skipped` with the reason, if the comparison is not possible.
    """
    device = hardware.device().value
    reason = _too_large(base, folder, device)
    if reason:
        return {"skipped": reason}
    prompts = _prompts(folder, CheckpointReader(folder).shape().vocabulary)
    try:
        tuned, untuned = _tuned_and_base(base, adapter, prompts, device)
    except UserError as error:
        return {"skipped": f"the adapter cannot be loaded on the base model here: {error.what}"}
    from ossia.model.load import load_model

    model = load_model(folder, dtype="float32", device=device)
    merged = _log_probabilities(model, prompts, device)
    kl, effect = _kl(tuned, merged), _kl(tuned, untuned)
    return {
        "tokens": len(kl),
        "effect_kl": float(effect.mean()),
        "mean_kl": float(kl.mean()),
        "max_kl": float(kl.max()),
        "top1": float((tuned.argmax(-1) == merged.argmax(-1)).float().mean()),
    }


def warnings(logits: dict[str, Any]) -> list[str]:
    """Return a sentence if the merged model predicts other tokens than the tuned one.

    Args:
        logits: the result of `compare_logits`.
    """
    lost = logits.get("mean_kl", 0.0)
    if lost <= max(_ROUNDING_KL, _SHARE_LOST * logits.get("effect_kl", 0.0)):
        return []
    return [
        f"the merged model differs from the tuned one by {lost:.2g} nats per token. The tuning itself changed "
        f"the base by {logits['effect_kl']:.2g}"
    ]


def _tuned_and_base(base: Path, adapter: Path, prompts: list[Tensor], device: str) -> tuple[Tensor, Tensor]:
    from ossia.adapters.apply import load_adapter
    from ossia.model.load import load_model

    model = load_adapter(load_model(base, dtype="float32", device=device), adapter).eval()
    tuned = _log_probabilities(model, prompts, device)
    with model.disable_adapter():
        untuned = _log_probabilities(model, prompts, device)
    del model
    gc.collect()  # a PEFT model holds reference cycles, and the merged model needs the memory
    return tuned, untuned


def _log_probabilities(model: Any, prompts: list[Tensor], device: str) -> Tensor:
    """Return the log-probabilities of the next token, float32 [tokens of all prompts, vocabulary] on the CPU.

    All prompts are in one pass, because each pass dequantises every expert. They are padded on the right, which does
    not affect a causal model.
    """
    ids_BT = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True).to(device)
    with torch.no_grad():
        logits = model(input_ids=ids_BT, use_cache=False).logits
    rows = [logits[row, : len(ids)].float().cpu() for row, ids in enumerate(prompts)]
    return torch.cat(rows).log_softmax(-1)


def _kl(left: Tensor, right: Tensor) -> Tensor:
    """Return KL(left || right) of each row of log-probabilities. Rounding errors below zero are set to zero."""
    return (left.exp() * (left - right)).sum(-1).clamp(min=0)


def _prompts(folder: Path, vocabulary: int) -> list[Tensor]:
    """Return prompts, int64 [T] each: questions in Harmony, or fixed random ids if the model has no tokenizer."""
    file = folder / "tokenizer.json"
    if file.is_file():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(file))
        return [torch.tensor(tokenizer.encode(_PROMPT.format(question)).ids) for question in _QUESTIONS]
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, vocabulary, (24 + 8 * number,), generator=generator) for number in range(len(_QUESTIONS))]


def _too_large(base: Path, folder: Path, device: str) -> str | None:
    """Return the reason why the larger of the two models does not fit into memory in float32, or None if it fits."""
    needed = max(_float32_bytes(CheckpointReader(place)) for place in (base, folder))
    gpus = hardware.gpus().value if device == "cuda" else []
    there = gpus[0].memory if gpus else hardware.memory().value
    if needed <= _MEMORY_SHARE * there:
        return None
    return f"a model needs {needed / 1e9:.1f} GB in float32, and there are {there / 1e9:.1f} GB of memory"


def _float32_bytes(reader: CheckpointReader) -> int:
    return sum(_sizes(reader))


def _sizes(reader: CheckpointReader) -> Iterator[int]:
    for stored in reader.stored.values():
        bytes_per_element = layout.DTYPE_BYTES[stored.dtype]
        yield (stored.end - stored.start) // bytes_per_element * (1 if bytes_per_element == 1 else 4)
