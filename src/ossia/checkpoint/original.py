"""OpenAI's own layout of the same weights, a repository's `original/` folder, read as if it were the published one.

Its tensors have other names, and query, key and value lie one after the other in one fused tensor: rows of it are
contiguous, so each is a byte range of its own and nothing has to be copied to take them apart. Its config.json is the
reference code's `ModelConfig`; there is neither an index nor a tokenizer, and every safetensors file in the folder
counts (openai/gpt-oss, gpt_oss/torch/weights.py and model.py). No torch is imported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ossia.checkpoint.layout import (
    Shape,
    TensorSpec,
    check_figures,
    original_config_json,
    original_names,
    tensors,
)
from ossia.errors import UserError

if TYPE_CHECKING:
    from ossia.checkpoint.reader import Stored

SUBFOLDER = "original"

#: Key of the reference's configuration -> the figure it gives.
_KEYS = {
    "num_hidden_layers": "layers",
    "num_experts": "experts",
    "experts_per_token": "experts_per_token",
    "vocab_size": "vocabulary",
    "hidden_size": "hidden",
    "intermediate_size": "intermediate",
    "swiglu_limit": "swiglu_limit",
    "head_dim": "head_dim",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "sliding_window": "sliding_window",
    "initial_context_length": "rope_original_context",
    "rope_theta": "rope_theta",
    "rope_scaling_factor": "rope_factor",
    "rope_ntk_alpha": "rope_beta_slow",
    "rope_ntk_beta": "rope_beta_fast",
}


def is_config(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is the reference's: it names no model type, and counts experts under its own key."""
    return "model_type" not in config and "num_experts" in config


def holds(names: Mapping[str, Any]) -> bool:
    """Whether tensors have the reference's names."""
    return any(name.startswith("block.") for name in names)


def shape_from_config(config: Mapping[str, Any], where: str) -> Shape:
    """The architecture's figures from the reference's config.json.

    What it leaves out is fixed in the reference's code: the norm's epsilon 1e-5, frequencies that are not truncated,
    and a context of the initial one times the scaling factor.

    Raises UserError when a key is missing or is no number.
    """
    for key in original_config_json(Shape.GPT_OSS_20B):
        if not isinstance(config.get(key), int | float):
            raise UserError(f"the key {key!r} is missing or no number", where=where, do="fetch the file again")
    figures = {field: config[key] for key, field in _KEYS.items()}
    check_figures(figures, where, {field: key for key, field in _KEYS.items()})
    return Shape(**figures, context=round(config["initial_context_length"] * config["rope_scaling_factor"]))


def specs(shape: Shape) -> Iterator[TensorSpec]:
    """Every tensor of the reference's layout."""
    ours = {spec.name: spec for spec in tensors(shape)}
    for name, parts in original_names(shape).items():
        first = ours[parts[0]]
        rows = sum(ours[part].shape[0] for part in parts)
        yield TensorSpec(name, (rows, *first.shape[1:]), first.dtype, first.kind)


def as_published(stored: Mapping[str, Stored], shape: Shape) -> dict[str, Stored]:
    """The same bytes under the published names, in the order of the forward pass. `stored` must match `specs`."""
    ours = {spec.name: spec for spec in tensors(shape)}
    found = {}
    for name, parts in original_names(shape).items():
        whole = stored[name]
        start = whole.start
        for part in parts:
            end = start + ours[part].bytes
            found[part] = dataclasses.replace(whole, shape=ours[part].shape, start=start, end=end)
            start = end
        assert start == whole.end, f"{name} is longer than its parts"
    return {name: found[name] for name in ours}
