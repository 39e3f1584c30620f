"""Which layer went wrong when a loss or a gradient is not finite.

The failing step is run again without gradients and with a hook on every module; the first module to return something
that is not finite is named. When all activations are finite, the gradients tell: the backward pass comes from the
output, so the culprit is the last parameter, in the order of the model, whose gradient is not finite.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def first_activation(model: nn.Module, micro_batches: Iterable[Mapping[str, Any]]) -> str | None:
    """Run the micro-batches again and return the name of the first module whose output is not finite.

    With a sharded model all processes must call this, with as many micro-batches each.
    """
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(*call: Any) -> None:
            if not found and not all(bool(tensor.isfinite().all()) for tensor in _tensors(call[-1])):
                found.append(name)

        return hook

    hooks = [module.register_forward_hook(look(short(name))) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            for inputs in micro_batches:
                model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def last_gradient(model: nn.Module) -> str | None:
    """Return the name of the last parameter whose gradient (this process's part of it) is not finite."""
    for name, parameter in reversed(list(model.named_parameters())):
        grad = parameter.grad
        if grad is None:
            continue
        local = grad.to_local() if hasattr(grad, "to_local") else grad
        if not bool(local.isfinite().all()):
            return short(name)
    return None


def last_of(model: nn.Module, names: Iterable[str | None]) -> str | None:
    """Of what several processes found, the name that comes last in the model."""
    order = {short(name): number for number, (name, _) in enumerate(model.named_parameters())}
    return max((name for name in names if name), key=order.__getitem__, default=None)


def short(name: str) -> str:
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
