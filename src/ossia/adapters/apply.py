"""Adapters on a model: PEFT in memory, PEFT's format on disk (`ossia.adapters.layout`).

Attention projections, head, packed experts and the router get the layers of `ossia.adapters.layers` that the model
lists in `adapter_layers`. Embeddings get PEFT's own LoRA layer. Experts in floating point get PEFT's own layers for
parameters.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer, ParamWrapper
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from ossia.adapters.config import EXPERT_PROJECTIONS, WEIGHTS_FILE, AdapterConfig
from ossia.adapters.layers import ADAPTER, ExpertsLora, MemoryConfig
from ossia.adapters.layout import stored_keys
from ossia.adapters.read import Adapter, read_adapter, stored_pair
from ossia.checkpoint.layout import Shape, is_packed
from ossia.config import LoraSection
from ossia.errors import UserError


def attach_adapter(model: PreTrainedModel, **settings: Any) -> PeftModel:
    """Freeze the model and return it with a new adapter.

    Args:
        model: an `OssiaForCausalLM`. Its `name_or_path` becomes the adapter's base model.
        settings: fields of `LoraSection` (`rank`, `targets`, ...); others have their defaults.
    """
    return _put_on(model, AdapterConfig.of(LoraSection(**settings)))


def load_adapter(model: PreTrainedModel, folder: Path, *, trainable: bool = False) -> PeftModel:
    """Return the model with an adapter from disk (PEFT's layout), which has its own targets, ranks and scales.

    Raises:
        UserError: not an adapter, an adapter for another model, or one that changes weights that Ossia does not adapt.
    """
    adapter = _read_for(model, folder)
    peft_model = _put_on(model, adapter.config)
    _fill(peft_model, adapter)
    if not trainable:
        peft_model.requires_grad_(False)
    return peft_model


def load_adapter_weights(model: PeftModel, folder: Path) -> None:
    """Copy an adapter's tensors from disk into the adapter that is already on the model.

    Raises:
        UserError: as for `load_adapter`, or the adapter has other targets, ranks or scales than the one on the model.
    """
    adapter = _read_for(model.get_base_model(), folder)
    if replace(adapter.config, base_model=None) != replace(model.peft_config[ADAPTER].on_disk, base_model=None):
        raise UserError("the adapter has other targets, ranks or scales than the one on the model", where=str(folder))
    _fill(model, adapter)


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write adapter_model.safetensors and adapter_config.json in stock PEFT's layout. The folder must exist.

    The same adapter always gives the same bytes.
    """
    weights = {name: stored_pair(name, a, b) if a.ndim == 3 else (a, b) for name, a, b in _weights(model)}
    tensors = {
        key: side.detach().to("cpu", torch.float32).contiguous()
        for name, keys in stored_keys(weights).items()
        for key, side in zip(keys, weights[name], strict=True)
    }
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    on_disk: AdapterConfig = model.peft_config[ADAPTER].on_disk
    parameters, modules = list(on_disk.target_parameters) or None, on_disk.target_modules
    config = LoraConfig(**_settings(on_disk), target_parameters=parameters, inference_mode=True)
    config.target_modules = modules if isinstance(modules, str) else list(modules)  # not a set, which has no order
    config.save_pretrained(str(folder))


def trainable_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield (name, parameter) for the parameters that training changes."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _put_on(model: PreTrainedModel, config: AdapterConfig) -> PeftModel:
    config = replace(config, base_model=getattr(model, "name_or_path", None) or None)
    in_memory = _in_memory(config, packed=is_packed(model.config))
    in_memory._register_custom_module(model.adapter_layers)
    with warnings.catch_warnings():
        # PEFT reads a property under a name that transformers 5.23 deprecated.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        # PEFT 0.21 looks for the patterns only in target_modules. It warns that it ignores patterns that it applies.
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys")
        return get_peft_model(model, in_memory)


def _in_memory(on_disk: AdapterConfig, *, packed: bool) -> MemoryConfig:
    """Return the configuration for PEFT. The owners of parameters that get Ossia's layers are its target modules.

    packed: the experts are in MXFP4. Experts in floating point get PEFT's own layers for parameters.
    """
    parameters = on_disk.target_parameters
    ours = [name for name in parameters if packed or name.rpartition(".")[2] not in EXPERT_PROJECTIONS]
    owners = sorted({name.rpartition(".")[0] or "experts" for name in ours})
    modules: Any = on_disk.target_modules
    if isinstance(modules, str):  # a regular expression
        modules = "|".join([f"(?:{modules})", *(rf"(?:.*\.)?{re.escape(owner)}" for owner in owners)])
    else:
        modules = sorted({*modules, *owners})
    config = MemoryConfig(
        **_settings(on_disk),
        target_modules=modules,
        target_parameters=[name for name in parameters if name not in ours] or None,
    )
    config.on_disk = on_disk
    return config


def _settings(config: AdapterConfig) -> dict[str, Any]:
    """Return the settings of PEFT's configuration that are the same in memory and on disk."""
    return {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.base_model,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "use_rslora": config.rslora,
        "rank_pattern": dict(config.rank_pattern),
        "alpha_pattern": dict(config.alpha_pattern),
    }


def _weights(model: PeftModel) -> Iterator[tuple[str, nn.Parameter, nn.Parameter]]:
    """Yield (name of the weight in the checkpoint, A, B) of every update.

    Packed experts have the shapes of a `LoraDelta`, [E, R, I] and [E, O, R]. All others have the shapes on disk.
    """
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, ExpertsLora):
            for projection, update in zip(EXPERT_PROJECTIONS, layer.updates(), strict=True):
                if update is not None:
                    yield f"{name}.{projection}", update.a_ERI, update.b_EOR
        elif isinstance(layer, LoraLayer):
            parameter = layer.parameter_name if isinstance(layer, ParamWrapper) else "weight"
            if ADAPTER in layer.lora_embedding_A:
                a, b = layer.lora_embedding_A[ADAPTER], layer.lora_embedding_B[ADAPTER]
            else:
                a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
            yield f"{name.replace('.base_layer', '')}.{parameter}", a, b


def _read_for(model: nn.Module, folder: Path) -> Adapter:
    """Read an adapter for this base model."""
    adapter = read_adapter(folder, Shape.from_config(model.config.to_dict()))
    adapter.check_copies(lambda name: model.get_submodule(name.removesuffix(".weight")).weight)
    return adapter


def _fill(model: PeftModel, adapter: Adapter) -> None:
    """Copy an adapter's values into the adapter on the model, which has the same configuration."""
    with torch.no_grad():
        for name, *sides in _weights(model):
            delta = adapter.deltas[name]
            values = (delta.a, delta.b) if sides[0].ndim == 3 else stored_pair(name, delta.a, delta.b)
            for parameter, value in zip(sides, values, strict=True):
                assert parameter.shape == value.shape, (name, parameter.shape, value.shape)
                parameter.copy_(value)
