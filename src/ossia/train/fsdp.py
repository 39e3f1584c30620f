"""Fully sharded training (FSDP2): every process holds a part of each parameter and gathers a layer when it is used.

This module applies torch's `fully_shard` itself, because accelerate's plugin supports FSDP2 on accelerators only. So
the tests on CPUs run the same code as GPUs. There is one unit per decoder layer, one for the embedding and one for the
head. The packed experts are sharded as bytes and stay frozen. Forward and backward passes are collective operations, so
all processes must run the same number of micro-batches.

Checkpoints hold whole tensors for any number of processes. The adapter is under PEFT's names, the optimiser's state
under the parameters' names. The main process has a `Twin`, a copy of the model whose frozen parameters have shapes but
no memory. To save the adapter, it loads the gathered tensors into the twin.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from ossia.adapters import apply as lora
from ossia.errors import UserError
from ossia.train.distributed import is_main, world_size

OLDEST_TORCH = "2.12"
"""The oldest torch that can shard bytes. Before, `fully_shard` made shards require gradients, which bytes cannot."""


def require_torch() -> None:
    """Check that the installed torch can shard packed experts.

    Raises:
        UserError: torch is older than `OLDEST_TORCH`.
    """
    if torch.__version__ < OLDEST_TORCH:
        raise UserError(
            f"train.sharding is fsdp, and torch {torch.__version__} cannot shard experts packed in four bits",
            why=f"before torch {OLDEST_TORCH}, fully_shard makes every part require gradients, which bytes cannot have",
            do=f"pip install 'torch>={OLDEST_TORCH}', or --set train.sharding=none",
        )


def is_sharded(model: nn.Module) -> bool:
    """Return whether the model went through `shard`."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def shard(model: PeftModel, device: torch.device) -> None:
    """Move each process's part of the model from main memory to its device, one layer at a time.

    All processes must have the same weights. They do, because they read the same files and have the same seed.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (world_size(),))
    base = model.get_base_model()
    units = [*base.model.layers, base.model.embed_tokens]
    # The loss reads the head's weight without calling the module. A frozen head has its own unit and is gathered by
    # hand. A head with an adapter has gradients, so it stays in the root's unit. That unit is whole from the start of
    # a pass to the end of its backward pass.
    if not any(parameter.requires_grad for parameter in base.lm_head.parameters()):
        units.append(base.lm_head)
    for unit in (*units, model):
        fully_shard(unit, mesh=mesh)
    register_fsdp_forward_method(model, "generate")
    # accelerate does not wrap a model with this mark. Without it, accelerate would wrap the model in DDP.
    model._is_accelerate_prepared = True


def reshard(model: nn.Module) -> None:
    """Free gathered parameters, so that the model's parameters are the shards. Does nothing without sharding."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


class Twin:
    """The adapter in whole tensors, for saving. Make it before the model is sharded."""

    def __init__(self, model: PeftModel) -> None:
        self._model = _without_base(model) if is_main() else None

    def save(self, sharded: PeftModel, folder: Path) -> None:
        """Gather the adapter (all processes take part) and write it in the main process."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        tensors = get_model_state_dict(sharded, options=options)  # empty except in the main process
        if self._model is not None:
            strange = self._model.load_state_dict(tensors, strict=False).unexpected_keys
            assert tensors and not strange, strange
            lora.save_adapter(self._model, folder)


def save_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, file: Path) -> None:
    """Gather the optimiser's state (all processes take part) and write it in the main process."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_optimizer_state_dict(model, optimizer, options=options)
    if is_main():
        torch.save(state, file)


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, file: Path) -> None:
    """Load each process's part of the state that `save_optimizer` wrote."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    set_optimizer_state_dict(model, optimizer, state, options=StateDictOptions(full_state_dict=True))


def _without_base(model: PeftModel) -> PeftModel:
    """Return a copy whose frozen parameters are on the meta device."""
    frozen = (parameter for parameter in model.parameters() if not parameter.requires_grad)
    known: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in frozen}
    return copy.deepcopy(model, known)
