"""How many parameters a LoRA adapter has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ossia.config import LoraSection
from ossia.errors import UserError
from ossia.model.layout import Shape, expert_matrices


def attention_parameters(shape: Shape, rank: int) -> int:
    """LoRA on q, k, v and o of every layer: rank * (inputs + outputs) each (Hu et al. 2021, section 4)."""
    D, A, K = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return shape.layers * rank * (2 * (D + A) + 2 * (D + K))


def expert_parameters(shape: Shape, rank: int) -> int:
    """LoRA on gate_up and down of every expert of every layer."""
    return shape.layers * shape.experts * rank * sum(rows + columns for _, rows, columns in expert_matrices(shape))


def parameters(shape: Shape, lora: LoraSection) -> int:
    """Trainable parameters of a recipe."""
    lora = effective(lora)
    attention = attention_parameters(shape, lora.rank) if "attention" in lora.targets else 0
    return attention + (expert_parameters(shape, lora.expert_rank) if "experts" in lora.targets else 0)


def effective(lora: LoraSection) -> LoraSection:
    """The settings that training will use: those of the adapter in `start_from`, if one is named.

    Raises:
        UserError: there is no readable adapter in that folder.
    """
    if lora.start_from is None:
        return lora
    path = Path(lora.start_from) / "adapter_config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        rank = int(config["r"])
        patterns = config.get("rank_pattern") or {}
        targets = [
            name for name, key in (("attention", "target_modules"), ("experts", "target_parameters")) if config.get(key)
        ]
        expert_rank = int(patterns.get("gate_up_proj", rank))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"lora.start_from holds no adapter in PEFT's layout ({error})", where=str(path)) from None
    return lora.model_copy(update={"rank": rank, "expert_rank": expert_rank, "targets": targets})
