"""The work of a recipe: steps, micro-batches, arithmetic and, with measured speeds, seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ossia.adapters.layout import lora_targets
from ossia.checkpoint.layout import Shape
from ossia.config import Recipe
from ossia.plan.inputs import Examples, FoundModel, head_rows
from ossia.plan.speed import Speed
from ossia.sequences.sharing import Obstacles, Sharing, decide

SLOWER, FASTER = 2.0, 0.5
"""Factors from a time estimate to the ends of its range.

Assumed: caches, clock speeds and other programs can change the time by that much.
"""


def recipe_obstacles(recipe: Recipe) -> Obstacles:
    """Return the obstacles to sharing prefixes that can be read from a recipe.

    Raises:
        UserError: the adapter of `lora.start_from` cannot be read.
    """
    balanced = "router" in lora_targets(recipe.lora) and recipe.train.balance_loss != 0
    return Obstacles(balance_loss=balanced)


def foretell_sharing(recipe: Recipe, examples: Examples) -> Sharing:
    """Return the decision about `train.share_prefixes` that training is expected to make.

    Raises:
        UserError: training would refuse the setting, or the adapter of `lora.start_from` cannot be read.
    """
    return decide(recipe.train.share_prefixes, recipe_obstacles(recipe), examples.saving)


def supervised_share(examples: Examples, sharing: Sharing) -> float:
    """Return the share of the computed tokens that need logits, because they are supervised: 0..1."""
    return min(1.0, examples.trained / max(1, examples.computed(sharing)))


@dataclass(frozen=True)
class Work:
    """Numbers of steps, micro-batches, computed tokens and validations in the whole training."""

    steps: int
    micro_batches: int
    tokens: int
    validations: int


def work(recipe: Recipe, examples: Examples, sharing: Sharing) -> Work:
    """Return the numbers of steps, micro-batches, tokens and validations of a recipe with these examples."""
    settings = recipe.train
    steps = settings.total_steps(examples.count)
    mean = examples.computed(sharing) / max(1, examples.count)
    per_step = mean * min(settings.examples_per_step, examples.count)
    micro_batches = steps * math.ceil(per_step / settings.tokens_per_micro_batch)
    validations = math.ceil(steps / settings.evaluate_every) if examples.validation_tokens else 0
    return Work(steps, micro_batches, round(steps * per_step), validations)


def projection_parameters(shape: Shape) -> int:
    """Return the number of parameters of the four attention projections of one layer."""
    return 2 * shape.hidden * (shape.heads + shape.kv_heads) * shape.head_dim


def layer_parameters(shape: Shape) -> int:
    """Return the number of parameters that multiply each token in one layer: attention, router and chosen experts."""
    D = shape.hidden
    return projection_parameters(shape) + D * shape.experts + 3 * D * shape.intermediate * shape.experts_per_token


def recomputed_parameters(shape: Shape) -> int:
    """Return the number of `layer_parameters` that multiply each token again when a layer is recomputed.

    They are those of attention and of the experts' first projection.
    """
    return projection_parameters(shape) + 2 * shape.hidden * shape.intermediate * shape.experts_per_token


def flops_per_token(shape: Shape, *, recompute: bool = True, supervised: float = 1.0) -> dict[str, float]:
    """Return the floating-point operations per token of LoRA training, under "forward" and "training" (both passes).

    A multiplied parameter counts as two operations. Attention scores are not counted. A frozen weight takes one
    product in the forward pass and one in the backward pass, for the gradient of its input. It has no gradient of its
    own. The loss computes its gradient in the forward pass, so the head is never recomputed.

    Args:
        recompute: whether layers are recomputed in the backward pass.
        supervised: share of the tokens that need logits. Other tokens do not pass through the head.
    """
    layers, head = 2 * shape.layers * layer_parameters(shape), 2 * shape.hidden * shape.vocabulary * supervised
    again = 2 * shape.layers * recomputed_parameters(shape) if recompute else 0
    return {
        "forward": layers + head,
        "training": 2 * layers + again + 2 * head,
    }


def seconds(recipe: Recipe, model: FoundModel, examples: Examples, sharing: Sharing, speed: Speed) -> dict[str, float]:
    """Return the seconds of each part of the training, from speeds measured with the code that training runs.

    The parts are "experts", "attention", "head and loss" and "validation".
    """
    shape, todo = model.shape, work(recipe, examples, sharing)
    # With recompute, attention runs forward twice. The experts run again only their first projection, which is two
    # thirds of their work.
    forwards, expert_forwards = (2, 5 / 3) if recipe.train.recompute else (1, 1)
    share = supervised_share(examples, sharing)
    checked = todo.validations * examples.validation_tokens
    checks = math.ceil(checked / recipe.train.tokens_per_micro_batch)
    D, K = shape.hidden, shape.experts_per_token
    context = examples.tokens / max(1, examples.count)
    projections = 2 * projection_parameters(shape) * shape.layers
    head = 2 * D * head_rows(model, recipe.lora) * share
    # A windowed layer multiplies blocks of queries with the keys of two windows.
    windowed = sum(map(shape.is_sliding, range(shape.layers)))
    full = shape.layers - windowed

    def cost(forward: int, experts: float, backward: int, micro_batches: int, tokens: int) -> dict[str, float]:
        experts_met = micro_batches * min(shape.experts, tokens * K // max(1, micro_batches)) * shape.layers
        scores = tokens * shape.heads * (full * context + windowed * min(context, 2 * shape.sliding_window))
        return {
            "experts": experts_met * (experts * speed.expert_forward + backward * speed.expert_backward)
            + tokens * K * shape.layers * (experts * speed.token_forward + backward * speed.token_backward),
            "attention": scores * (forward * speed.score_forward + backward * speed.score_backward)
            + tokens * projections * (forward + backward) / speed.flops,
            "head and loss": tokens * head * (1 + backward) / speed.flops,
        }

    training = cost(forwards, expert_forwards, 1, todo.micro_batches, todo.tokens)
    validation = sum(cost(1, 1, 0, checks, checked).values())
    return {**training, "validation": validation}
