"""Which of Trainer's optimisers a recipe means, and what it needs to be there.

bitsandbytes was chosen for 8-bit states because it has pages and runs on a CPU too; torchao has no pages and compiles
its step, which takes most of a minute and a C++ compiler on a CPU.
"""

from __future__ import annotations

import importlib.util

from ossia.config import TrainSection
from ossia.errors import UserError

NAMES = {"adamw": "adamw_torch_fused", "adamw-8bit": "adamw_bnb_8bit", "paged-adamw-8bit": "paged_adamw_8bit"}
"""Ours -> those of transformers' TrainingArguments.optim. The fused one makes no temporaries of the adapter's size."""


def chosen(settings: TrainSection, on_cpu: bool) -> str:
    """Return Trainer's name of the recipe's optimiser.

    Raises:
        UserError: it needs a library that is not installed, or does not work on this device or with sharding.
    """
    name = settings.optimizer
    if name == "adamw":
        return NAMES[name]
    what = f"train.optimizer is {name}"
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"{what}, which needs bitsandbytes", do="pip install -e '.[8bit]' in the checkout")
    if settings.sharding == "fsdp":
        raise UserError(
            f"{what}, which does not work with train.sharding=fsdp",
            why="bitsandbytes cannot step parts of a parameter; the moments are shared out among the processes anyway",
            do="--set train.optimizer=adamw",
        )
    if name.startswith("paged") and on_cpu:
        raise UserError(f"{what}, but on a CPU there are no pages to move", do="--set train.optimizer=adamw-8bit")
    return NAMES[name]
