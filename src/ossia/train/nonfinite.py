"""A check that stops training before the optimiser's step when a loss or a gradient is not finite.

The error names the layer where the first value that is not finite appeared. To find it, the failing step runs again
without gradients and with a hook on every module. The error names the first module whose output is not finite. If all
outputs are finite, it names the last parameter, in the order of the model, whose gradient is not finite. That gradient
was computed first, because the backward pass starts at the output of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from ossia.errors import OssiaError


def check_finite(
    accelerator: Accelerator,
    model: nn.Module,
    total: Tensor,
    micro_batches: Sequence[Mapping[str, Any]],
    step: int,
    where: str,
    forward: Callable[[nn.Module, Mapping[str, Any]], object],
) -> None:
    """Check a step's loss and gradients. All processes of a job must call it.

    Args:
        total: scalar, the loss in this process.
        micro_batches: those of this process.
        step: number of the step, for the message.
        where: the run's folder.
        forward: sends a micro-batch through the model.

    Raises:
        OssiaError: the loss or a gradient is not finite in any process. All processes raise it.
    """
    losses = accelerator.gather(total[None])
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm: Any = torch.nn.utils.get_total_norm(gradients)
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    if bool((losses.isfinite().all() & norm.isfinite()).item()):
        return
    what, value = ("gradient", norm) if losses.isfinite().all() else ("loss", losses.mean())
    model = accelerator.unwrap_model(model)
    found = gather_object([_first_activation(model, micro_batches, forward)])
    name = next((name for name in found if name), None)
    if name is not None:
        why = f"the first output that is not finite is that of {name}"
    elif what == "loss":
        why = "all outputs of the layers are finite when the step is run again, but the loss is not"
    else:
        named = _last_of(model, gather_object([_last_gradient(model)]))
        why = f"all outputs are finite. From the loss backwards, the first gradient that is not is that of {named}"
    raise OssiaError(
        f"the {what} of step {step} is {value.item()}",
        where=where,
        why=f"{why}. The last checkpoint is still good",
        do="train the recipe of the run folder again, with a lower train.learning_rate",
    )


def _first_activation(
    model: nn.Module,
    micro_batches: Iterable[Mapping[str, Any]],
    forward: Callable[[nn.Module, Mapping[str, Any]], object],
) -> str | None:
    """Run the micro-batches again and return the name of the first module whose output is not finite.

    With a sharded model all processes must call this, each with the same number of micro-batches.
    """
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(*call: Any) -> None:
            if not found and not all(bool(tensor.isfinite().all()) for tensor in _tensors(call[-1])):
                found.append(name)

        return hook

    hooks = [module.register_forward_hook(look(_short(name))) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            for inputs in micro_batches:
                forward(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _last_gradient(model: nn.Module) -> str | None:
    """Return the name of the last parameter whose gradient is not finite. Of a shard: in this process's part."""
    for name, parameter in reversed(list(model.named_parameters())):
        grad = parameter.grad
        if grad is None:
            continue
        local = grad.to_local() if hasattr(grad, "to_local") else grad
        if not bool(local.isfinite().all()):
            return _short(name)
    return None


def _last_of(model: nn.Module, names: Iterable[str | None]) -> str | None:
    """Return the name that comes last in the model, of the names that the processes have found."""
    order = {_short(name): number for number, (name, _) in enumerate(model.named_parameters())}
    return max((name for name in names if name), key=order.__getitem__, default=None)


def _short(name: str) -> str:
    """Return the name of a module as in transformers, without PEFT's prefix."""
    return name.removeprefix("base_model.model.")


def _tensors(output: Any) -> Iterable[Tensor]:
    if isinstance(output, Tensor):
        yield from [output] if output.is_floating_point() else []
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from _tensors(value)
