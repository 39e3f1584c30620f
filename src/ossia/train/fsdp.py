"""Fully sharded training (FSDP2): every process holds a part of each parameter and gathers a layer when it is used.

torch's `fully_shard` is applied here and not by accelerate's plugin, which knows FSDP2 on accelerators only: so what is
tested on CPUs is what runs on GPUs. There is one unit per decoder layer, one for the embedding, one for the head. The
packed experts are sharded as the bytes that they are, and stay frozen. Forward and backward are collective, so all
processes must run the same number of micro-batches.

Checkpoints hold whole tensors, whatever the number of processes: the adapter under PEFT's names, the optimiser's state
under the parameters' names. The main process keeps a `Twin` of the adapter, the same model on a base that has shapes
but no memory, and puts the gathered tensors into it before it is saved.
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
"""Before, `fully_shard` makes every shard a parameter that requires gradients, which bytes cannot have."""


def require_torch() -> None:
    """Do nothing, or raise.

    Raises:
        UserError: this torch cannot shard packed experts.
    """
    if torch.__version__ < OLDEST_TORCH:
        raise UserError(
            f"train.sharding is fsdp, and torch {torch.__version__} cannot shard experts packed in four bits",
            why=f"its fully_shard makes every part require gradients, which bytes cannot have; {OLDEST_TORCH} does not",
            do=f"pip install 'torch>={OLDEST_TORCH}', or --set train.sharding=none",
        )


def is_sharded(model: nn.Module) -> bool:
    """Whether the model went through `shard`."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def shard(model: PeftModel, device: torch.device) -> None:
    """Take the model from main memory to the devices of the job, a layer at a time, each process its part.

    All processes must come with the same weights: they read the same files and have the same seed.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (world_size(),))
    base = model.get_base_model()
    units = [*base.model.layers, base.model.embed_tokens]
    # The loss reads the head without calling it. A frozen one is gathered by hand; one with an adapter has gradients
    # and stays in the root's unit, which is whole from the start of a pass to the end of its backward pass.
    if not any(parameter.requires_grad for parameter in base.lm_head.parameters()):
        units.append(base.lm_head)
    for unit in (*units, model):
        fully_shard(unit, mesh=mesh)
    register_fsdp_forward_method(model, "generate")
    # accelerate's mark for a model that it must not wrap again; without it, it would put DDP around.
    model._is_accelerate_prepared = True


def reshard(model: nn.Module) -> None:
    """Let go of gathered parameters, so that the model's parameters are the shards; nothing without sharding."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


class Twin:
    """The adapter as one process would have it, to be saved. Make it before the model is sharded."""

    def __init__(self, model: PeftModel) -> None:
        self._model = _without_base(model) if is_main() else None

    def save(self, sharded: PeftModel, folder: Path) -> None:
        """Gather the adapter (all processes take part) and write it in the main process."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        tensors = get_model_state_dict(sharded, options=options)  # empty in all but the main process
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
    """Give each process its part of the state that `save_optimizer` wrote."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    set_optimizer_state_dict(model, optimizer, state, options=StateDictOptions(full_state_dict=True))


def _without_base(model: PeftModel) -> PeftModel:
    """A copy whose frozen parameters are on the meta device."""
    frozen = (parameter for parameter in model.parameters() if not parameter.requires_grad)
    known: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in frozen}
    return copy.deepcopy(model, known)
