"""The contents of a gpt-oss checkpoint: hyperparameters, config.json, and the name, shape and dtype of every tensor.

The reader, the writer, the tiny and synthetic models, the planner and the exporters share this one description. This
module does not import torch.

Two layouts exist on the hub, with the same bytes in both:

* `tensors`: the Hugging Face layout at the top of the repository, which all code in Ossia uses.
* `original_names`: the `original/` folder of OpenAI's reference code. Names differ, and query, key and value are fused.

Legend: E experts, H hidden, I intermediate, G groups of 32 weights in a row, A heads * head_dim, K kv_heads * head_dim,
V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal

from ossia.errors import UserError
from ossia.kernels.reference import GROUP_SIZE

TensorKind = Literal[
    "embedding", "head", "norm", "attention", "sinks", "router", "expert_bias", "blocks", "scales", "experts"
]

#: Bytes of one element, by the dtype names that safetensors files use.
DTYPE_BYTES: dict[str, int] = {"U8": 1, "BF16": 2, "F16": 2, "F32": 4, "F64": 8}
#: torch's names of those dtypes.
TORCH_DTYPES = {"U8": "uint8", "BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a checkpoint. `dtype` is safetensors' name for it ("BF16", "U8")."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: TensorKind

    @property
    def bytes(self) -> int:
        """Size of the tensor in bytes."""
        return prod(self.shape) * DTYPE_BYTES[self.dtype]

    @property
    def parameters(self) -> int:
        """Number of model parameters in the tensor: two for each byte of MXFP4 blocks, none for scales."""
        return {"blocks": 2 * prod(self.shape), "scales": 0}.get(self.kind, prod(self.shape))


@dataclass(frozen=True)
class Shape:
    """The hyperparameters of a gpt-oss architecture.

    Even layers attend within a sliding window, odd layers to all positions.

    Raises:
        UserError: sizes do not fit MXFP4, or do not fit each other.
    """

    layers: int
    hidden: int = 2880
    intermediate: int = 2880
    experts: int = 32
    experts_per_token: int = 4
    heads: int = 64
    kv_heads: int = 8
    head_dim: int = 64
    vocabulary: int = 201_088
    sliding_window: int = 128
    context: int = 131_072
    rope_theta: float = 150_000.0
    rope_factor: float = 32.0
    rope_beta_fast: float = 32.0
    rope_beta_slow: float = 1.0
    rope_truncate: bool = False
    rope_original_context: int = 4096
    swiglu_limit: float = 7.0
    rms_eps: float = 1e-5

    GPT_OSS_20B: ClassVar[Shape]
    GPT_OSS_120B: ClassVar[Shape]

    def __post_init__(self) -> None:
        for name in ("hidden", "intermediate"):
            if getattr(self, name) % GROUP_SIZE:
                raise UserError(
                    f"{name} size {getattr(self, name)} is not a multiple of {GROUP_SIZE}",
                    why=f"MXFP4 stores expert weights in groups of {GROUP_SIZE} along this axis",
                )
        if self.heads % self.kv_heads:
            raise UserError(f"{self.heads} attention heads cannot share {self.kv_heads} key-value heads evenly")
        if not 1 <= self.experts_per_token <= self.experts:
            raise UserError(f"{self.experts_per_token} experts per token out of {self.experts} experts is impossible")

    @property
    def eos_id(self) -> int:
        """Id of `<|return|>`; in a reduced vocabulary the last id."""
        return min(200_002, self.vocabulary - 1)

    @property
    def pad_id(self) -> int:
        """Id of `<|endoftext|>`; in a reduced vocabulary the last id but one."""
        return min(199_999, self.vocabulary - 2)

    def is_sliding(self, layer: int) -> bool:
        """Return whether this layer attends to the last `sliding_window` positions only."""
        return layer % 2 == 0

    def replace(self, **changes: Any) -> Shape:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str = "config.json") -> Shape:
        """Return the hyperparameters in a config.json, as published or as transformers 5 rewrites it.

        Raises:
            UserError: it is not a gpt-oss configuration, a key is missing, or the layers do not alternate.
        """
        if config.get("model_type") != "gpt_oss":
            raise UserError(
                f"this is a {config.get('model_type') or 'nameless'} model, not gpt-oss",
                where=where,
                do="use openai/gpt-oss-20b, openai/gpt-oss-120b or a model derived from them",
            )
        if config.get("tie_word_embeddings"):
            raise UserError("tie_word_embeddings is true, but gpt-oss has a separate head", where=where)
        rope = {"rope_theta": config.get("rope_theta")}
        for key in ("rope_scaling", "rope_parameters"):
            if not isinstance(found := config.get(key) or {}, Mapping):
                raise UserError(f"{key} is not an object", where=where, do="fetch the file again")
            for name, value in found.items():
                if rope.get(name) is not None and rope[name] != value:
                    what = f"{name} is {_short(rope[name])} and, in {key}, {_short(value)}"
                    raise UserError(what, where=where, why="readers take one or the other", do="fetch the file again")
            rope |= found
        if "rope_type" in rope:
            rope.setdefault("truncate", True)  # transformers' default for yarn
        if rope.get("rope_type", "yarn") != "yarn":
            raise UserError(f"rope type {rope['rope_type']!r} is not gpt-oss's yarn", where=f"{where} rope_scaling")
        figures = {field: config[key] for field, key in _CONFIG_KEYS.items() if config.get(key) is not None}
        figures |= {field: rope[key] for field, key in _ROPE_KEYS.items() if rope.get(key) is not None}
        if "experts_per_token" not in figures and config.get("experts_per_token") is not None:
            figures["experts_per_token"] = config["experts_per_token"]
        for field in ("layers", "hidden", "intermediate", "experts", "vocabulary"):
            if field not in figures:
                raise UserError(f"the key {_CONFIG_KEYS[field]!r} is missing", where=where)
        check_figures(figures, where, {**_CONFIG_KEYS, **_ROPE_KEYS})
        shape = cls(**figures)
        if (config.get("layer_types") or _layer_types(shape)) != _layer_types(shape):
            raise UserError("layer_types do not alternate sliding and full attention", where=f"{where} layer_types")
        return shape


_RANGES: dict[str, tuple[float, float]] = {
    "layers": (1, 1000),
    "hidden": (GROUP_SIZE, 2**17),
    "intermediate": (GROUP_SIZE, 2**17),
    "experts": (1, 2**12),
    "experts_per_token": (1, 2**10),
    "heads": (1, 2**12),
    "kv_heads": (1, 2**12),
    "head_dim": (2, 2**12),
    "vocabulary": (8, 2**24),
    "sliding_window": (1, 2**24),
    "context": (1, 2**31),
    "rope_theta": (1.0, 1e12),
    "rope_factor": (1e-3, 1e6),
    "rope_beta_fast": (1e-3, 1e6),
    "rope_beta_slow": (1e-3, 1e6),
    "rope_original_context": (1, 2**31),
    "swiglu_limit": (1e-6, 1e9),
    "rms_eps": (0.0, 1.0),
}
"""Bounds of the figures. Far beyond any gpt-oss, and small enough that planning and listing stay quick."""


def check_figures(figures: Mapping[str, Any], where: str, keys: Mapping[str, str]) -> None:
    """See that the figures of a configuration have the type and the size of such figures.

    Args:
        figures: by the names of `Shape`.
        keys: these names -> the file's own keys, for the message.

    Raises:
        UserError: names the first key that does not.
    """
    kinds = {field.name: field.type for field in dataclasses.fields(Shape)}
    for name, value in figures.items():
        key = keys.get(name, name)
        if kinds[name] == "bool":
            if not isinstance(value, bool):
                raise UserError(f"{key} is {_short(value)}, not true or false", where=where, do="fetch the file again")
            continue
        least, most = _RANGES[name]
        whole = kinds[name] == "int"
        if type(value) not in ((int,) if whole else (int, float)) or not least <= value <= most:
            kind = "a whole number" if whole else "a number"
            what = f"{key} is {_short(value)}, not {kind} from {least:g} to {most:g}"
            raise UserError(what, where=where, do="fetch the file again")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


Shape.GPT_OSS_20B = Shape(layers=24, experts=32)
Shape.GPT_OSS_120B = Shape(layers=36, experts=128)

_CONFIG_KEYS = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "intermediate": "intermediate_size",
    "experts": "num_local_experts",
    "experts_per_token": "num_experts_per_tok",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocabulary": "vocab_size",
    "sliding_window": "sliding_window",
    "context": "max_position_embeddings",
    "swiglu_limit": "swiglu_limit",
    "rms_eps": "rms_norm_eps",
}
_ROPE_KEYS = {
    "rope_theta": "rope_theta",
    "rope_factor": "factor",
    "rope_beta_fast": "beta_fast",
    "rope_beta_slow": "beta_slow",
    "rope_truncate": "truncate",
    "rope_original_context": "original_max_position_embeddings",
}


def _layer_types(shape: Shape) -> list[str]:
    return ["sliding_attention" if shape.is_sliding(layer) else "full_attention" for layer in range(shape.layers)]


def config_json(shape: Shape, mxfp4: bool = True) -> dict[str, Any]:
    """Return config.json as published with openai/gpt-oss-*, plus transformers 5's spelling of the rope settings.

    Both spellings are needed: transformers 5 writes and reads only `rope_parameters`. Ollama's converter and early
    vLLM read only `rope_theta` and `rope_scaling`. `mxfp4=False` leaves out `quantization_config`, for a checkpoint
    whose experts are bf16.
    """
    rope = {key: getattr(shape, field) for field, key in _ROPE_KEYS.items() if field != "rope_theta"}
    rope["rope_type"] = "yarn"
    config: dict[str, Any] = {key: getattr(shape, field) for field, key in _CONFIG_KEYS.items()}
    config |= {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": shape.eos_id,
        "experts_per_token": shape.experts_per_token,
        "hidden_act": "silu",
        "initial_context_length": shape.rope_original_context,
        "initializer_range": 0.02,
        "layer_types": _layer_types(shape),
        "model_type": "gpt_oss",
        "output_router_logits": False,
        "pad_token_id": shape.pad_id,
        "rope_parameters": {"rope_theta": shape.rope_theta, **rope},
        "rope_scaling": rope,
        "rope_theta": shape.rope_theta,
        "router_aux_loss_coef": 0.9,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    if mxfp4:
        kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
        config["quantization_config"] = {"modules_to_not_convert": kept, "quant_method": "mxfp4"}
    return dict(sorted(config.items()))


def is_packed(config: Any) -> bool:
    """Return whether a model's configuration (transformers' `GptOssConfig`) specifies experts in MXFP4."""
    quantisation = getattr(config, "quantization_config", None) or {}
    return bool(dict(quantisation).get("quant_method") == "mxfp4")


def generation_config_json(shape: Shape) -> dict[str, Any]:
    """Return generation_config.json as published: sample, and end at `<|return|>`, `<|endoftext|>` or `<|call|>`."""
    call, start = min(200_012, shape.vocabulary - 3), min(199_998, shape.vocabulary - 4)
    return {
        "bos_token_id": start,
        "do_sample": True,
        "eos_token_id": [shape.eos_id, shape.pad_id, call],
        "pad_token_id": shape.pad_id,
    }


def tensors(shape: Shape, mxfp4: bool = True) -> Iterator[TensorSpec]:
    """Yield the specification of every tensor of the Hugging Face layout, in the order of the forward pass.

    With `mxfp4` the experts are as published: `*_blocks` U8 [E, rows, G, 16] and `*_scales` U8 [E, rows, G]. Rows are
    outputs. Without it they are dequantised, under transformers' names: BF16 [E, inputs, outputs]. The outputs of
    gate_up alternate between gate (even) and up (odd).
    """
    yield TensorSpec("model.embed_tokens.weight", (shape.vocabulary, shape.hidden), "BF16", "embedding")
    for layer in range(shape.layers):
        yield from layer_tensors(shape, layer, mxfp4)
    yield TensorSpec("model.norm.weight", (shape.hidden,), "BF16", "norm")
    yield TensorSpec("lm_head.weight", (shape.vocabulary, shape.hidden), "BF16", "head")


def layer_tensors(shape: Shape, layer: int, mxfp4: bool = True) -> Iterator[TensorSpec]:
    """Yield the specifications of the tensors of one decoder layer."""
    prefix = f"model.layers.{layer}."
    A, K = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    H, E = shape.hidden, shape.experts
    yield TensorSpec(f"{prefix}input_layernorm.weight", (H,), "BF16", "norm")
    for projection, rows, columns in (("q", A, H), ("k", K, H), ("v", K, H), ("o", H, A)):
        yield TensorSpec(f"{prefix}self_attn.{projection}_proj.weight", (rows, columns), "BF16", "attention")
        yield TensorSpec(f"{prefix}self_attn.{projection}_proj.bias", (rows,), "BF16", "attention")
    yield TensorSpec(f"{prefix}self_attn.sinks", (shape.heads,), "BF16", "sinks")
    yield TensorSpec(f"{prefix}post_attention_layernorm.weight", (H,), "BF16", "norm")
    yield TensorSpec(f"{prefix}mlp.router.weight", (E, H), "BF16", "router")
    yield TensorSpec(f"{prefix}mlp.router.bias", (E,), "BF16", "router")
    for projection, rows, columns in expert_matrices(shape):
        name = f"{prefix}mlp.experts.{projection}"
        if mxfp4:
            yield TensorSpec(f"{name}_blocks", (E, rows, columns // GROUP_SIZE, GROUP_SIZE // 2), "U8", "blocks")
            yield TensorSpec(f"{name}_scales", (E, rows, columns // GROUP_SIZE), "U8", "scales")
        else:
            yield TensorSpec(name, (E, columns, rows), "BF16", "experts")
        yield TensorSpec(f"{name}_bias", (E, rows), "BF16", "expert_bias")


def expert_matrices(shape: Shape) -> tuple[tuple[str, int, int], ...]:
    """Return (name, outputs, inputs) of an expert's two matrices."""
    return ("gate_up_proj", 2 * shape.intermediate, shape.hidden), ("down_proj", shape.hidden, shape.intermediate)


def bytes_of(shape: Shape, *kinds: TensorKind, mxfp4: bool = True) -> int:
    """Return the size in bytes of the tensors of these kinds, or of all tensors if no kind is given."""
    return sum(spec.bytes for spec in tensors(shape, mxfp4) if not kinds or spec.kind in kinds)


def parameters_of(shape: Shape, *kinds: TensorKind) -> int:
    """Return the number of parameters of these kinds, or of all kinds: 20.9 B for the 20b, 116.8 B for the 120b."""
    return sum(spec.parameters for spec in tensors(shape) if not kinds or spec.kind in kinds)


def original_names(shape: Shape) -> dict[str, tuple[str, ...]]:
    """Return the tensor names of the `original/` layout, each with the Hugging Face tensors that it holds.

    These are joined along axis 0. Bytes, nibble order and interleaving are the same in both layouts. Only query, key
    and value are fused (openai/gpt-oss, gpt_oss/torch/weights.py and model.py).
    """
    names: dict[str, tuple[str, ...]] = {"embedding.weight": ("model.embed_tokens.weight",)}
    for layer in range(shape.layers):
        block, prefix = f"block.{layer}.", f"model.layers.{layer}."
        for end in ("weight", "bias"):
            names[f"{block}attn.qkv.{end}"] = tuple(f"{prefix}self_attn.{part}_proj.{end}" for part in "qkv")
            names[f"{block}attn.out.{end}"] = (f"{prefix}self_attn.o_proj.{end}",)
            names[f"{block}mlp.gate.{end}"] = (f"{prefix}mlp.router.{end}",)
        names[f"{block}attn.norm.scale"] = (f"{prefix}input_layernorm.weight",)
        names[f"{block}attn.sinks"] = (f"{prefix}self_attn.sinks",)
        names[f"{block}mlp.norm.scale"] = (f"{prefix}post_attention_layernorm.weight",)
        for number, projection in ((1, "gate_up_proj"), (2, "down_proj")):
            for theirs, ours in (("_weight.blocks", "_blocks"), ("_weight.scales", "_scales"), ("_bias", "_bias")):
                names[f"{block}mlp.mlp{number}{theirs}"] = (f"{prefix}mlp.experts.{projection}{ours}",)
    return names | {"norm.scale": ("model.norm.weight",), "unembedding.weight": ("lm_head.weight",)}


def original_config_json(shape: Shape) -> dict[str, Any]:
    """Return config.json of the `original/` folder (openai/gpt-oss, `ModelConfig` in gpt_oss/torch/model.py)."""
    return {
        "num_hidden_layers": shape.layers,
        "num_experts": shape.experts,
        "experts_per_token": shape.experts_per_token,
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "swiglu_limit": shape.swiglu_limit,
        "head_dim": shape.head_dim,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "sliding_window": shape.sliding_window,
        "initial_context_length": shape.rope_original_context,
        "rope_theta": shape.rope_theta,
        "rope_scaling_factor": shape.rope_factor,
        "rope_ntk_alpha": shape.rope_beta_slow,
        "rope_ntk_beta": shape.rope_beta_fast,
    }
