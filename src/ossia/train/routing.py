"""The routers during training: the experts that they choose, and an optional loss that spreads the load.

A forward hook on each layer's `mlp.router` reads its logits and choices. It counts choices in forward passes only.
Recomputed layers call their hooks again in the backward pass, which does not count again.

The load-balancing loss is that of Switch Transformers (Fedus et al. 2021, eq. 4-6) for k choices. For one layer it is
computed as in transformers' `load_balancing_loss_func`:

    E * sum over experts of (share of tokens that chose the expert) * (mean probability of the expert)

It is k when the load is even. The loss here is the mean over the layers. It is taken over the tokens of one micro-batch
and weighted by the micro-batch's share of the step's tokens on all devices. So a step of equal micro-batches has the
mean of their losses. The gradient of the loss is added at the output of the router, at its scores. So it does not
depend on whether activations are kept or recomputed.

Shapes: T tokens, K choices per token, E experts, L layers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

DEFAULT_BALANCE = 0.001
"""Coefficient of the load-balancing loss if the router is trained and the recipe does not set it.

It is a tenth of the coefficient in pre-training (Switch Transformers: 0.01). That is enough against collapse, and small
enough for a fine-tune to specialise.
"""


class Routers:
    """Hooks on the routers of a model, which count choices and add the load-balancing loss until `close`."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        """
        Args:
            layers: the decoder layers. The output of each `mlp.router` is (logits_TE, scores_TK, indices_TK).
        """
        self.layers = len(layers)
        self._router: Any = layers[0].mlp.router
        self._load: list[Tensor | None] = [None] * self.layers
        self._balance: Tensor | None = None
        self._tokens = 0
        self._counting = False
        self._scale = 0.0
        self._choices: list[list[Tensor]] | None = None
        self._hooks = [
            layer.mlp.router.register_forward_hook(functools.partial(self._seen, number))
            for number, layer in enumerate(layers)
        ]

    @contextmanager
    def training_pass(self, *, scale: float = 0.0, count: bool = True) -> Iterator[None]:
        """Count the choices of a forward pass inside the block. The backward pass comes after the block.

        Args:
            scale: factor of the load-balancing loss (its mean over the layers) in the total loss. 0: no such loss.
            count: False for a micro-batch that is not part of the training data.
        """
        self._counting, self._scale = count, scale
        try:
            yield
        finally:
            self._counting = False  # the scale stays, because recomputed layers need it in the backward pass

    @contextmanager
    def choices(self) -> Iterator[list[list[Tensor]]]:
        """Yield a list that collects the choices of the forward passes inside the block.

        It has a list per layer with an int64 tensor [T, K] per pass.
        """
        self._scale = 0.0
        self._choices = [[] for _ in range(self.layers)]
        try:
            yield self._choices
        finally:
            self._choices = None

    def take(self) -> tuple[Tensor, Tensor]:
        """Return the counts since the last call, and reset them.

        Returns:
            The number of (token, choice) pairs per layer and expert, int64 [L, E].

            The sum over tokens of the balance loss of their micro-batch, and the number of tokens, float32 [2].
        """
        nothing = torch.zeros(self._router.num_experts, dtype=torch.int64, device=self._router.weight.device)
        # A process may have had no micro-batches since the last call.
        load_LE = torch.stack([nothing if load is None else load for load in self._load])
        balance = load_LE.new_zeros((), dtype=torch.float32) if self._balance is None else self._balance
        counted = torch.stack([balance, balance.new_tensor(float(self._tokens))])
        self._load, self._balance, self._tokens = [None] * self.layers, None, 0
        return load_LE, counted

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    def _seen(self, layer: int, router: nn.Module, args: Any, output: tuple[Tensor, Tensor, Tensor]) -> Any:
        logits_TE, scores_TK, indices_TK = output
        if self._choices is not None:
            self._choices[layer].append(indices_TK)
        balanced = self._scale and torch.is_grad_enabled() and logits_TE.requires_grad
        if not (self._counting or balanced):
            return None
        load_E = expert_load(indices_TK, logits_TE.shape[-1])
        if self._counting:
            before = self._load[layer]
            self._load[layer] = load_E if before is None else before + load_E
            self._tokens += len(indices_TK) if layer == 0 else 0
        if not self._scale:
            return None
        loss = balance_loss(logits_TE, load_E)
        if self._counting:
            part = loss.detach() * (len(indices_TK) / self.layers)
            self._balance = part if self._balance is None else self._balance + part
        if not balanced:
            return None
        return logits_TE, _WithGradient.apply(scores_TK, loss, self._scale / self.layers), indices_TK


class _WithGradient(torch.autograd.Function):
    """An autograd function that returns x unchanged and has a second input `loss`, a scalar.

    In the backward pass `loss` gets the gradient `scale`, as if scale * loss were a part of the total loss.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor, scale: float) -> Tensor:
        ctx.scale, ctx.like = scale, (loss.dtype, loss.device)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        dtype, device = ctx.like
        return grad, torch.full((), ctx.scale, dtype=dtype, device=device), None


def balance_loss(logits_TE: Tensor, load_E: Tensor) -> Tensor:
    """Return one layer's load-balancing loss, a float32 scalar.

    Args:
        load_E: how often the T tokens chose each expert (`expert_load`).
    """
    probability_E = logits_TE.float().softmax(-1).mean(0)
    return len(load_E) * (load_E / len(logits_TE) * probability_E).sum()


def expert_load(indices_TK: Tensor, experts: int) -> Tensor:
    """Return how often each expert was chosen, int64 [E]. It is deterministic and does not wait for the device."""
    numbers_E = torch.arange(experts, device=indices_TK.device)
    return (indices_TK[..., None] == numbers_E).sum((0, 1))


def entropy(load_LE: Tensor) -> Tensor:
    """Return the entropy of each layer's load divided by log E, float64 [L]. 1 is an even load, 0 a single expert."""
    share_LE = shares(load_LE)
    return torch.special.entr(share_LE).sum(-1) / torch.tensor(float(share_LE.shape[-1])).log()


def shares(load_LE: Tensor) -> Tensor:
    """Return each expert's share of its layer's (token, choice) pairs, float64 [L, E]."""
    return load_LE.double() / load_LE.sum(-1, keepdim=True).clamp(min=1)


def drift(now: Sequence[Tensor], base: Sequence[Tensor]) -> list[float]:
    """Return per layer the share of the base's choices that the same token does not choose now.

    Args:
        now, base: per layer the choices, int64 [T, K].
    """
    return [
        1.0 - float((b_TK[:, :, None] == n_TK[:, None, :]).any(-1).double().mean())
        for n_TK, b_TK in zip(now, base, strict=True)
    ]


ENTROPY_FLOOR = 0.8
"""A layer has collapsed if the entropy of its load is below this share of the base's entropy on the same tokens."""
LARGEST_FACTOR = 2.0
"""A layer has also collapsed if its largest share is more than this many times the base's largest share."""


def collapsed(now_LE: Tensor, base_LE: Tensor) -> list[int]:
    """Return the numbers of the layers whose load is far more concentrated than the base's on the same tokens.

    The bounds are `ENTROPY_FLOOR` and `LARGEST_FACTOR`. They are relative to the base, because the load of gpt-oss's
    own routers is far from even.

    Args:
        now_LE, base_LE: load of the model and of its base, int64.
    """
    narrow_L = entropy(now_LE) < ENTROPY_FLOOR * entropy(base_LE)
    heavy_L = shares(now_LE).amax(-1) > LARGEST_FACTOR * shares(base_LE).amax(-1)
    return (narrow_L | heavy_L).nonzero()[:, 0].tolist()


def is_trained(model: nn.Module) -> bool:
    """Return whether training changes a router: its own weights or an adapter on it."""
    return any(p.requires_grad and ".mlp.router" in f".{name}" for name, p in model.named_parameters())
