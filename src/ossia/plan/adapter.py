"""How many parameters a LoRA adapter has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path

from ossia.checkpoint.layout import Shape, expert_matrices
from ossia.checkpoint.reader import read_header
from ossia.config import LoraSection, LoraTarget
from ossia.errors import UserError
from ossia.plan.inputs import FoundModel


def parameters(shape: Shape, lora: LoraSection) -> int:
    """Trainable parameters of a recipe: rank * (inputs + outputs) of each matrix (Hu et al. 2021, section 4).

    Raises:
        UserError: there is no readable adapter in the folder of `start_from`.
    """
    if lora.start_from is not None:
        return _stored(Path(lora.start_from))
    counts: dict[LoraTarget, int] = {
        "attention": attention_parameters(shape, lora.rank, lora.attention_ranks),
        "experts": expert_parameters(shape, lora.expert_rank),
        "router": shape.layers * lora.router_rank * (shape.hidden + shape.experts),
        "embeddings": lora.vocabulary_rank * (shape.vocabulary + shape.hidden),
        "head": lora.vocabulary_rank * (shape.hidden + shape.vocabulary),
    }
    return sum(count for target, count in counts.items() if target in lora.targets)


def attention_parameters(shape: Shape, rank: int, ranks: Mapping[str, int] | None = None) -> int:
    """LoRA on q, k, v and o of every layer; `ranks` of single projections go before `rank`."""
    D, A, K = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sides = {"q_proj": D + A, "k_proj": D + K, "v_proj": D + K, "o_proj": A + D}
    return shape.layers * sum((ranks or {}).get(name, rank) * both for name, both in sides.items())


def expert_parameters(shape: Shape, rank: int) -> int:
    """LoRA on gate_up and down of every expert of every layer."""
    return shape.layers * shape.experts * rank * sum(rows + columns for _, rows, columns in expert_matrices(shape))


def targets(lora: LoraSection) -> list[LoraTarget]:
    """What training will change: the recipe's targets, or those of the adapter in `start_from`.

    Raises:
        UserError: there is no readable adapter in that folder.
    """
    if lora.start_from is None:
        return lora.targets
    names = _header(Path(lora.start_from))
    places: dict[LoraTarget, str] = {
        "attention": ".self_attn.", "experts": ".mlp.experts.", "router": ".mlp.router.",
        "embeddings": ".embed_tokens.lora_", "head": ".lm_head.lora_",
    }  # fmt: skip
    return [target for target, place in places.items() if any(place in name for name in names)]


def head_rows(model: FoundModel, lora: LoraSection) -> int:
    """Rows of the head that the loss computes: equal ones once, unless the head itself is adapted."""
    return model.shape.vocabulary if "head" in targets(lora) else model.head_rows


def _stored(folder: Path) -> int:
    """Count what the file holds. Stock PEFT puts copies of embeddings and head into it, which are not trained."""
    return sum(prod(shape) for name, shape in _header(folder).items() if ".lora_" in name)


def _header(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an adapter's tensors."""
    try:
        json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"lora.start_from holds no adapter in PEFT's layout ({error})", where=str(folder)) from None
    return {name: tensor.shape for name, tensor in read_header(folder / "adapter_model.safetensors").items()}
