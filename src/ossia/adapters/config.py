"""adapter_config.json of stock PEFT, and what Ossia makes of it in memory.

On disk an adapter names modules (`target_modules`: attention projections, `embed_tokens`, `lm_head`) and parameters
(`target_parameters`: the experts' and the router's). In memory the layers of `ossia.adapters.layers` take the place
of modules that hold such parameters.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from peft import LoraConfig

from ossia.adapters.layers import LAYERS, PROJECTIONS, MemoryConfig
from ossia.config import LoraSection, LoraTarget
from ossia.errors import UserError

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
VOCABULARY: dict[LoraTarget, str] = {"embeddings": "embed_tokens", "head": "lm_head"}
PARAMETERS: dict[str, LoraTarget] = {
    "mlp.experts.gate_up_proj": "experts",
    "mlp.experts.down_proj": "experts",
    "mlp.router.weight": "router",
}

#: Settings that mean nothing for what a trained adapter computes, or that are read below. Any other that is on is
#: refused, those of later versions of PEFT included.
_HARMLESS = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "lora_alpha", "use_rslora", "target_modules", "target_parameters", "rank_pattern", "alpha_pattern",
    "lora_dropout", "ensure_weight_tying", "init_lora_weights", "megatron_core", "loftq_config", "eva_config",
    "qalora_group_size", "runtime_config",
}  # fmt: skip
#: Initialisations after which the base weights are still the published ones.
_INITS = (True, False, "gaussian", "eva", "orthogonal")


def configuration(settings: LoraSection) -> LoraConfig:
    """Return the configuration on disk of a new adapter."""
    found = settings.ranks_and_alphas()
    modules = ATTENTION if "attention" in found else []
    vocabulary = {name: found[target] for target, name in VOCABULARY.items() if target in found}
    pairs: dict[str, tuple[int, float]] = {}
    if "attention" in found:
        per_rank = settings.alpha / settings.rank
        pairs |= {name: (own, per_rank * own) for name, own in settings.attention_ranks.items()}
    if "experts" in found:
        pairs |= dict.fromkeys(PROJECTIONS, found["experts"])
    if "router" in found:
        pairs["router.weight"] = found["router"]
    pairs |= vocabulary
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=[*modules, *vocabulary],
        target_parameters=[name for name, target in PARAMETERS.items() if target in found] or None,
        rank_pattern={name: own for name, (own, _) in pairs.items()},
        alpha_pattern={name: own for name, (_, own) in pairs.items()},
    )


def in_memory(on_disk: LoraConfig, *, packed: bool) -> MemoryConfig:
    """Return what PEFT is given: the owners of parameters that get our layers are named as modules.

    packed: the experts are. Experts in floating point keep PEFT's own layers for parameters.
    """
    parameters = on_disk.target_parameters or []
    ours = [name for name in parameters if packed or _last(name) not in PROJECTIONS]
    owners = sorted({name.rpartition(".")[0] or "experts" for name in ours})
    modules = on_disk.target_modules
    if isinstance(modules, str):  # a regular expression
        modules = "|".join([f"(?:{modules})", *(rf"(?:.*\.)?{re.escape(owner)}" for owner in owners)])
    else:
        modules = sorted({*(modules or []), *owners})
    config = MemoryConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=on_disk.base_model_name_or_path,
        r=on_disk.r,
        lora_alpha=on_disk.lora_alpha,
        use_rslora=on_disk.use_rslora,
        target_modules=modules,
        target_parameters=[name for name in parameters if name not in ours] or None,
        rank_pattern=on_disk.rank_pattern,
        alpha_pattern=on_disk.alpha_pattern,
    )
    config.on_disk = on_disk
    config._register_custom_module(LAYERS)
    return config


def write_config(on_disk: LoraConfig, folder: Path) -> None:
    """Write adapter_config.json, the same bytes for the same adapter."""
    if not isinstance(on_disk.target_modules, str):
        on_disk.target_modules = sorted(on_disk.target_modules or [])
    on_disk.inference_mode = True
    on_disk.save_pretrained(str(folder))


def read_config(folder: Path) -> LoraConfig:
    """Read adapter_config.json and keep what decides what the adapter computes.

    Raises:
        UserError: not an adapter in PEFT's layout, or one that changes or does what Ossia's model does not; named.
    """
    try:
        found = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        if (kind := found["peft_type"]) != "LORA":
            raise UserError(f"the adapter is of type {kind}, not LORA", where=str(folder))
        _check(found, folder)
        return LoraConfig(
            task_type="CAUSAL_LM",
            base_model_name_or_path=found.get("base_model_name_or_path"),
            r=int(found["r"]),
            lora_alpha=found["lora_alpha"],
            use_rslora=bool(found.get("use_rslora")),
            target_modules=found.get("target_modules") or [],
            target_parameters=found.get("target_parameters") or None,
            rank_pattern=dict(found.get("rank_pattern") or {}),
            alpha_pattern=dict(found.get("alpha_pattern") or {}),
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"not an adapter in PEFT's layout ({error})", where=str(folder)) from None


def _check(found: dict[str, Any], folder: Path) -> None:
    modules = found.get("target_modules") or []
    modules = [] if isinstance(modules, str) else modules
    strange = [name for name in modules if _last(name) not in {*ATTENTION, *VOCABULARY.values()}]
    strange += [name for name in found.get("target_parameters") or [] if not re.fullmatch(_PARAMETER, name)]
    if strange:
        raise UserError(
            f"the adapter changes {', '.join(sorted(strange))}, which Ossia does not load", where=str(folder)
        )
    if (init := found.get("init_lora_weights", True)) not in _INITS:
        raise UserError(f"the adapter was initialised by {init!r}, which changes the base weights", where=str(folder))
    for name, value in found.items():
        if value and name not in _HARMLESS and (name, value) != ("bias", "none"):
            raise UserError(f"the adapter has {name} = {value!r}, which Ossia does not load", where=str(folder))


_PARAMETER = r"((.*\.)?experts\.)?(gate_up_proj|down_proj)|(.*\.)?router\.weight"


def _last(name: str) -> str:
    return name.rpartition(".")[2]
