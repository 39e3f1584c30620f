"""LoRA layers of our own, for what PEFT's cannot be put on: packed experts and the router.

PEFT puts them on the model through its hook for custom modules (`LAYERS`). Attention and head get `LoraLinear`, a PEFT
layer in one autograd step; embeddings get PEFT's own.

PEFT matches the rank and alpha patterns of an adapter with the names of parameters where `target_parameters` is used
(`mlp.experts.gate_up_proj`), and with the names of modules where one of these layers is put in (`mlp.experts`). So the
layers look their ranks up themselves, under the parameters' names, in the configuration as it is on disk.

Shapes: E experts, R LoRA rank, I input and O output size of a projection, T tokens, D hidden size, K experts per token.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils.other import get_pattern_key
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter

from ossia.adapters.linear import LoraLinear
from ossia.kernels.reference import LowRank
from ossia.model.experts import PackedExperts

ADAPTER = "default"
PROJECTIONS = ("gate_up_proj", "down_proj")


class MemoryConfig(LoraConfig):
    """The configuration that PEFT works with: layers of ours are named as modules, whatever they are on disk."""

    on_disk: LoraConfig
    """As stock PEFT reads and writes it."""

    def targets(self, parameter: str) -> bool:
        """Whether the adapter changes the parameter of this name, by PEFT's rule for `target_parameters`."""
        names = self.on_disk.target_parameters or []
        return any(parameter == name or parameter.endswith(f".{name}") for name in names)

    def rank_and_alpha(self, parameter: str) -> tuple[int, float]:
        """Rank and alpha of the parameter of this name, by PEFT's rule for patterns."""
        ranks, alphas = self.rank_pattern, self.alpha_pattern
        return (
            ranks.get(get_pattern_key(ranks.keys(), parameter), self.r),
            alphas.get(get_pattern_key(alphas.keys(), parameter), self.lora_alpha),
        )

    def scale(self, rank: int, alpha: float) -> float:
        """alpha / rank; rank-stabilised LoRA divides by the square root (Kalajdzievski 2023)."""
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


class ExpertsLora(nn.Module, LoraLayer):
    """Packed experts with a LoRA update on one or both projections of every expert, as a PEFT layer.

    lora_gate_up_A/B and lora_down_A/B hold float32 [E, R, I] and [E, O, R] per adapter name.
    """

    adapter_layer_names = ("lora_gate_up_A", "lora_gate_up_B", "lora_down_A", "lora_down_B")

    def __init__(
        self,
        base_layer: PackedExperts,
        adapter_name: str,
        config: MemoryConfig,
        r: int,
        lora_alpha: float,
        target_name: str,
        **_: Any,
    ) -> None:
        super().__init__()
        LoraLayer.__init__(self, base_layer)
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict())
        self.scales: dict[str, dict[str, float]] = {}
        """Adapter -> projection -> scale. PEFT's `scaling`, which it can turn up and down, is a factor on top."""
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, lora_alpha, config=config, target_name=target_name)

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        return module.hidden_size, module.hidden_size

    def update_layer(  # type: ignore[override]
        self, adapter_name: str, r: int, lora_alpha: float, config: MemoryConfig, target_name: str, **_: Any
    ) -> None:
        """Add an adapter: A uniform as nn.Linear's default (Kaiming, a = sqrt 5), B zero, as PEFT does."""
        base = self.get_base_layer()
        E, D, F = base.num_experts, base.hidden_size, base.intermediate_size
        device = base.gate_up_proj_blocks.device
        self.r[adapter_name] = self.lora_alpha[adapter_name] = self.scaling[adapter_name] = 1
        self.scales[adapter_name] = {}
        for projection, inputs, outputs in zip(PROJECTIONS, (D, F), (2 * F, D), strict=True):
            if not config.targets(f"{target_name}.{projection}"):
                continue
            rank, alpha = config.rank_and_alpha(f"{target_name}.{projection}")
            self.scales[adapter_name][projection] = config.scale(rank, alpha)
            name = projection.removesuffix("_proj")
            a_ERI = torch.empty(E, rank, inputs, device=device, dtype=torch.float32).uniform_(-1, 1)
            b_EOR = torch.zeros(E, outputs, rank, device=device, dtype=torch.float32)
            getattr(self, f"lora_{name}_A")[adapter_name] = nn.Parameter(a_ERI / math.sqrt(inputs))
            getattr(self, f"lora_{name}_B")[adapter_name] = nn.Parameter(b_EOR)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, hidden_states: Tensor, router_indices: Tensor, routing_weights: Tensor) -> Tensor:
        base = self.get_base_layer()
        if self.disable_adapters:
            return base(hidden_states, router_indices, routing_weights)
        gate_up, down = self.updates(self.active_adapters[0])
        return base.run(hidden_states, router_indices, routing_weights, gate_up, down)

    def updates(self, adapter: str = ADAPTER) -> tuple[LowRank | None, LowRank | None]:
        """Return the update of gate_up and the update of down; None for a projection that has none."""
        scales = self.scales[adapter]
        found: list[LowRank | None] = []
        for projection in PROJECTIONS:
            name = projection.removesuffix("_proj")
            a, b = getattr(self, f"lora_{name}_A"), getattr(self, f"lora_{name}_B")
            there = projection in scales
            found.append(LowRank(a[adapter], b[adapter], scales[projection] * self.scaling[adapter]) if there else None)
        return found[0], found[1]


class RouterLora(GptOssTopKRouter, LoraLayer):
    """The router with a LoRA update of its weight, as a PEFT layer: lora_A [R, D] and lora_B [E, R] as on disk.

    The update's logits are added in float32, so that one smaller than a bfloat16 step of the weight still counts. It is
    a `GptOssTopKRouter`, so that what records router logits by that class finds the adapted ones.
    """

    def __init__(
        self,
        base_layer: GptOssTopKRouter,
        adapter_name: str,
        config: MemoryConfig,
        r: int,
        lora_alpha: float,
        target_name: str,
        **_: Any,
    ) -> None:
        nn.Module.__init__(self)  # not the router's, which would make a weight
        LoraLayer.__init__(self, base_layer)
        base = self.get_base_layer()
        self.top_k, self.num_experts, self.hidden_dim = base.top_k, base.num_experts, base.hidden_dim
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, lora_alpha, config=config, target_name=target_name)

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        return module.hidden_dim, module.num_experts

    def update_layer(  # type: ignore[override]
        self, adapter_name: str, r: int, lora_alpha: float, config: MemoryConfig, target_name: str, **_: Any
    ) -> None:
        """Add an adapter, initialised as PEFT's on a linear layer."""
        rank, alpha = config.rank_and_alpha(f"{target_name}.weight")
        LoraLayer.update_layer(self, adapter_name, rank, alpha, config=config)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return router logits [T, E], scores [T, K] in the inputs' type and indices [T, K] int64, of [T, D]."""
        base = self.get_base_layer()
        logits_TE = functional.linear(hidden_states, base.weight, base.bias)
        if not self.disable_adapters:
            adapter = self.active_adapters[0]
            a_RD, b_ER = self.lora_A[adapter].weight, self.lora_B[adapter].weight
            # The input stays in its type: as float32 it would be kept a second time for the backward pass.
            low_TR = hidden_states @ a_RD.to(hidden_states.dtype).T
            update_TE = low_TR.to(b_ER.dtype) @ b_ER.T
            logits_TE = logits_TE.to(update_TE.dtype) + update_TE * self.scaling[adapter]
        top_TK, indices_TK = logits_TE.topk(self.top_k, dim=-1)
        return logits_TE, top_TK.softmax(-1).to(hidden_states.dtype), indices_TK


#: Module of the model -> layer that takes its place when it gets an adapter.
LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    PackedExperts: ExpertsLora,
    nn.Linear: LoraLinear,
    GptOssTopKRouter: RouterLora,
}
