"""The model of a recipe for training: the base with its adapter, and the settings of sharding and balance loss."""

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
    """Return whether the model will be sharded among the job's processes.

    Raises:
        UserError: accelerate's configuration turns on FSDP, the job has only one process, or torch cannot shard packed
            experts.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise UserError(
            "accelerate's configuration turns on FSDP, but Ossia shards the model itself",
            do="launch without --use_fsdp, and add --set train.sharding=fsdp",
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
    """Return the base model of `folder` with the recipe's adapter, a `PeftModel`.

    Args:
        device: "cpu" if the model will be sharded, because sharding moves it to the devices one layer at a time.

    Raises:
        UserError: `train.offload` is set, but the model computes on a CPU.
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
                "train.offload moves activations to main memory, but on a CPU they are already there",
                do="--set train.offload=false",
            )
        for layer in base.model.layers:
            layer.offload = True
    return model


def attention_of(model: Any, device: torch.device) -> str:
    """Return a sentence about the kernel that computes the model's attention on a device."""
    return attention_described(device, model.get_input_embeddings().weight.dtype, model.config.head_dim)


def balance_of(recipe: Recipe, model: Any) -> tuple[float, str]:
    """Return the coefficient of the load-balancing loss and a sentence with its reason.

    The reason is empty if the router is frozen.

    Raises:
        UserError: the recipe sets the coefficient, but the router is frozen.
    """
    wanted = recipe.train.balance_loss
    if not routing.is_trained(model):
        if wanted is not None:
            raise UserError(
                "train.balance_loss is set, but the router is frozen",
                why="the load-balancing loss could not change a frozen router",
                do="add router to lora.targets, or leave out train.balance_loss",
            )
        return 0.0, ""
    if wanted is not None:
        return wanted, f"the router is trained; load-balancing loss with coefficient {wanted:g}, as set"
    chosen = routing.DEFAULT_BALANCE
    return chosen, f"the router is trained, so a load-balancing loss (coefficient {chosen:g}) keeps it from collapsing"
