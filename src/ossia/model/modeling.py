"""gpt-oss as Ossia trains it: transformers' GptOssForCausalLM with its public extension points filled in.

* the attention implementation "ossia" (`ossia.model.attention`), registered through AttentionInterface;
* the experts module, which holds the packed MXFP4 bytes when the checkpoint does (`ossia.model.experts`);
* the layers and norms, which keep and recompute less than transformers' own (`ossia.model.layer`);
* forward, which takes the flat batch of `ossia.model.batch` and computes the loss in chunks.

Everything else is transformers' own code, so `generate`, Trainer, accelerate, PEFT and other people's trainers work.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter
from transformers.utils import ModelOutput

from ossia.checkpoint.layout import is_packed
from ossia.errors import UserError
from ossia.model import attention, batch
from ossia.model.experts import PackedExperts
from ossia.model.layer import DecoderLayer, RMSNorm
from ossia.model.loss import Head, HeadUpdate, linear_cross_entropy

attention.register()


@dataclass
class SupervisedOutput(ModelOutput):
    """The loss of a flat batch, or the hidden states of a batch without triples.

    Attributes:
        loss: scalar, the weighted sum over the triples divided by the denominator.
        nll: [S], the negative log-likelihood of each triple, detached.
        hidden: [T, D], the input of the output layer. Only set without triples, when the others are None.
    """

    loss: Tensor | None = None
    nll: Tensor | None = None
    hidden: Tensor | None = None


class OssiaForCausalLM(GptOssForCausalLM):
    """A transformers model that takes flat batches and whose experts may stay in four bits.

    A config with `quantization_config.quant_method == "mxfp4"` gives packed experts. Without it, the experts are
    transformers' own in floating point.
    """

    _no_split_modules = ["DecoderLayer"]  # noqa: RUF012 - transformers declares it so
    # Without this value, transformers searches the source of the gpt-oss class that is created first in a process.
    # Whether floating-point experts are grouped would then depend on that class.
    _can_set_experts_implementation_cached_value = True

    def __init__(self, config: GptOssConfig) -> None:
        config._attn_implementation = attention.NAME
        super().__init__(config)
        self.model.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        for index in range(config.num_hidden_layers):
            self.model.layers[index] = layer = DecoderLayer(config, index)
            if is_packed(config):
                layer.mlp.experts = PackedExperts(config)
        self.post_init()  # the new layers have no initial weights yet
        self._head: tuple[tuple[int, int], Head] | None = None

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        segments: Tensor | None = None,
        ancestors: Tensor | None = None,
        rows: Tensor | None = None,
        targets: Tensor | None = None,
        weights: Tensor | None = None,
        denominator: Tensor | float | None = None,
        num_items_in_batch: Tensor | int | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """Return the loss of a flat batch (`FlatBatch.inputs()` and a denominator), or the result of GptOssForCausalLM.

        Args:
            input_ids, position_ids: [1, T] of a flat batch, or [B, T] as in transformers.
            labels: [B, T], -100 where not supervised. They make a flat batch, so that other trainers get the same loss.
            segments, ancestors, rows, targets, weights: see `FlatBatch`.
            denominator: the divisor of the weighted sum. Default: the sum of the weights.
            num_items_in_batch: the denominator, under the name that transformers' Trainer uses.
            logits_to_keep: number of last positions whose logits `generate` needs; 0 means all.

        Returns:
            `SupervisedOutput` for a flat batch or with labels; else the result of GptOssForCausalLM (logits).
        """
        denominator = num_items_in_batch if denominator is None else denominator
        if labels is not None:
            assert input_ids is not None
            flat = batch.from_padded(input_ids, attention_mask, labels, position_ids)
            return self.forward(**flat.inputs(), denominator=denominator)
        if segments is None:
            return super().forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                logits_to_keep=logits_to_keep,
                **kwargs,
            )
        assert position_ids is not None and ancestors is not None
        forest = batch.Segments.of(segments, ancestors, position_ids[0])
        hidden_TD = self.model(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask={"full_attention": forest, "sliding_attention": forest},
            use_cache=False,
        ).last_hidden_state[0]
        if rows is None:
            return SupervisedOutput(hidden=hidden_TD)
        assert targets is not None and weights is not None
        with self._whole_head() as head:
            total, nll_S = linear_cross_entropy(hidden_TD[rows], head, targets, weights)
        return SupervisedOutput(loss=total / (weights.sum() if denominator is None else denominator), nll=nll_S)

    @contextlib.contextmanager
    def _whole_head(self) -> Iterator[Head]:
        """Yield the output layer, gathered if it is sharded.

        FSDP2 gathers a sharded module when the module is called. Here only its weight is read.
        """
        is_sharded = hasattr(self.lm_head, "unshard")
        if is_sharded:
            self.lm_head.unshard()
        try:
            yield self.head()
        finally:
            if is_sharded:
                self.lm_head.reshard()

    @property
    def adapter_layers(self) -> dict[type[nn.Module], type[nn.Module]]:
        """Type of module -> layer that replaces it when it gets an adapter."""
        from ossia.adapters import layers  # PEFT takes a second to load

        return {
            PackedExperts: layers.ExpertsLora,
            nn.Linear: layers.LoraLinear,
            GptOssTopKRouter: layers.RouterLora,
        }

    def head(self) -> Head:
        """Return the output layer for the loss. Equal rows of a frozen head are grouped, once per weight.

        Raises:
            UserError: the adapter on `lm_head` is not one plain LoRA.
        """
        weight = self.lm_head.weight  # for a LoRA layer, the weight of its base
        if hasattr(self.lm_head, "lora_A") and (update := head_update(self.lm_head)):
            return Head(weight, update=update)
        key = (weight.data_ptr(), weight._version)
        if self._head is None or self._head[0] != key or weight.requires_grad:
            self._head = (key, Head.of(weight))
        return self._head[1]


def head_update(layer: Any) -> HeadUpdate | None:
    """Return the update that a PEFT layer for `lm_head` currently adds; None if its adapters are off or merged.

    Raises:
        UserError: it is not one plain LoRA (several adapters, DoRA and the like, dropout in training).
    """
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if layer.disable_adapters or layer.merged or not active:
        return None
    name = active[0]
    drops = layer.training and getattr(layer.lora_dropout[name], "p", 0)
    if len(active) > 1 or layer.lora_variant or drops or layer.lora_B[name].bias is not None:
        raise UserError("the loss supports only plain LoRA on lm_head: one adapter, without dropout, bias or variants")
    return HeadUpdate(layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name])


def empty(config: GptOssConfig, dtype: torch.dtype) -> OssiaForCausalLM:
    """Return a model whose parameters have shapes and dtypes but no memory (meta device). Its buffers are computed."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            model = OssiaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    # The rotary frequencies are computed, not stored, so they are computed again outside the meta device.
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
    return model
