"""The model of a recipe as training needs it: the base with its adapter, sharded or not, and its balance loss."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from ossia import hardware
from ossia.adapters import apply as lora
from ossia.config import Recipe
from ossia.errors import UserError
from ossia.kernels.dispatch import attention_described
from ossia.model.load import load_model
from ossia.train import fsdp, routing
from ossia.train.distributed import world_size


def is_to_be_sharded(recipe: Recipe) -> bool:
    """Return whether the job's processes share the model out.

    Raises:
        UserError: the recipe or accelerate's configuration asks for what this job cannot do.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise UserError(
            "accelerate's configuration asks for FSDP, and Ossia shards the model itself",
            do="--set train.sharding=fsdp, and a launch without --use_fsdp",
        )
    if recipe.train.sharding == "none":
        return False
    fsdp.require_torch()
    if world_size() == 1:
        raise UserError(
            "train.sharding is fsdp, but this is a job of one process",
            do="torchrun --nproc-per-node 2 -m ossia train ..., or --set train.sharding=none",
        )
    return True


def model_to_train(recipe: Recipe, folder: Path, device: str) -> Any:
    """Return the base of `folder` with its adapter, a `PeftModel`.

    Args:
        device: "cpu" if the model is going to be sharded, which takes it to the devices a layer at a time.

    Raises:
        UserError: activations should go to main memory, and that is where the model computes.
    """
    dtype = hardware.dtype(recipe.model.dtype, hardware.device(recipe.model.device).value).value
    base = load_model(folder, dtype=dtype, device=device)
    base.name_or_path = recipe.model.path
    base.config.use_cache = False
    if recipe.lora.start_from:
        model = lora.load_adapter(base, Path(recipe.lora.start_from), trainable=True)
    else:
        model = lora.attach_adapter(base, **recipe.lora.model_dump(exclude={"start_from"}))
    if recipe.train.recompute:
        enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if recipe.train.offload:
        if hardware.device(recipe.model.device).value == "cpu":
            raise UserError(
                "train.offload sends activations to main memory, and on a CPU that is where they are",
                do="--set train.offload=false",
            )
        for layer in base.model.layers:
            layer.offload = True
    return model


def attention_of(model: Any, device: torch.device) -> str:
    """Return in words which kernel computes the model's attention on a device."""
    return attention_described(device, model.get_input_embeddings().weight.dtype, model.config.head_dim)


def balance_of(recipe: Recipe, model: Any) -> tuple[float, str]:
    """Return the coefficient of the load-balancing loss, and in words why, where there is something to say.

    Raises:
        UserError: the recipe sets it, but the router is frozen.
    """
    wanted = recipe.train.balance_loss
    if not routing.is_trained(model):
        if wanted is not None:
            raise UserError(
                "train.balance_loss is set, but the router is frozen",
                why="a loss on what nothing can change would only be a number",
                do="router among lora.targets, or without train.balance_loss",
            )
        return 0.0, ""
    if wanted is not None:
        return wanted, f"the router is trained; load-balancing loss with coefficient {wanted:g}, as set"
    chosen = routing.DEFAULT_BALANCE
    return chosen, f"the router is trained, so a load-balancing loss (coefficient {chosen:g}) keeps it from collapsing"
