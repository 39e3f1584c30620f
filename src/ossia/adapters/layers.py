"""Ossia's LoRA layers: for packed experts and the router, which PEFT's layers do not support, and for linear modules.

PEFT puts them on the model through its hook for custom modules. The model's `adapter_layers` maps each type of module
to its layer. Attention and head get `LoraLinear`, which needs less memory than PEFT's; embeddings get PEFT's own layer.

PEFT compares an adapter's rank and alpha patterns with names. With `target_parameters` these are names of parameters
(`mlp.experts.gate_up_proj`). For these layers they are names of modules (`mlp.experts`). The layers therefore look up
their ranks themselves, under the parameters' names, in the configuration as it is on disk.

Shapes: E experts, R LoRA rank, I inputs and O outputs of a matrix, T tokens, D hidden size, K experts per token,
N rows.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter

from ossia.adapters.config import EXPERT_PROJECTIONS, AdapterConfig
from ossia.kernels.dispatch import narrow, outer
from ossia.kernels.reference import LowRank

ADAPTER = "default"


class MemoryConfig(LoraConfig):
    """PEFT's configuration in memory.

    It lists the targets of Ossia's layers as modules. On disk, those of experts and router are parameters.
    """

    on_disk: AdapterConfig
    """The configuration that stock PEFT reads and writes."""


class ExpertsLora(nn.Module, LoraLayer):
    """Packed experts with a LoRA update on one or both projections of every expert, as a PEFT layer.

    It uses the sizes of the experts' module, the device of its blocks, and its method `run`, which takes the updates.
    `lora_gate_up_A`/`B` and `lora_down_A`/`B` hold float32 [E, R, I] and [E, O, R] per adapter name.
    """

    adapter_layer_names = ("lora_gate_up_A", "lora_gate_up_B", "lora_down_A", "lora_down_B")

    def __init__(
        self,
        base_layer: nn.Module,
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
        """Adapter -> projection -> scale. It is multiplied by PEFT's `scaling`, which PEFT can change."""
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, lora_alpha, config=config, target_name=target_name)

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        return module.hidden_size, module.hidden_size

    def update_layer(  # type: ignore[override]
        self, adapter_name: str, r: int, lora_alpha: float, config: MemoryConfig, target_name: str, **_: Any
    ) -> None:
        """Add an adapter, initialised as in PEFT: A uniform as in nn.Linear (Kaiming, a = sqrt 5), B zero."""
        base = self.get_base_layer()
        E, D, F = base.num_experts, base.hidden_size, base.intermediate_size
        device = base.gate_up_proj_blocks.device
        self.r[adapter_name] = self.lora_alpha[adapter_name] = self.scaling[adapter_name] = 1
        self.scales[adapter_name] = {}
        for projection, inputs, outputs in zip(EXPERT_PROJECTIONS, (D, F), (2 * F, D), strict=True):
            parameter = f"{target_name}.{projection}"
            if not config.on_disk.targets_parameter(parameter):
                continue
            rank = config.on_disk.rank_of(parameter)
            self.scales[adapter_name][projection] = config.on_disk.scale_of(parameter)
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
        """Return the updates of gate_up and down; None for a projection without an update."""
        scales = self.scales[adapter]
        found: list[LowRank | None] = []
        for projection in EXPERT_PROJECTIONS:
            name = projection.removesuffix("_proj")
            a, b = getattr(self, f"lora_{name}_A"), getattr(self, f"lora_{name}_B")
            there = projection in scales
            found.append(LowRank(a[adapter], b[adapter], scales[projection] * self.scaling[adapter]) if there else None)
        return found[0], found[1]


class RouterLora(GptOssTopKRouter, LoraLayer):
    """The router with a LoRA update of its weight, as a PEFT layer: lora_A [R, D] and lora_B [E, R] as on disk.

    The update's logits are added in float32, so that an update smaller than a bfloat16 step of the weight has an
    effect. The class is a `GptOssTopKRouter`, so that code that records router logits by that class finds these.
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
        nn.Module.__init__(self)  # the router's own would create a weight
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
        """Add an adapter, initialised as in PEFT's linear layer."""
        on_disk, parameter = config.on_disk, f"{target_name}.weight"
        rank, alpha = on_disk.rank_of(parameter), on_disk.alpha_of(parameter)
        LoraLayer.update_layer(self, adapter_name, rank, alpha, config=config)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits [T, E], scores [T, K] in the input's dtype and indices [T, K] int64. The input is [T, D]."""
        base = self.get_base_layer()
        logits_TE = functional.linear(hidden_states, base.weight, base.bias)
        if not self.disable_adapters:
            adapter = self.active_adapters[0]
            a_RD, b_ER = self.lora_A[adapter].weight, self.lora_B[adapter].weight
            # The input keeps its dtype. A float32 copy of it would also be kept for the backward pass.
            low_TR = hidden_states @ a_RD.to(hidden_states.dtype).T
            update_TE = low_TR.to(b_ER.dtype) @ b_ER.T
            logits_TE = logits_TE.to(update_TE.dtype) + update_TE * self.scaling[adapter]
        top_TK, indices_TK = logits_TE.topk(self.top_k, dim=-1)
        return logits_TE, top_TK.softmax(-1).to(hidden_states.dtype), indices_TK


class LoraLinear(Linear):
    """PEFT's LoRA layer. One plain adapter (no dropout, no variant, not merged) is computed in one autograd step.

    PEFT's own layer keeps the input a second time in float32 and adds the update in float32. In bfloat16 this costs
    more than the update's arithmetic. Here the compute dtype is used throughout, and only the input is kept. The
    matrices are float32 parameters and get float32 gradients.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return x W^T + bias + scale * (x A^T) B^T, [..., O] in x's dtype."""
        if self.disable_adapters or self.merged or args or kwargs or not self._is_plain():
            result: Tensor = super().forward(x, *args, **kwargs)
            return result
        name = self.active_adapters[0]
        base = self.get_base_layer()
        matrices = self.lora_A[name].weight, self.lora_B[name].weight
        y: Tensor = _LowRankLinear.apply(x, base.weight, base.bias, *matrices, self.scaling[name])
        return y

    def _is_plain(self) -> bool:
        if len(self.active_adapters) != 1:
            return False
        name = self.active_adapters[0]
        base = self.get_base_layer()
        return (
            name in self.lora_A
            and name not in self.lora_variant
            and not self.lora_bias[name]
            and isinstance(self.lora_dropout[name], nn.Identity)
            and type(base) is nn.Linear
            and not base.weight.requires_grad
            and (base.bias is None or not base.bias.requires_grad)
        )


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scale: float
    ) -> Tensor:
        ctx.save_for_backward(x, w_OI, a_RI, b_OR)
        ctx.scale = scale
        x_NI = x.flatten(0, -2)
        y_NO = functional.linear(x_NI, w_OI, bias_O)
        low_NR = narrow(x_NI, a_RI.to(x.dtype), True, scale)
        return y_NO.addmm_(low_NR, b_OR.to(x.dtype).T).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, w_OI, a_RI, b_OR = ctx.saved_tensors
        x_NI, grad_NO = x.flatten(0, -2), grad.flatten(0, -2)
        a, b = a_RI.to(x.dtype), b_OR.to(x.dtype)
        high_NR = narrow(grad_NO, b, False, ctx.scale)
        da_RI = outer(high_NR, x_NI, False).to(a_RI.dtype)
        db_OR = outer(narrow(x_NI, a, True, ctx.scale), grad_NO, True).to(b_OR.dtype)
        dx = (grad_NO @ w_OI).addmm_(high_NR, a).view(x.shape) if ctx.needs_input_grad[0] else None
        return dx, None, None, da_RI, db_OR, None
