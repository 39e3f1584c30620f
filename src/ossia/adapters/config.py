"""adapter_config.json of stock PEFT: the settings that determine an adapter's result, and the adapters Ossia refuses.

The file lists modules (`target_modules`: attention projections, `embed_tokens`, `lm_head`) and parameters
(`target_parameters`: the experts' and the router's). This module imports neither torch nor PEFT.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ossia.config import LoraSection, LoraTarget
from ossia.errors import UserError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
EXPERT_PROJECTIONS = ("gate_up_proj", "down_proj")
"""The experts' parameters, in the order in which the experts' module holds them."""

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_VOCABULARY: dict[LoraTarget, str] = {"embeddings": "embed_tokens", "head": "lm_head"}
_PARAMETERS: dict[str, LoraTarget] = {
    "mlp.experts.gate_up_proj": "experts",
    "mlp.experts.down_proj": "experts",
    "mlp.router.weight": "router",
}
_PARAMETER = r"((.*\.)?experts\.)?(gate_up_proj|down_proj)|(.*\.)?router\.weight"

#: Settings that do not affect a trained adapter's result, and settings that are read below. Any other setting that is
#: on is refused, including those of later versions of PEFT.
_HARMLESS = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "lora_alpha", "use_rslora", "target_modules", "target_parameters", "rank_pattern", "alpha_pattern",
    "lora_dropout", "ensure_weight_tying", "init_lora_weights", "megatron_core", "loftq_config", "eva_config",
    "qalora_group_size", "runtime_config",
}  # fmt: skip
#: Initialisations after which the base weights are still the published ones.
_INITS = (True, False, "gaussian", "eva", "orthogonal")

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class AdapterConfig:
    """The settings that determine an adapter's result, by PEFT's rules.

    Attributes:
        rslora: rank-stabilised LoRA, see `scale_of`.
        target_modules: ends of modules' names, sorted, or one regular expression for whole names.
        target_parameters: ends of parameters' names.
        rank_pattern, alpha_pattern: regular expression for the end of a module's or parameter's name -> its own rank
            or alpha. The first expression that matches counts.
        base_model: name or path of the model that the adapter was trained on.

    Raises:
        ValueError: a name, a rank, an alpha or a regular expression is not valid.
    """

    rank: int
    alpha: float
    rslora: bool = False
    target_modules: tuple[str, ...] | str = ()
    target_parameters: tuple[str, ...] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    base_model: str | None = None

    def __post_init__(self) -> None:
        for name in (*([] if isinstance(self.target_modules, str) else self.target_modules), *self.target_parameters):
            if not isinstance(name, str):
                raise ValueError(f"{name!r} is not a name")
        for rank in (self.rank, *self.rank_pattern.values()):
            if type(rank) is not int or rank < 1:
                raise ValueError(f"{rank!r} is not a rank")
        for alpha in (self.alpha, *self.alpha_pattern.values()):
            if type(alpha) not in (int, float) or not math.isfinite(alpha):
                raise ValueError(f"{alpha!r} is not an alpha")
        whole = [self.target_modules] if isinstance(self.target_modules, str) else []
        for expression in (*whole, *self.rank_pattern, *self.alpha_pattern):
            try:
                re.compile(expression)
            except re.error as error:
                raise ValueError(f"{expression!r} is not a regular expression: {error}") from None

    @classmethod
    def of(cls, settings: LoraSection) -> AdapterConfig:
        """Return the configuration of a new adapter with a recipe's settings."""
        found = settings.ranks_and_alphas()
        modules = _ATTENTION if "attention" in found else ()
        vocabulary = {name: found[target] for target, name in _VOCABULARY.items() if target in found}
        pairs: dict[str, tuple[int, float]] = {}
        if "attention" in found:
            per_rank = settings.alpha / settings.rank
            pairs |= {name: (own, per_rank * own) for name, own in settings.attention_ranks.items()}
        if "experts" in found:
            pairs |= dict.fromkeys(EXPERT_PROJECTIONS, found["experts"])
        if "router" in found:
            pairs["router.weight"] = found["router"]
        pairs |= vocabulary
        return cls(
            rank=settings.rank,
            alpha=settings.alpha,
            target_modules=tuple(sorted([*modules, *vocabulary])),
            target_parameters=tuple(name for name, target in _PARAMETERS.items() if target in found),
            rank_pattern={name: own for name, (own, _) in pairs.items()},
            alpha_pattern={name: own for name, (_, own) in pairs.items()},
        )

    def targets_module(self, name: str) -> bool:
        """Return whether the adapter changes the module of this name (`check_target_module_exists` in PEFT)."""
        if isinstance(self.target_modules, str):
            return re.fullmatch(self.target_modules, name) is not None
        return _is_among(name, self.target_modules)

    def targets_parameter(self, name: str) -> bool:
        """Return whether the adapter changes the parameter of this name (`_inject_parameters` in PEFT)."""
        return _is_among(name, self.target_parameters)

    def rank_of(self, name: str) -> int:
        """Return the rank for the module or parameter of this name."""
        return _matching(self.rank_pattern, name, self.rank)

    def alpha_of(self, name: str) -> float:
        """Return the alpha for the module or parameter of this name."""
        return _matching(self.alpha_pattern, name, self.alpha)

    def scale_of(self, name: str) -> float:
        """Return alpha / rank, or alpha / sqrt(rank) for rank-stabilised LoRA (Kalajdzievski 2023)."""
        rank = self.rank_of(name)
        return self.alpha_of(name) / (math.sqrt(rank) if self.rslora else rank)

    @property
    def remedy(self) -> str:
        """Advice for users whose adapter does not fit a model."""
        named = f", {self.base_model}," if self.base_model else ""
        return f"give the model it was trained on{named} with --model, or as model.path of a recipe"


def read_config(folder: Path) -> AdapterConfig:
    """Return the settings in adapter_config.json that determine the adapter's result.

    Raises:
        UserError: not an adapter in PEFT's layout, or one with settings that Ossia does not load. The message names
            them.
    """
    file = folder / CONFIG_FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        _check(found, str(file))
        modules = found.get("target_modules") or ()
        return AdapterConfig(
            rank=found["r"],
            alpha=found["lora_alpha"],
            rslora=bool(found.get("use_rslora")),
            target_modules=modules if isinstance(modules, str) else tuple(sorted(modules)),
            target_parameters=tuple(found.get("target_parameters") or ()),
            rank_pattern=dict(found.get("rank_pattern") or {}),
            alpha_pattern=dict(found.get("alpha_pattern") or {}),
            base_model=found.get("base_model_name_or_path") or None,
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"not an adapter in PEFT's layout ({error})", where=str(file)) from None


def _check(found: Mapping[str, Any], where: str) -> None:
    """Raise UserError for an adapter that Ossia does not load. The same policy holds in all stages."""
    if (kind := found["peft_type"]) != "LORA":
        raise UserError(f"the adapter is of type {kind}, not LORA", where=where)
    if missing := [key for key in ("r", "lora_alpha") if key not in found]:
        raise UserError(f"the key {missing[0]!r} is missing", where=where)
    strange = [name for name in found.get("target_parameters") or [] if not re.fullmatch(_PARAMETER, name)]
    if strange:
        raise not_adaptable(strange, where)
    if (init := found.get("init_lora_weights", True)) not in _INITS:
        raise UserError(f"the adapter was initialised by {init!r}, which changes the base weights", where=where)
    for name, value in found.items():
        if value and name not in _HARMLESS and (name, value) != ("bias", "none"):
            raise UserError(f"the adapter has {name} = {value!r}, which Ossia does not load", where=where)


def not_adaptable(names: Iterable[str], where: str) -> UserError:
    """Return the error for an adapter that changes these modules or parameters."""
    return UserError(
        f"the adapter changes {', '.join(sorted(names))}, which Ossia does not load",
        where=where,
        why="Ossia adapts only attention projections, experts, routers, embed_tokens and lm_head",
    )


def _is_among(name: str, ends: Iterable[str]) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in ends)


def _matching(pattern: Mapping[str, _Value], name: str, default: _Value) -> _Value:
    """Return the value of the first expression that matches the end of the name (`get_pattern_key` in PEFT)."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", name)), default)
