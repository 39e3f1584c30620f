"""Tiny gpt-oss checkpoints: every feature of the architecture at a size that trains in seconds on one core.

They are for tests, for benchmarks without the real weights, and for trying a recipe end to end. The files are laid out
as in openai/gpt-oss-*, so all code that reads a published checkpoint also reads these.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ossia.checkpoint.layout import Shape, TensorSpec, config_json, generation_config_json, tensors
from ossia.checkpoint.writer import CheckpointWriter
from ossia.errors import UserError
from ossia.files import write_json
from ossia.kernels.reference.mxfp4 import quantise

#: The full vocabulary, grouped queries, a window, sinks, and eight experts with four active ones. No matrix is square.
TINY = Shape(
    layers=4, hidden=128, intermediate=160, experts=8, experts_per_token=4, heads=8, kv_heads=2, head_dim=32
)  # fmt: skip
#: For unit tests: a vocabulary of 512, and a window of 16 that short sequences exceed.
MICRO = Shape(
    layers=2, hidden=64, intermediate=96, experts=8, experts_per_token=4, heads=8, kv_heads=2, head_dim=16,
    vocabulary=512, sliding_window=16,
)  # fmt: skip

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def write_tiny(
    folder: Path | str,
    shape: Shape = TINY,
    seed: int = 0,
    weights: Mapping[str, Tensor] | None = None,
    tokenizer_folder: Path | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> Path:
    """Write a checkpoint of this shape and return its folder.

    Args:
        folder: created if necessary; must not hold a checkpoint yet.
        shape: TINY, MICRO or any other.
        seed: the seed of the random weights; unused when `weights` are given.
        weights: float tensors under the names of transformers' `GptOssForCausalLM.state_dict()`. Experts are packed
            to MXFP4 and the rest rounded to bfloat16.
        tokenizer_folder: the source of the tokenizer files. By default a full vocabulary gets the published tokenizer,
            and a reduced one gets none.
        max_shard_bytes: the largest size of one file. Smaller values give several files and an index.

    Raises:
        UserError: the folder holds a checkpoint, or a weight is missing or misshapen.
    """
    folder = Path(folder)
    given = dict(weights) if weights is not None else random_weights(shape, seed)
    with CheckpointWriter(folder, tensors(shape), max_shard_bytes) as writer:
        for name, tensor in pack_weights(shape, given):
            writer.add(name, tensor)
    write_side_files(folder, shape, tokenizer_folder)
    return folder


def write_side_files(folder: Path, shape: Shape, tokenizer_folder: Path | None = None) -> None:
    """Write the files beside the weights of a published checkpoint: configurations, tokenizer and chat template."""
    write_json(folder / "config.json", config_json(shape))
    write_json(folder / "generation_config.json", generation_config_json(shape))
    if tokenizer_folder is None and shape.vocabulary == Shape.GPT_OSS_20B.vocabulary:
        from ossia.harmony.tokenizer.vocabulary import offline_tokenizer_folder

        tokenizer_folder = offline_tokenizer_folder()
    if tokenizer_folder is None:
        return
    from ossia.harmony import chat_template

    for name in _TOKENIZER_FILES:
        if (tokenizer_folder / name).exists():
            shutil.copyfile(tokenizer_folder / name, folder / name)
    (folder / "chat_template.jinja").write_text(chat_template(), encoding="utf-8")


def random_weights(shape: Shape, seed: int = 0) -> dict[str, Tensor]:
    """Return random float32 weights under transformers' names.

    They are scaled so that activations keep their size through the layers: the matrices of a layer have a standard
    deviation of 1/sqrt(inputs). Biases and sinks are not zero, so that tests detect code that forgets them.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for spec in tensors(shape, mxfp4=False):
        noise = torch.randn(spec.shape, generator=generator)
        weights[spec.name] = 1 + 0.1 * noise if spec.kind == "norm" else noise * _deviation(spec)
    return weights


def _deviation(spec: TensorSpec) -> float:
    if spec.kind in ("embedding", "sinks"):
        return 1.0
    if spec.kind == "head":
        return 0.02
    if spec.kind == "experts":
        return float(spec.shape[1] ** -0.5)
    return float(spec.shape[1] ** -0.5) if spec.name.endswith("weight") else 0.1


def pack_weights(shape: Shape, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of the published layout, made from transformers' float weights.

    Experts become MXFP4 (outputs x inputs), the rest bfloat16.

    Raises:
        UserError: a weight is missing, left over or misshapen.
    """
    wanted = {spec.name: spec for spec in tensors(shape, mxfp4=False)}
    if extra := sorted(weights.keys() - wanted.keys()):
        raise UserError(f"{len(extra)} weights are not part of this model, such as {extra[0]}")
    for name, spec in wanted.items():
        if name not in weights or tuple(weights[name].shape) != spec.shape:
            found = f"has the shape {list(weights[name].shape)}" if name in weights else "is missing"
            raise UserError(f"weight {name} {found}, and should be {list(spec.shape)}")
        weight = weights[name].detach()
        if spec.kind == "experts":
            blocks, scales = quantise(weight.transpose(-1, -2))
            yield f"{name}_blocks", blocks
            yield f"{name}_scales", scales
        else:
            yield name, weight.to(torch.bfloat16)
