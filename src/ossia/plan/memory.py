"""Bytes that training needs at its peak, line by line, each with the formula in words.

The formulas of the working sets count the tensors that the present attention, experts and loss keep for the backward
pass. tests/plan/test_plan.py holds them against the measured peak of real passes, so they move when the code moves.

Letters: T tokens of a micro-batch, D hidden size, F intermediate size, E experts, K experts per token,
H heads, A heads * head size, b bytes of the compute type.
"""

from __future__ import annotations

from dataclasses import dataclass

from ossia.adapters.layout import lora_parameters
from ossia.checkpoint.layout import Shape, bytes_of, expert_matrices
from ossia.config import Recipe
from ossia.plan.inputs import FoundModel, head_rows

FLOAT = 4
LOGITS = 1 << 25
"""Logits of one chunk of the loss: `ossia.model.loss.CHUNK_LOGITS`, repeated because that module loads torch."""
LOGIT_BYTES = 8
"""Bytes alive per logit of a chunk: the float32 value and its exponential."""
RUNTIME = {"cpu": 700_000_000, "cuda": 1_200_000_000}
"""Python with torch, transformers and PEFT; on a GPU the CUDA context and the libraries' workspaces. Assumed."""


@dataclass(frozen=True)
class Need:
    """One entry of the estimate. `mapped`: pages of a file, which the system may drop and read again."""

    name: str
    bytes: int
    how: str
    mapped: bool = False


def lines(recipe: Recipe, model: FoundModel, longest: int, device: str, dtype: str) -> list[Need]:
    """All entries whose sum is the peak of device memory (of main memory on a CPU).

    Args:
        longest: tokens of the longest example.
        device: cpu or cuda. dtype: bfloat16 or float32.
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
    """Bytes of AdamW's two moments, and how. bitsandbytes keeps a float32 scale for each block of 256 values (Dettmers
    et al. 2021, block-wise quantisation; its AdamW8bit), and paged ones count as if they were all on the device.
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
    """Bytes that one layer keeps between its forward and its backward pass when it recomputes nothing."""
    return tokens * (_attention_saved(shape, b) + _experts_saved(shape, b))


def halves(shape: Shape, b: int) -> int:
    """Bytes per token that a layer keeps with recompute: the inputs of attention and of the experts, the routing."""
    return 2 * b * shape.hidden + (8 + b) * shape.experts_per_token + 2 * FLOAT


def layer_peak(shape: Shape, tokens: int, b: int, recompute: bool) -> int:
    """Bytes alive at the worst moment of one layer's backward pass, beyond what layers keep between the passes.

    Two moments compete: an expert in the middle of its backward pass, and attention in the middle of its own, whose
    kept tensors are made again just before with recompute.
    """
    experts = tokens * (2 * b + 2 * FLOAT) * shape.hidden + _busiest(shape, tokens) * _expert_work(shape, b)
    attention = tokens * (_attention_work(shape, b) + (_attention_saved(shape, b) if recompute else 0))
    return max(experts + _one_expert(shape, b), attention)


def _busiest(shape: Shape, tokens: int) -> int:
    """Tokens of the expert that has most, taken to be twice the mean."""
    return min(tokens, 2 * tokens * shape.experts_per_token // shape.experts)


def _experts_saved(shape: Shape, b: int) -> int:
    """Per token: what the second norm takes and gives, the routing, gate and up of every chosen expert."""
    return halves(shape, b) + 2 * b * shape.experts_per_token * shape.intermediate


def _expert_work(shape: Shape, b: int) -> int:
    """Per token of one expert, backward: inputs and gradients (3 D), gate and up (2 F), the activation and its gradient
    (2 F); float32, whose gate is plain torch, about eight more of size F.
    """
    return b * (3 * shape.hidden + 4 * shape.intermediate) + (8 * FLOAT * shape.intermediate if b == FLOAT else 0)


def _attention_saved(shape: Shape, b: int) -> int:
    """Per token: normed states, queries, keys, values, the output twice (as computed, and in the order of tokens)."""
    A, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return b * (shape.hidden + 3 * A + 2 * keys) + FLOAT * shape.heads


def _attention_work(shape: Shape, b: int) -> int:
    """Per token, in the backward pass of a windowed layer: blocks of queries, outputs and both their gradients, twice,
    as they are cut and as the kernel takes them; of keys and values and their gradients (each twice, because windows
    overlap); sums in float32; the mask; and the gradients of what comes in.
    """
    A, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return b * (8 * A + 8 * keys + 2 * shape.hidden) + FLOAT * 6 * keys + (b + 1) * 2 * shape.sliding_window


def _one_expert(shape: Shape, b: int) -> int:
    return max(rows * columns for _, rows, columns in expert_matrices(shape)) * b


def _kept(recipe: Recipe, shape: Shape, tokens: int, b: int) -> Need:
    """What lies between the passes through the layers: the inputs of their halves with recompute, else everything."""
    if recipe.train.recompute:
        bytes_ = shape.layers * halves(shape, b) * tokens
        if recipe.train.offload:
            how = f"the inputs of one layer's halves, {tokens:,} tokens; the others' lie in main memory"
            return Need("kept activations", bytes_ // shape.layers, how)
        how = f"the inputs of both halves of each of {shape.layers} layers, {tokens:,} tokens (recompute)"
        return Need("kept activations", bytes_, how)
    bytes_ = shape.layers * layer_saved(shape, tokens, b)
    how = f"all that {shape.layers} layers keep of {tokens:,} tokens"
    return Need("kept activations", bytes_, how)


def _largest(recipe: Recipe, model: FoundModel, tokens: int, b: int) -> Need:
    """The larger of what is never alive together: a layer's work and a chunk of logits. AdamW's step makes nothing."""
    shape, words = model.shape, head_rows(model, recipe.lora)
    layer = f"one layer of {tokens:,} tokens: attention, experts, one expert in floating point"
    rivals = {
        layer: layer_peak(shape, tokens, b, recipe.train.recompute),
        "a chunk of logits": _logits(words, tokens) * LOGIT_BYTES + 4 * tokens * shape.hidden * b,
    }
    how, bytes_ = max(rivals.items(), key=lambda item: item[1])
    return Need("working memory", bytes_, how)


def _logits(words: int, tokens: int) -> int:
    """Logits of the largest chunk: of as many tokens as LOGITS holds, but at least one."""
    return words * min(tokens, max(1, LOGITS // words))


def disk_lines(recipe: Recipe, shape: Shape) -> list[Need]:
    """Bytes of a run's checkpoints."""
    trained = lora_parameters(shape, recipe.lora)
    count = recipe.train.keep_checkpoints + 2
    one = FLOAT * trained + _moments(recipe, trained)[0]
    how = f"{count} of {one / 1e6:,.1f} MB (adapter, AdamW): the newest {count - 2}, the best, one being written"
    return [Need("checkpoints", count * one, how)]
