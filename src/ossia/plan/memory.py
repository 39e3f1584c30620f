"""The bytes that training needs at its peak, entry by entry, each with its formula in words.

The formulas of the working sets count the tensors that the present code of attention, experts and loss keeps for the
backward pass. The tests in tests/plan/test_plan.py compare them with the measured peak of real passes. So a change of
that code requires a change here.

Letters in formulas:

    D    hidden size
    F    intermediate size
    A    number of heads * head size
    b    bytes of a value in the compute type
"""

from __future__ import annotations

from dataclasses import dataclass

from ossia.adapters.layout import lora_parameters
from ossia.checkpoint.layout import Shape, bytes_of, expert_matrices
from ossia.config import Recipe
from ossia.plan.inputs import FoundModel, head_rows

FLOAT = 4
LOGITS = 1 << 25
"""Logits of one chunk of the loss. Equals `ossia.model.loss.CHUNK_LOGITS`, whose module would load torch."""
LOGIT_BYTES = 8
"""Bytes alive per logit of a chunk: the float32 value and its exponential."""
RUNTIME = {"cpu": 700_000_000, "cuda": 1_200_000_000}
"""Assumed bytes of the program, by device.

On a CPU: Python with torch, transformers and PEFT. On a GPU: the CUDA context and the libraries' workspaces.
"""


@dataclass(frozen=True)
class Need:
    """One entry of the estimate."""

    name: str
    bytes: int
    how: str
    """The formula or the reason in words."""
    mapped: bool = False
    """Whether the bytes are pages of a mapped file, which the system may drop and read again."""


def lines(recipe: Recipe, model: FoundModel, longest: int, device: str, dtype: str) -> list[Need]:
    """Return the entries whose sum is the peak of device memory, which is main memory on a CPU.

    Args:
        longest: tokens of the longest example.
        device: cpu or cuda.
        dtype: the compute type, bfloat16 or float32.

    Raises:
        UserError: the adapter of `lora.start_from` cannot be read, or does not fit the model.
    """
    b = 2 if dtype == "bfloat16" else FLOAT
    shape = model.shape
    tokens = min(recipe.train.tokens_per_micro_batch, recipe.train.examples_per_step * longest)
    trained = lora_parameters(shape, recipe.lora)
    return [
        *_weights(shape, b, device),
        Need("adapter", FLOAT * trained, f"{trained:,} parameters in float32"),
        Need("gradients", FLOAT * trained, "of the adapter, float32"),
        Need("AdamW", *_moments(recipe, trained)),
        _kept(recipe, shape, tokens, b),
        _largest(recipe, model, tokens, b),
        Need("program", RUNTIME[device], "Python, torch and its libraries (assumed)"),
    ]


def _moments(recipe: Recipe, trained: int) -> tuple[int, str]:
    """Return the bytes of AdamW's two moments, and their formula in words.

    bitsandbytes keeps a float32 scale for each block of 256 values (block-wise quantisation, Dettmers et al. 2021, as
    in its AdamW8bit). Paged moments count as if all of them were on the device.
    """
    if recipe.train.optimizer == "adamw":
        return 2 * FLOAT * trained, "two moments per parameter, float32"
    return 2 * (trained + FLOAT * (trained // 256)), "two moments per parameter, 8 bits with a scale for every 256"


def _weights(shape: Shape, b: int, device: str) -> list[Need]:
    packed = bytes_of(shape, "blocks", "scales")
    rest = bytes_of(shape) - packed
    mapped = device == "cpu"
    mapped_rest = mapped and b == 2
    where = "memory-mapped from the checkpoint" if mapped else "on the GPU"
    rest_how = f"attention, router, embedding, head in {'bfloat16' if b == 2 else 'float32'}"
    return [
        Need("experts", packed, f"packed MXFP4 with its scales, {where}", mapped),
        Need("other weights", rest * b // 2, rest_how + (", memory-mapped" if mapped_rest else ""), mapped_rest),
    ]


def layer_saved(shape: Shape, tokens: int, b: int) -> int:
    """Return the bytes that one layer keeps between its forward and its backward pass without recompute."""
    return tokens * (_attention_saved(shape, b) + _experts_saved(shape, b))


def halves(shape: Shape, b: int) -> int:
    """Return the bytes per token that a layer keeps with recompute: inputs of attention and experts, and routing."""
    return 2 * b * shape.hidden + (8 + b) * shape.experts_per_token + 2 * FLOAT


def layer_peak(shape: Shape, tokens: int, b: int, recompute: bool) -> int:
    """Return the bytes at the peak of one layer's backward pass, without those that layers keep between the passes.

    The peak is the larger of two: an expert in its backward pass, or attention in its backward pass. With recompute,
    attention's kept tensors are computed again just before it.
    """
    experts = tokens * (2 * b + 2 * FLOAT) * shape.hidden + _busiest(shape, tokens) * _expert_work(shape, b)
    attention = tokens * (_attention_work(shape, b) + (_attention_saved(shape, b) if recompute else 0))
    return max(experts + _one_expert(shape, b), attention)


def _busiest(shape: Shape, tokens: int) -> int:
    """Return the number of tokens of the expert with the most tokens, assumed to be twice the mean."""
    return min(tokens, 2 * tokens * shape.experts_per_token // shape.experts)


def _experts_saved(shape: Shape, b: int) -> int:
    """Return bytes per token: input and output of the second norm, routing, gate and up of every chosen expert."""
    return halves(shape, b) + 2 * b * shape.experts_per_token * shape.intermediate


def _expert_work(shape: Shape, b: int) -> int:
    """Return bytes per token of one expert in the backward pass.

    They are inputs and gradients (3 D), gate and up (2 F), and the activation and its gradient (2 F). In float32 the
    gate is plain torch, which takes about eight more tensors of size F.
    """
    return b * (3 * shape.hidden + 4 * shape.intermediate) + (8 * FLOAT * shape.intermediate if b == FLOAT else 0)


def _attention_saved(shape: Shape, b: int) -> int:
    """Return bytes per token: normalised states, queries, keys, values, and the output twice.

    The output is kept as it was computed and in the order of the tokens.
    """
    A, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return b * (shape.hidden + 3 * A + 2 * keys) + FLOAT * shape.heads


def _attention_work(shape: Shape, b: int) -> int:
    """Return bytes per token in the backward pass of a windowed layer.

    * Blocks of queries, outputs and the gradients of both (8 A). Each exists twice: as it was cut, and in the kernel's
      layout.
    * Blocks of keys, values and their gradients. Each has every token twice, because windows overlap.
    * Sums in float32, the mask, and the gradients of the inputs.
    """
    A, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return b * (8 * A + 8 * keys + 2 * shape.hidden) + FLOAT * 6 * keys + (b + 1) * 2 * shape.sliding_window


def _one_expert(shape: Shape, b: int) -> int:
    return max(rows * columns for _, rows, columns in expert_matrices(shape)) * b


def _kept(recipe: Recipe, shape: Shape, tokens: int, b: int) -> Need:
    """Return the entry of the tensors that layers keep between the passes.

    With recompute they are the inputs of the two halves of a layer (attention and experts). Else they are all tensors
    that the backward pass needs.
    """
    if recipe.train.recompute:
        bytes_ = shape.layers * halves(shape, b) * tokens
        if recipe.train.offload:
            how = f"the inputs of one layer's halves, {tokens:,} tokens; those of other layers are in main memory"
            return Need("kept activations", bytes_ // shape.layers, how)
        how = f"the inputs of both halves of each of {shape.layers} layers, {tokens:,} tokens (recompute)"
        return Need("kept activations", bytes_, how)
    bytes_ = shape.layers * layer_saved(shape, tokens, b)
    how = f"all tensors that {shape.layers} layers keep of {tokens:,} tokens"
    return Need("kept activations", bytes_, how)


def _largest(recipe: Recipe, model: FoundModel, tokens: int, b: int) -> Need:
    """Return the entry of working memory: the larger of one layer's work and a chunk of logits.

    The two do not exist at the same time. AdamW's step allocates nothing.
    """
    shape, words = model.shape, head_rows(model, recipe.lora)
    layer = f"one layer of {tokens:,} tokens: attention, experts, one expert in floating point"
    rivals = {
        layer: layer_peak(shape, tokens, b, recipe.train.recompute),
        "a chunk of logits": _logits(words, tokens) * LOGIT_BYTES + 4 * tokens * shape.hidden * b,
    }
    how, bytes_ = max(rivals.items(), key=lambda item: item[1])
    return Need("working memory", bytes_, how)


def _logits(words: int, tokens: int) -> int:
    """Return the logits of the largest chunk: those of as many tokens as fit into LOGITS, but at least one."""
    return words * min(tokens, max(1, LOGITS // words))


def disk_lines(recipe: Recipe, shape: Shape) -> list[Need]:
    """Return the entry of a run's checkpoints on disk.

    Raises:
        UserError: the adapter of `lora.start_from` cannot be read, or does not fit the model.
    """
    trained = lora_parameters(shape, recipe.lora)
    count = recipe.train.keep_checkpoints + 2
    one = FLOAT * trained + _moments(recipe, trained)[0]
    how = f"{count} of {one / 1e6:,.1f} MB (adapter, AdamW): the newest {count - 2}, the best, one being written"
    return [Need("checkpoints", count * one, how)]
