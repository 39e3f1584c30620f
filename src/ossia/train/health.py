"""Reports on the routers: an event about load and drift every `train.evaluate_every` steps, and a warning of collapse.

Load and entropy are those of the training tokens since the last report. Drift and collapse compare the model with its
base (the adapter switched off). They use the same few examples each time, so only the model changes between reports.

Shapes: E experts, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ossia import events
from ossia.sequences.example import TrainingExample
from ossia.train import fsdp, routing
from ossia.train.callbacks import Watch
from ossia.train.steps import cut, unsupervised

if TYPE_CHECKING:
    from ossia.train.trainer import OssiaTrainer

PROBE_TOKENS = 1024
"""Most tokens for the comparison of the model with its base, unless the first example alone has more."""


class RoutingHealth(TrainerCallback):
    """A callback that reports every `every` steps and at the last one.

    All processes of a job run it on the same examples, the probe.
    """

    def __init__(
        self, examples: Sequence[TrainingExample], tokens_per_micro_batch: int, every: int, emit: Watch
    ) -> None:
        """
        Args:
            examples: the probe is the first of them, up to `PROBE_TOKENS` tokens.
            tokens_per_micro_batch: most tokens that go through the model at once.
            every: number of steps between reports.
            emit: writes an event.
        """
        self.probe = [unsupervised(group) for group in cut(_first(examples, PROBE_TOKENS), tokens_per_micro_batch)]
        self.every, self.emit = every, emit
        self.trainer: OssiaTrainer | None = None
        self._base: list[Tensor] | None = None
        self._warned: set[int] = set()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        is_due = state.global_step % self.every == 0 or state.global_step >= state.max_steps
        if "loss" not in logs or not is_due:  # evaluations and this report are logged too, without "loss"
            return
        assert self.trainer is not None
        load_LE, balance, tokens = self.trainer.taken_load()
        changed = self._compare()
        shares_LE, entropy_L = routing.shares(load_LE), routing.entropy(load_LE)
        self.emit(
            events.Routing(
                step=state.global_step,
                tokens=tokens,
                load=[[round(share, 5) for share in shares_E] for shares_E in shares_LE.tolist()],
                entropy=[round(value, 4) for value in entropy_L.tolist()],
                drift=[round(value, 4) for value in changed],
                balance_loss=balance,
            )
        )
        summary = {
            "routing_entropy_mean": float(entropy_L.mean()),
            "routing_entropy_least": float(entropy_L.min()),
            "routing_load_largest": float(shares_LE.max()),
            "routing_drift_mean": sum(changed) / len(changed),
            "routing_drift_most": max(changed),
        }
        self.trainer.log(summary if balance is None else {**summary, "routing_balance_loss": balance})

    def _compare(self) -> list[float]:
        """Return the drift of each layer, and emit a warning of layers that have collapsed since the last report."""
        assert self.trainer is not None
        model = self.trainer.model
        if self._base is None:
            with _adapter_off(model):
                self._base = self._choices(model)
        now = self._choices(model)
        experts = model.config.num_local_experts
        loads = [
            torch.stack([routing.expert_load(chosen, experts) for chosen in choices]) for choices in (now, self._base)
        ]
        collapsed = set(routing.collapsed(*loads))
        if fresh := sorted(collapsed - self._warned):
            entropies = [routing.entropy(load_LE)[fresh].mean().item() for load_LE in loads]
            names = ", ".join(map(str, fresh))
            self.emit(
                events.Note(
                    level="warning",
                    message=f"the routing of layer{'s' * (len(fresh) > 1)} {names} has collapsed: the entropy of the "
                    f"load is {entropies[0]:.2f}, the base has {entropies[1]:.2f} on the same tokens",
                )
            )
        self._warned = collapsed
        return routing.drift(now, self._base)

    def _choices(self, model: Any) -> list[Tensor]:
        """Return per layer the experts that the tokens of the probe choose, int64 [T, K]: T tokens, K choices."""
        assert self.trainer is not None
        was_training = model.training
        model.eval()
        with torch.no_grad(), self.trainer.routers.choices() as chosen:
            for inputs in self.probe:
                model(**self.trainer.on_device(inputs))
        model.train(was_training)
        return [torch.cat(parts) for parts in chosen]


@contextmanager
def _adapter_off(model: PeftModel) -> Iterator[None]:
    """Switch the adapter off inside the block.

    PEFT freezes an adapter when it switches it off, and makes it trainable when it switches it on. So parameters that
    were frozen before are frozen again. If the model is sharded, its parameters must be the shards both times.
    """
    fsdp.reshard(model)
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    try:
        with model.disable_adapter():
            yield
            fsdp.reshard(model)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _first(examples: Sequence[TrainingExample], tokens: int) -> list[TrainingExample]:
    """Return the first examples, as many as have at most `tokens` tokens together, but at least one."""
    taken: list[TrainingExample] = []
    for example in examples:
        tokens -= len(example)
        if tokens < 0 and taken:
            break
        taken.append(example)
    return taken
