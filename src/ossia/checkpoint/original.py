"""OpenAI's own layout of the same weights (a repository's `original/` folder), read as if it were the published one.

Its tensors have other names, and query, key and value are rows of one fused tensor. Rows are contiguous, so each of the
three is a byte range, and nothing is copied to separate them. The config.json is the reference code's `ModelConfig`.
The folder has neither an index nor a tokenizer, and every safetensors file in it is read. The sources are
gpt_oss/torch/weights.py and model.py in openai/gpt-oss. This module does not import torch.
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

#: Key of the reference's configuration -> field of `Shape`.
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
    """Return whether a config.json is the reference's: it has the key `num_experts` and no `model_type`."""
    return "model_type" not in config and "num_experts" in config


def holds(names: Mapping[str, Any]) -> bool:
    """Return whether tensors have the reference's names."""
    return any(name.startswith("block.") for name in names)


def shape_from_config(config: Mapping[str, Any], where: str) -> Shape:
    """Return the architecture's hyperparameters from the reference's config.json.

    The reference's code fixes the values that are not in it. The norm's epsilon is 1e-5, and the rotary frequencies are
    not truncated. The context is the initial context times the scaling factor.

    Raises:
        UserError: a key is missing or is not a number.
    """
    for key in original_config_json(Shape.GPT_OSS_20B):
        if not isinstance(config.get(key), int | float):
            raise UserError(f"the key {key!r} is missing or not a number", where=where, do="fetch the file again")
    figures = {field: config[key] for key, field in _KEYS.items()}
    check_figures(figures, where, {field: key for key, field in _KEYS.items()})
    return Shape(**figures, context=round(config["initial_context_length"] * config["rope_scaling_factor"]))


def specs(shape: Shape) -> Iterator[TensorSpec]:
    """Yield the specification of every tensor of the reference's layout."""
    ours = {spec.name: spec for spec in tensors(shape)}
    for name, parts in original_names(shape).items():
        first = ours[parts[0]]
        rows = sum(ours[part].shape[0] for part in parts)
        yield TensorSpec(name, (rows, *first.shape[1:]), first.dtype, first.kind)


def as_published(stored: Mapping[str, Stored], shape: Shape) -> dict[str, Stored]:
    """Return the tensors under the published names, in the order of the forward pass. `stored` must match `specs`."""
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
