"""LoRA on attention and on packed experts: PEFT in memory, PEFT's format on disk.

Attention projections get PEFT's own LoRA layers. Packed experts get `ExpertsLora` through PEFT's hook for custom
modules, because PEFT can only target floating-point parameters. On disk an adapter is always what stock PEFT writes for
`target_modules` (attention) and `target_parameters` (experts), so that it loads on stock transformers without Ossia:

* lora_A of a 3-D parameter is [R * E, in], experts first; lora_B is [out, R * E], ranks first (PEFT 0.21 ParamWrapper);
* two parameters of one module are nested wrappers: `experts.base_layer.lora_A` belongs to the one named first
  (gate_up_proj), `experts.lora_A` to the second (down_proj).

Shapes: E experts, R LoRA rank, I input and O output size of a projection.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ossia.errors import UserError
from ossia.model.experts import LowRank, PackedExperts
from ossia.model.lora_linear import LoraLinear
from ossia.model.modeling import OssiaForCausalLM, is_packed

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
PROJECTIONS = ("gate_up_proj", "down_proj")
PARAMETERS = [f"mlp.experts.{name}" for name in PROJECTIONS]
WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
ADAPTER = "default"


class ExpertsLora(nn.Module, LoraLayer):
    """Packed experts with a LoRA update on both projections of every expert, as a PEFT layer.

    lora_gate_up_A/B and lora_down_A/B hold float32 [E, R, I] and [E, O, R] per adapter name.
    """

    adapter_layer_names = ("lora_gate_up_A", "lora_gate_up_B", "lora_down_A", "lora_down_B")

    def __init__(
        self, base_layer: PackedExperts, adapter_name: str, config: LoraConfig, r: int, lora_alpha: float, **_: Any
    ) -> None:
        super().__init__()
        LoraLayer.__init__(self, base_layer)
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict())
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, lora_alpha, config=config)

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        return module.hidden_size, module.hidden_size

    def update_layer(self, adapter_name: str, r: int, lora_alpha: float, config: LoraConfig, **_: Any) -> None:  # type: ignore[override]
        """Add an adapter: A uniform as nn.Linear's default (Kaiming, a = sqrt 5), B zero, as PEFT does."""
        base = self.get_base_layer()
        E, D, F = base.num_experts, base.hidden_size, base.intermediate_size
        device = base.gate_up_proj_blocks.device
        self.r[adapter_name], self.lora_alpha[adapter_name] = r, lora_alpha
        self.scaling[adapter_name] = lora_alpha / (math.sqrt(r) if config.use_rslora else r)
        for name, inputs, outputs in (("gate_up", D, 2 * F), ("down", F, D)):
            a_ERI = torch.empty(E, r, inputs, device=device, dtype=torch.float32).uniform_(-1, 1) / math.sqrt(inputs)
            b_EOR = torch.zeros(E, outputs, r, device=device, dtype=torch.float32)
            getattr(self, f"lora_{name}_A")[adapter_name] = nn.Parameter(a_ERI)
            getattr(self, f"lora_{name}_B")[adapter_name] = nn.Parameter(b_EOR)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, hidden_states: Tensor, router_indices: Tensor, routing_weights: Tensor) -> Tensor:
        base = self.get_base_layer()
        if self.disable_adapters:
            return base(hidden_states, router_indices, routing_weights)
        gate_up, down = self.updates(self.active_adapters[0])
        return base.run(hidden_states, router_indices, routing_weights, gate_up, down)

    def updates(self, adapter: str = ADAPTER) -> tuple[LowRank, LowRank]:
        """Return the update of gate_up and the update of down."""
        scale = self.scaling[adapter]
        return (
            LowRank(self.lora_gate_up_A[adapter], self.lora_gate_up_B[adapter], scale),
            LowRank(self.lora_down_A[adapter], self.lora_down_B[adapter], scale),
        )


def attach(
    model: OssiaForCausalLM,
    *,
    rank: int = 16,
    alpha: float = 32.0,
    expert_rank: int = 8,
    expert_alpha: float = 16.0,
    targets: Iterable[str] = ("attention", "experts"),
) -> PeftModel:
    """Freeze the model and put new adapters on it. The model's `name_or_path` becomes the adapter's base model."""
    targets = set(targets)
    packed = is_packed(model.config)
    modules = list(ATTENTION) if "attention" in targets else []
    experts = "experts" in targets
    pattern = ["experts"] if packed else list(PROJECTIONS)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=getattr(model, "name_or_path", None) or None,
        r=rank,
        lora_alpha=alpha,
        target_modules=modules + (["experts"] if experts and packed else []),
        target_parameters=PARAMETERS if experts and not packed else None,
        rank_pattern=dict.fromkeys(pattern, expert_rank) if experts else {},
        alpha_pattern=dict.fromkeys(pattern, expert_alpha) if experts else {},
    )
    config._register_custom_module({PackedExperts: ExpertsLora, nn.Linear: LoraLinear})
    with warnings.catch_warnings():
        # PEFT asks for a property under the name that transformers 5.23 has deprecated.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        # PEFT 0.21 looks for the patterns among target_modules only, and says that it ignores those it honours.
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys")
        return get_peft_model(model, config)


def save(model: PeftModel, folder: Path) -> None:
    """Write adapter_model.safetensors and adapter_config.json in stock PEFT's layout. The folder must exist."""
    config = model.peft_config[ADAPTER]
    tensors = {
        name: tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items()
        if ".mlp.experts.lora_" not in name or not is_packed(model.config)
    }
    for name, layer in _expert_layers(model):
        for (a_ERI, b_EOR, _), place in zip(layer.updates(), (f"{name}.base_layer", name), strict=True):
            E, R, _ = a_ERI.shape
            tensors[f"{place}.lora_A.weight"] = a_ERI.detach().cpu().reshape(E * R, -1).contiguous()
            tensors[f"{place}.lora_B.weight"] = b_EOR.detach().cpu().permute(1, 2, 0).reshape(-1, R * E).contiguous()
    written = LoraConfig(
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=config.base_model_name_or_path,
        r=config.r,
        lora_alpha=config.lora_alpha,
        use_rslora=config.use_rslora,
        target_modules=sorted(set(config.target_modules) - {"experts"}),
        target_parameters=list(PARAMETERS) if "experts" in config.target_modules else config.target_parameters,
        rank_pattern=_renamed(config.rank_pattern, "experts", PROJECTIONS),
        alpha_pattern=_renamed(config.alpha_pattern, "experts", PROJECTIONS),
    )
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    written.save_pretrained(str(folder))


def load(model: OssiaForCausalLM, folder: Path, *, trainable: bool = False) -> PeftModel:
    """Put an adapter from disk (PEFT's layout) on the model.

    Raises:
        UserError: not an adapter, an adapter for another shape of model, or one that touches what Ossia does not adapt.
    """
    config = _read_config(folder)
    experts = bool(config.target_parameters)
    if isinstance(config.target_modules, str):
        raise UserError("target_modules as a regular expression is not supported", where=str(folder))
    if not isinstance(config.init_lora_weights, bool):
        raise UserError(
            f"the adapter was initialised by {config.init_lora_weights!r}, which changes the base weights",
            where=str(folder),
        )
    wanted = set(config.target_modules or [])
    strange = sorted((wanted - set(ATTENTION)) | (set(config.target_parameters or []) - set(PARAMETERS)))
    if strange or config.use_dora or config.bias != "none" or config.modules_to_save:
        named = ", ".join(strange) or "DoRA, biases or fully trained modules"
        raise UserError(f"the adapter changes {named}, which Ossia does not load", where=str(folder))
    if config.use_rslora:
        raise UserError("rank-stabilised LoRA (use_rslora) is not supported", where=str(folder))
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = getattr(config, key)
        if set(pattern) - set(PROJECTIONS) or len({pattern.get(name) for name in PROJECTIONS}) > 1:
            raise UserError(
                f"the adapter's {key} is not one for all attention and one for all experts", where=str(folder)
            )
    peft_model = attach(
        model,
        rank=config.r,
        alpha=config.lora_alpha,
        expert_rank=config.rank_pattern.get("gate_up_proj", config.r),
        expert_alpha=config.alpha_pattern.get("gate_up_proj", config.lora_alpha),
        targets=(["attention"] if wanted else []) + (["experts"] if experts else []),
    )
    load_weights(peft_model, folder)
    if not trainable:
        peft_model.requires_grad_(False)
    return peft_model


def load_weights(model: PeftModel, folder: Path) -> None:
    """Copy an adapter's tensors from disk into the adapter that is already on the model.

    Raises:
        UserError: tensors are missing, left over, or of another shape.
    """
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise UserError(f"the adapter's weights cannot be read ({error})", where=str(folder / WEIGHTS_FILE)) from None
    for name, parameter, read in _slots(model):
        try:
            value = read(tensors)
        except KeyError as error:
            raise UserError(f"the adapter has no tensor {error}", where=str(folder / WEIGHTS_FILE)) from None
        if value.shape != parameter.shape:
            raise UserError(
                f"{name} has shape {list(value.shape)}, the model needs {list(parameter.shape)}",
                where=str(folder / WEIGHTS_FILE),
                why="the adapter was made for another base model or with other ranks",
            )
        with torch.no_grad():
            parameter.copy_(value)
    if tensors:
        raise UserError(f"the adapter has tensors nobody needs: {', '.join(sorted(tensors)[:3])}", where=str(folder))


def trainable_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters that training changes."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _expert_layers(model: nn.Module) -> Iterator[tuple[str, ExpertsLora]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, ExpertsLora))


def _slots(model: PeftModel) -> Iterator[tuple[str, nn.Parameter, Any]]:
    """Yield (name on disk, parameter, function that takes the tensor out of the file's dictionary and reshapes it)."""
    for prefix, layer in _expert_layers(model):
        for update, place in zip(layer.updates(), (f"{prefix}.base_layer", prefix), strict=True):
            a_ERI, b_EOR, _ = update
            (E, R), out = a_ERI.shape[:2], b_EOR.shape[1]
            a_name, b_name = f"{place}.lora_A.weight", f"{place}.lora_B.weight"
            yield a_name, a_ERI, lambda t, n=a_name, s=(E, R, -1): _reshaped(t, n, *s)
            yield b_name, b_EOR, lambda t, n=b_name, s=(out, R, E): _reshaped(t, n, *s).permute(2, 0, 1)
    for name, parameter in model.named_parameters():
        if ".lora_" in name and not re.search(r"lora_(gate_up|down)_", name):
            disk = name.replace(f".{ADAPTER}.", ".")
            yield disk, parameter, lambda t, n=disk: t.pop(n)


def _reshaped(tensors: dict[str, Tensor], name: str, *shape: int) -> Tensor:
    tensor = tensors.pop(name)
    with contextlib.suppress(RuntimeError):
        return tensor.reshape(shape)
    return tensor


def _read_config(folder: Path) -> LoraConfig:
    try:
        kind = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")).get("peft_type")
        config = PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"not an adapter in PEFT's layout ({error})", where=str(folder)) from None
    if kind != "LORA":
        raise UserError(f"the adapter is of type {kind}, not LORA", where=str(folder))
    return config


def _renamed(pattern: dict[str, Any], old: str, new: Iterable[str]) -> dict[str, Any]:
    return {name: value for key, value in pattern.items() for name in (new if key == old else [key])}
