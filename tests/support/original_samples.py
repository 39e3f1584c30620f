"""Checkpoints in the layout of OpenAI's reference code, written from published ones by a table made by hand.

The table has the tensor names of gpt_oss/torch/model.py and weights.py in openai/gpt-oss (read on GitHub, commits
0568dfc and 1983a9d). It is independent of `ossia.checkpoint.layout.original_names`, which it tests.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

# For each name in the reference, the names in the published layout, joined along the first axis. N is the layer.
ONCE = {
    "embedding.weight": ["model.embed_tokens.weight"],
    "norm.scale": ["model.norm.weight"],
    "unembedding.weight": ["lm_head.weight"],
}
PER_LAYER = {
    "block.N.attn.norm.scale": ["model.layers.N.input_layernorm.weight"],
    "block.N.attn.qkv.weight": [
        "model.layers.N.self_attn.q_proj.weight",
        "model.layers.N.self_attn.k_proj.weight",
        "model.layers.N.self_attn.v_proj.weight",
    ],
    "block.N.attn.qkv.bias": [
        "model.layers.N.self_attn.q_proj.bias",
        "model.layers.N.self_attn.k_proj.bias",
        "model.layers.N.self_attn.v_proj.bias",
    ],
    "block.N.attn.sinks": ["model.layers.N.self_attn.sinks"],
    "block.N.attn.out.weight": ["model.layers.N.self_attn.o_proj.weight"],
    "block.N.attn.out.bias": ["model.layers.N.self_attn.o_proj.bias"],
    "block.N.mlp.norm.scale": ["model.layers.N.post_attention_layernorm.weight"],
    "block.N.mlp.gate.weight": ["model.layers.N.mlp.router.weight"],
    "block.N.mlp.gate.bias": ["model.layers.N.mlp.router.bias"],
    "block.N.mlp.mlp1_weight.blocks": ["model.layers.N.mlp.experts.gate_up_proj_blocks"],
    "block.N.mlp.mlp1_weight.scales": ["model.layers.N.mlp.experts.gate_up_proj_scales"],
    "block.N.mlp.mlp1_bias": ["model.layers.N.mlp.experts.gate_up_proj_bias"],
    "block.N.mlp.mlp2_weight.blocks": ["model.layers.N.mlp.experts.down_proj_blocks"],
    "block.N.mlp.mlp2_weight.scales": ["model.layers.N.mlp.experts.down_proj_scales"],
    "block.N.mlp.mlp2_bias": ["model.layers.N.mlp.experts.down_proj_bias"],
}
# openai/gpt-oss-20b, original/config.json
CONFIG_20B = {
    "num_hidden_layers": 24, "num_experts": 32, "experts_per_token": 4, "vocab_size": 201088, "hidden_size": 2880,
    "intermediate_size": 2880, "swiglu_limit": 7.0, "head_dim": 64, "num_attention_heads": 64,
    "num_key_value_heads": 8, "sliding_window": 128, "initial_context_length": 4096, "rope_theta": 150000,
    "rope_scaling_factor": 32.0, "rope_ntk_alpha": 1, "rope_ntk_beta": 32,
}  # fmt: skip


def names(layers: int) -> dict[str, list[str]]:
    """Return every tensor of the reference's layout with the names of its published tensors."""
    table = dict(ONCE)
    for layer in range(layers):
        table |= {
            name.replace("N", str(layer)): [part.replace("N", str(layer)) for part in parts]
            for name, parts in PER_LAYER.items()
        }
    return table


def write_original(published: Path, folder: Path, files: int = 1) -> Path:
    """Rewrite a published checkpoint's weights and config.json in the reference's layout, and return `folder`."""
    folder.mkdir(parents=True)
    config = json.loads((published / "config.json").read_text())
    theirs = CONFIG_20B | {
        "num_hidden_layers": config["num_hidden_layers"],
        "num_experts": config["num_local_experts"],
        "experts_per_token": config["num_experts_per_tok"],
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"],
        "head_dim": config["head_dim"],
        "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": config["num_key_value_heads"],
        "sliding_window": config["sliding_window"],
    }
    (folder / "config.json").write_text(json.dumps(theirs))
    held = {name: tensor for file in published.glob("*.safetensors") for name, tensor in load_file(file).items()}
    joined = {
        name: torch.cat([held.pop(part) for part in parts])
        for name, parts in names(config["num_hidden_layers"]).items()
    }
    assert not held, f"the table misses {list(held)}"
    for number in range(files):
        some = dict(list(joined.items())[number::files])
        # One file has the name of openai/gpt-oss-20b. Several have the two dashes of openai/gpt-oss-120b.
        name = "model.safetensors" if files == 1 else f"model--{number + 1:05d}-of-{files:05d}.safetensors"
        save_file(some, folder / name)
    return folder


def write_repository(published: Path, folder: Path) -> Path:
    """Write a repository with only `original/` and the tokenizer, and return its folder."""
    write_original(published, folder / "original")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        if (published / name).exists():
            shutil.copyfile(published / name, folder / name)
    return folder
