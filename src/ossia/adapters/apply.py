"""LoRA on the model: PEFT in memory, PEFT's format on disk.

Embeddings get PEFT's own LoRA layer, attention projections and head a frugal one of its kind (`LoraLinear`), packed
experts and the router ours (`ossia.adapters.layers`). On disk an adapter is always what stock PEFT writes for
`target_modules` (attention, `embed_tokens`, `lm_head`) and `target_parameters` (experts, router), so that it loads on
stock transformers without Ossia (PEFT 0.21, `Linear`, `Embedding` and `ParamWrapper` in peft/tuners/lora/layer.py):

* lora_A of a linear module or a 2-D parameter is [R, in], lora_B is [out, R];
* lora_embedding_A of the embeddings is [R, vocabulary], lora_embedding_B is [D, R];
* lora_A of a 3-D parameter is [R * E, in], experts first; lora_B is [out, R * E], ranks first;
* two parameters of one module are nested wrappers: `experts.base_layer.lora_A` belongs to the one named first
  (gate_up_proj), `experts.lora_A` to the second (down_proj), or to the only one.

Shapes: E experts, R LoRA rank, I input and O output size of a projection, D hidden size.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ossia.adapters.config import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    configuration,
    in_memory,
    read_config,
    write_config,
)
from ossia.adapters.layers import ADAPTER, ExpertsLora
from ossia.config import LoraSection
from ossia.errors import UserError
from ossia.kernels.reference import LowRank
from ossia.model.modeling import OssiaForCausalLM, is_packed

__all__ = [
    "CONFIG_FILE", "WEIGHTS_FILE", "attach", "load", "load_weights", "save", "trainable_parameters",
]  # fmt: skip

_OF_EXPERTS = re.compile(r"\.lora_(gate_up|down)_[AB]\b")
_BASE_COPY = re.compile(r"base_model\.model\.(model\.embed_tokens|lm_head)(?:\.base_layer)?\.weight")


def attach(model: OssiaForCausalLM, **settings: Any) -> PeftModel:
    """Freeze the model and put new adapters on it. The model's `name_or_path` becomes the adapter's base model.

    settings: `rank`, `targets` and so on: the fields of `LoraSection`, with their defaults.
    """
    return _put_on(model, configuration(LoraSection(**settings)))


def save(model: PeftModel, folder: Path) -> None:
    """Write adapter_model.safetensors and adapter_config.json in stock PEFT's layout. The folder must exist."""
    tensors = {
        name: tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items()
        if not _OF_EXPERTS.search(name)
    }
    for place, (a_ERI, b_EOR, _) in _expert_updates(model):
        E, R, _ = a_ERI.shape
        tensors[f"{place}.lora_A.weight"] = a_ERI.detach().cpu().reshape(E * R, -1).contiguous()
        tensors[f"{place}.lora_B.weight"] = b_EOR.detach().cpu().permute(1, 2, 0).reshape(-1, R * E).contiguous()
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    write_config(model.peft_config[ADAPTER].on_disk, folder)


def load(model: OssiaForCausalLM, folder: Path, *, trainable: bool = False) -> PeftModel:
    """Put an adapter from disk (PEFT's layout) on the model, with its own targets, ranks and scales.

    Raises:
        UserError: not an adapter, an adapter for another shape of model, or one that touches what Ossia does not adapt.
    """
    config = read_config(folder)
    try:
        peft_model = _put_on(model, config)
    except ValueError as error:
        raise UserError(f"the adapter cannot be put on this model ({error})", where=str(folder)) from None
    load_weights(peft_model, folder)
    if not trainable:
        peft_model.requires_grad_(False)
    return peft_model


def load_weights(model: PeftModel, folder: Path) -> None:
    """Copy an adapter's tensors from disk into the adapter that is already on the model.

    Raises:
        UserError: tensors are missing, left over, or of another shape.
    """
    file = folder / WEIGHTS_FILE
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"the adapter's weights cannot be read ({error})", where=str(file)) from None
    for name, parameter, read in _slots(model):
        try:
            value = read(tensors)
        except KeyError as error:
            raise UserError(f"the adapter has no tensor {error}", where=str(file)) from None
        if value.shape != parameter.shape:
            raise UserError(
                f"{name} has shape {list(value.shape)}, the model needs {list(parameter.shape)}",
                where=str(file),
                why="the adapter was made for another base model or with other ranks",
            )
        with torch.no_grad():
            parameter.copy_(value)
    _drop_base_copies(model, tensors, file)
    if tensors:
        raise UserError(f"the adapter has tensors nobody needs: {', '.join(sorted(tensors)[:3])}", where=str(folder))


def trainable_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters that training changes."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _put_on(model: OssiaForCausalLM, on_disk: LoraConfig) -> PeftModel:
    on_disk.base_model_name_or_path = getattr(model, "name_or_path", None) or None
    config = in_memory(on_disk, packed=is_packed(model.config))
    with warnings.catch_warnings():
        # PEFT asks for a property under the name that transformers 5.23 has deprecated.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        # PEFT 0.21 looks for the patterns among target_modules only, and says that it ignores those it honours.
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys")
        return get_peft_model(model, config)


def _expert_updates(model: nn.Module) -> Iterator[tuple[str, LowRank]]:
    """Yield the updates of packed experts, and under which module's name they are on disk."""
    for name, layer in model.named_modules():
        if isinstance(layer, ExpertsLora):
            gate_up, down = layer.updates()
            if gate_up is not None:
                yield (name if down is None else f"{name}.base_layer"), gate_up
            if down is not None:
                yield name, down


def _slots(model: PeftModel) -> Iterator[tuple[str, nn.Parameter, Any]]:
    """Yield (name on disk, parameter, function that takes the tensor out of the file's dictionary and reshapes it)."""
    for place, (a_ERI, b_EOR, _) in _expert_updates(model):
        (E, R), out = a_ERI.shape[:2], b_EOR.shape[1]
        a_name, b_name = f"{place}.lora_A.weight", f"{place}.lora_B.weight"
        yield a_name, a_ERI, lambda t, n=a_name, s=(E, R, -1): _reshaped(t, n, *s)
        yield b_name, b_EOR, lambda t, n=b_name, s=(out, R, E): _reshaped(t, n, *s).permute(2, 0, 1)
    for name, parameter in model.named_parameters():
        if ".lora_" in name and not _OF_EXPERTS.search(name):
            disk = re.sub(rf"\.{ADAPTER}(?=\.|$)", "", name)
            yield disk, parameter, lambda t, n=disk: t.pop(n)


def _reshaped(tensors: dict[str, Tensor], name: str, *shape: int) -> Tensor:
    tensor = tensors.pop(name)
    with contextlib.suppress(RuntimeError):
        return tensor.reshape(shape)
    return tensor


def _drop_base_copies(model: PeftModel, tensors: dict[str, Tensor], file: Path) -> None:
    """Take the embeddings and the head out, which stock PEFT writes beside a LoRA on them. They must be the base's."""
    for name in [name for name in tensors if _BASE_COPY.fullmatch(name)]:
        base = model.get_base_model().get_submodule(_BASE_COPY.fullmatch(name)[1]).weight  # type: ignore[index]
        if not torch.equal(tensors.pop(name).to(base), base):
            raise UserError(
                f"{name} is not what this base model has",
                where=str(file),
                why="the adapter was trained on another base model, or beside fully trained embeddings",
            )
