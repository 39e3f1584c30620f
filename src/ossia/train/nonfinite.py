"""Stop before the optimiser's step when a loss or a gradient is not finite, and say which layer went wrong.

The failing step is run again without gradients and with a hook on every module; the first module to return something
that is not finite is named. When all activations are finite, the gradients tell: the backward pass comes from the
output, so the culprit is the last parameter, in the order of the model, whose gradient is not finite.
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
    """Look at a step's loss and gradients.

    Args:
        total: the loss in this process.
        where: the run's folder.
        forward: sends a micro-batch through the model.

    Raises:
        OssiaError: the loss or a gradient is not finite; in all processes alike.
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
        why = "all outputs of the layers are finite when the step is run again: the loss itself is not"
    else:
        named = _last_of(model, gather_object([_last_gradient(model)]))
        why = f"all outputs are finite; going back from the loss, the first gradient that is not is that of {named}"
    raise OssiaError(
        f"the {what} of step {step} is {value.item()}",
        where=where,
        why=f"{why}. The last checkpoint is still good",
        do="a lower train.learning_rate, from the recipe in the run folder",
    )


def _first_activation(
    model: nn.Module,
    micro_batches: Iterable[Mapping[str, Any]],
    forward: Callable[[nn.Module, Mapping[str, Any]], object],
) -> str | None:
    """Run the micro-batches again and return the name of the first module whose output is not finite.

    With a sharded model all processes must call this, with as many micro-batches each.
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
    """Return the name of the last parameter whose gradient (this process's part of it) is not finite."""
    for name, parameter in reversed(list(model.named_parameters())):
        grad = parameter.grad
        if grad is None:
            continue
        local = grad.to_local() if hasattr(grad, "to_local") else grad
        if not bool(local.isfinite().all()):
            return _short(name)
    return None


def _last_of(model: nn.Module, names: Iterable[str | None]) -> str | None:
    """Of what several processes found, the name that comes last in the model."""
    order = {_short(name): number for number, (name, _) in enumerate(model.named_parameters())}
    return max((name for name in names if name), key=order.__getitem__, default=None)


def _short(name: str) -> str:
    """A module's name as transformers has it, without what PEFT puts before it."""
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
