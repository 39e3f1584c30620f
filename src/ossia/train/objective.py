"""What a training session asks of an objective: the data, the loss of a micro-batch, and what validation measures.

An objective is one file with one subclass of `Objective`. The session (`session.py`) does everything else: the run, the
model, the adapter, the optimiser's steps, checkpoints, resuming, events, several processes.

In the order of a session: `units` and `fingerprint`, `prepare` with the model, `callbacks`; then per step `collate`,
`weight` of each micro-batch, `denominator` once and `loss` of each micro-batch; per evaluation `collate`, `metrics` of
each micro-batch and `summary` once.
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
"""Tensors that go through the model at once. `input_ids` is among them; its elements are counted as tokens."""


class StepBatch(TypedDict):
    """One step, as far as this process computes it."""

    micro_batches: list[dict[str, Tensor]]
    """This process's own, on the CPU. It may have none where another process has some."""
    names: list[Any]
    """One entry per micro-batch, for `metrics`."""
    example_tokens: int
    """Tokens of the step's units over all processes, each counted by itself."""
    repeated_tokens: int
    """Tokens of shared prefixes that are computed again, in another micro-batch, over all processes."""
    examples: int
    """Units of the step, over all processes."""
    seconds: float
    """How long making the batch took."""


@dataclass(frozen=True)
class Share:
    """Which part of every step is this process's: number `process` of `processes`."""

    process: int = 0
    processes: int = 1


class Objective(ABC):
    """A loss and the data that it is taken on."""

    metric_names: tuple[str, ...] = ("loss",)
    """Every name that `metrics` gives, the same in all processes."""

    @property
    @abstractmethod
    def units(self) -> Sequence[Any]:
        """What a step has a fixed number of: examples, pairs of answers, prompts.

        A unit that names its `conversation` and its `turn` stays beside the other turns of the conversation
        (`ossia.sequences.order`).
        """

    @property
    def validation(self) -> Sequence[Any]:
        """Units that are held back. Empty: there is no evaluation."""
        return ()

    @property
    def probe(self) -> Sequence[TrainingExample]:
        """Examples on which the routers are compared with those of the base. Empty: routing is not reported."""
        return ()

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a hash of the data, to tell whether a resumed run sees the same."""

    @abstractmethod
    def trained_tokens(self) -> int:
        """Return how many tokens are trained in one pass over the units, for the event `Started`."""

    def prepare(self, model: Any, balance: float) -> Iterable[str]:
        """Decide what depends on the model, and return what people should know of it.

        Args:
            model: a `PeftModel` around an `OssiaForCausalLM`, before it is sharded.
            balance: coefficient of the load-balancing loss, which the session adds by itself.
        """
        return ()

    def callbacks(self, folder: Path, emit: Watch) -> Sequence[TrainerCallback]:
        """Return callbacks of the objective's own.

        Args:
            folder: of the base model.
            emit: writes an event.
        """
        return ()

    @abstractmethod
    def collate(self, units: Sequence[Any], share: Share) -> StepBatch:
        """Make the batch of a step, or of as many validation units.

        It is called in every process with the whole step, right before the step, so it sees the model as it then is.
        """

    def idle(self) -> MicroBatch:
        """Return a micro-batch for a process without work of its own.

        It goes through `loss` and `metrics`, so that all processes take part in every pass, and nothing of it counts.
        """
        return idle_micro_batch()

    def weight(self, batch: MicroBatch) -> Tensor:
        """Return the scalar float32 that a micro-batch adds to the step's weight. A step without weight is an error."""
        return batch["weights"].sum()

    def denominator(self, weight: float, units: int) -> float:
        """Return what the sum of a step's losses is divided by.

        Args:
            weight: summed over the micro-batches of all processes.
            units: of the step.
        """
        return weight

    @abstractmethod
    def loss(self, model: nn.Module, batch: MicroBatch, denominator: float) -> Tensor:
        """Return the scalar loss of a micro-batch over the step's denominator. A step's loss is the sum of these.

        Args:
            model: to be called, not taken apart: it may be sharded or wrapped.
        """

    def metrics(self, model: nn.Module, batch: MicroBatch, names: Any) -> Iterable[tuple[str, float, float]]:
        """Yield what a validation micro-batch measures: (one of `metric_names`, weighted sum, weight).

        Args:
            names: what `collate` gave for the micro-batch; an empty list for an idle one.
        """
        weight = float(self.weight(batch))
        yield "loss", float(self.loss(model, batch, 1.0)), weight

    def summary(self, sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        """Return the metrics of an evaluation, `loss` among them: the lowest loss is the best checkpoint.

        A name `loss_X` is the loss of a part X of the data; any other is reported under itself.

        Args:
            sums: per name of `metric_names` the weighted sum and the weight, over all processes.
        """
        nothing = float("nan")
        return {name: value / weight if weight else nothing for name, (value, weight) in sums.items()}
