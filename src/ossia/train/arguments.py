"""Arguments of transformers' Trainer for a recipe, and Trainer's name of the optimiser.

For 8-bit optimiser states bitsandbytes was chosen, because it has paged states and also runs on a CPU. In contrast,
torchao has no paged states and compiles its step. On a CPU that takes most of a minute and needs a C++ compiler.
"""

from __future__ import annotations

import importlib.util
import math
import os

import torch
from transformers import TrainingArguments

from ossia import hardware
from ossia.config import Recipe, TrainSection
from ossia.errors import UserError
from ossia.runs import Run
from ossia.train.distributed import world_size

OPTIMIZERS = {"adamw": "adamw_torch_fused", "adamw-8bit": "adamw_bnb_8bit", "paged-adamw-8bit": "paged_adamw_8bit"}
"""Ossia's name -> the value of transformers' `TrainingArguments.optim`.

The fused AdamW does not allocate temporary tensors of the adapter's size.
"""


def chosen_optimizer(settings: TrainSection, on_cpu: bool) -> str:
    """Return Trainer's name of the recipe's optimiser.

    Raises:
        UserError: the optimiser needs a library that is not installed, or does not work on this device or with
            sharding.
    """
    name = settings.optimizer
    if name == "adamw":
        return OPTIMIZERS[name]
    what = f"train.optimizer is {name}"
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"{what}, which needs bitsandbytes", do="pip install -e '.[8bit]' in the checkout")
    if settings.sharding == "fsdp":
        raise UserError(
            f"{what}, which does not work with train.sharding=fsdp",
            why="bitsandbytes cannot update a part of a parameter. FSDP shards the optimiser's states already",
            do="--set train.optimizer=adamw",
        )
    if name.startswith("paged") and on_cpu:
        raise UserError(f"{what}, but on a CPU there are no pages to move", do="--set train.optimizer=adamw-8bit")
    return OPTIMIZERS[name]


def trainer_arguments(recipe: Recipe, run: Run, examples: int, validate: bool) -> TrainingArguments:
    """Return Trainer's arguments for a recipe. With `train.deterministic`, also make torch deterministic.

    Args:
        examples: number of training units.
        validate: whether there are validation units.

    Raises:
        UserError: a tracker or an optimiser is not installed, or the optimiser does not work here.
    """
    settings = recipe.train
    for tracker in settings.report_to:
        if importlib.util.find_spec(tracker) is None:
            raise UserError(
                f"train.report_to names {tracker}, which is not installed",
                do="pip install -e '.[track]' in the checkout",
            )
    steps = recipe.train.total_steps(examples)
    schedule = {"cosine": "cosine_with_min_lr", "linear": "linear", "constant": "constant_with_warmup"}
    on_cpu = hardware.device(recipe.model.device).value == "cpu"
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS needs it for determinism
        torch.use_deterministic_algorithms(True)
    return _OneDevice(
        output_dir=str(run.checkpoints),
        per_device_train_batch_size=max(1, settings.examples_per_step // world_size()),
        per_device_eval_batch_size=settings.examples_per_step,
        max_steps=steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=schedule[settings.schedule],
        lr_scheduler_kwargs={"min_lr_rate": 0.1} if settings.schedule == "cosine" else {},
        # Rounded down, because the first step of a warm-up has rate 0. A run of one step must not be only that step.
        warmup_steps=math.floor(round(settings.warmup_share * steps, 6)),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim=chosen_optimizer(settings, on_cpu),
        seed=settings.seed,
        data_seed=settings.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if validate else "no",
        eval_steps=settings.evaluate_every,
        save_strategy="steps",
        save_steps=settings.checkpoint_every,
        metric_for_best_model="eval_loss" if validate else None,
        greater_is_better=False if validate else None,
        report_to=settings.report_to or "none",
        run_name=run.id,
        project="ossia",  # for trackio. wandb reads $WANDB_PROJECT
        remove_unused_columns=False,
        dataloader_pin_memory=not on_cpu,
        disable_tqdm=True,
        use_cpu=on_cpu,
    )


class _OneDevice(TrainingArguments):
    """Arguments with one device per process. By default Trainer splits a flat batch over all GPUs (DataParallel)."""

    @property
    def n_gpu(self) -> int:
        return min(1, super().n_gpu)
