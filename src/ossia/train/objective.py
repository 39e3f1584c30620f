"""The interface of a training objective: the data, the loss of a micro-batch, and the validation metrics.

An objective is one file with one subclass of `Objective`. The session (`session.py`) does everything else: the run, the
model, the adapter, the optimiser's steps, checkpoints, resuming, events, several processes.

A session calls the methods in this order:

* at the start: `units` and `fingerprint`, `prepare` with the model, `callbacks`
* per step: `collate`, `weight` of each micro-batch, `denominator` once, `loss` of each micro-batch
* per evaluation: `collate`, `metrics` of each micro-batch, `summary` once
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from torch import Tensor, nn
from transformers import TrainerCallback

from ossia.sequences.example import TrainingExample
from ossia.train.callbacks import Watch
from ossia.train.steps import idle_micro_batch

MicroBatch = Mapping[str, Tensor]
"""Tensors that go through the model at once. One of them is `input_ids`, whose elements are counted as tokens."""


class StepBatch(TypedDict):
    """The part of one step that this process computes."""

    micro_batches: list[dict[str, Tensor]]
    """Inputs of the model, on the CPU. May be empty while another process has some."""
    names: list[Any]
    """One entry per micro-batch, for `metrics`."""
    example_tokens: int
    """Tokens of the step's units over all processes, with each unit counted separately."""
    repeated_tokens: int
    """Tokens of shared prefixes that are computed again in another micro-batch, over all processes."""
    examples: int
    """Number of units of the step, over all processes."""
    seconds: float
    """Duration of making the batch."""


@dataclass(frozen=True)
class Share:
    """The part of every step that belongs to this process: number `process` (from 0) of `processes`."""

    process: int = 0
    processes: int = 1


class Objective(ABC):
    """A loss and its data. Subclasses implement the abstract members."""

    metric_names: tuple[str, ...] = ("loss",)
    """All names that `metrics` yields, the same in all processes."""

    @property
    @abstractmethod
    def units(self) -> Sequence[Any]:
        """The training units: examples, pairs of answers or prompts. A step has a fixed number of them.

        A unit with the attributes `conversation` and `turn` stays next to the other turns of its conversation
        (`ossia.sequences.order`).
        """

    @property
    def validation(self) -> Sequence[Any]:
        """Held-back units for validation. Empty: no evaluation takes place."""
        return ()

    @property
    def probe(self) -> Sequence[TrainingExample]:
        """Examples for the comparison of the routers with those of the base. Empty: no reports on routing."""
        return ()

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a hash of the data, to check that a resumed run has the same data."""

    @abstractmethod
    def trained_tokens(self) -> int:
        """Return the number of supervised tokens in one epoch, for the event `Started`."""

    def prepare(self, model: Any, balance: float) -> Iterable[str]:
        """Choose the settings that depend on the model, and return sentences for users about the choices.

        Args:
            model: a `PeftModel` around an `OssiaForCausalLM`, before it is sharded.
            balance: coefficient of the load-balancing loss, which the session adds.
        """
        return ()

    def callbacks(self, folder: Path, emit: Watch) -> Sequence[TrainerCallback]:
        """Return additional callbacks of the objective.

        Args:
            folder: folder of the base model.
            emit: writes an event.
        """
        return ()

    @abstractmethod
    def collate(self, units: Sequence[Any], share: Share) -> StepBatch:
        """Return this process's part of a step, or of an equal number of validation units.

        Every process calls it with all units of the step, right before the step. So a method that uses the model sees
        its current weights.

        Args:
            units: all units of the step.
            share: the part of this process.
        """

    def idle(self) -> MicroBatch:
        """Return a micro-batch for a process that has none in a pass.

        It goes through `loss` and `metrics`, so that all processes take part in every pass. Its results are not used.
        """
        return idle_micro_batch()

    def weight(self, batch: MicroBatch) -> Tensor:
        """Return a micro-batch's part of the step's weight, a float32 scalar. A step with weight 0 is an error."""
        return batch["weights"].sum()

    def denominator(self, weight: float, units: int) -> float:
        """Return the divisor of the sum of a step's losses.

        Args:
            weight: sum of `weight` over the micro-batches of all processes.
            units: number of units of the step.
        """
        return weight

    @abstractmethod
    def loss(self, model: nn.Module, batch: MicroBatch, denominator: float) -> Tensor:
        """Return the loss of a micro-batch, divided by the step's denominator, as a scalar.

        A step's loss is the sum of these.

        Args:
            model: call it, but do not use its modules directly, because it may be sharded or wrapped.
        """

    def metrics(self, model: nn.Module, batch: MicroBatch, names: Any) -> Iterable[tuple[str, float, float]]:
        """Yield the metrics of a validation micro-batch: (one of `metric_names`, weighted sum, weight).

        Args:
            names: the micro-batch's entry in `StepBatch.names`. An empty list for an idle micro-batch.
        """
        weight = float(self.weight(batch))
        yield "loss", float(self.loss(model, batch, 1.0)), weight

    def summary(self, sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        """Return the metrics of an evaluation, including `loss`. The checkpoint with the lowest `loss` is the best.

        A name `loss_X` means the loss of a part X of the data. Any other metric is reported under its own name.

        Args:
            sums: name in `metric_names` -> (weighted sum, weight), over all processes.
        """
        nothing = float("nan")
        return {name: value / weight if weight else nothing for name, (value, weight) in sums.items()}
