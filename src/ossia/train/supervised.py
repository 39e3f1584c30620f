"""Supervised fine-tuning: the negative log-likelihood of the examples' supervised tokens.

`train(recipe, run, examples, validation)` runs a session (`session.py`) with this objective.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ossia import events
from ossia.checkpoint.locate import tokenizer_folder
from ossia.config import Recipe
from ossia.generate.engine import Request, Sampling
from ossia.harmony.tokenizer.vocabulary import Vocabulary
from ossia.runs import Run
from ossia.sequences.example import TrainingExample
from ossia.sequences.sharing import Saving, decide, epoch_saving
from ossia.sequences.weighting import weighted
from ossia.train.callbacks import SampleWriter, Watch
from ossia.train.objective import MicroBatch, Objective, Share, StepBatch
from ossia.train.session import run_session
from ossia.train.steps import Collator, fingerprint, model_obstacles

REPORTED_CHANNELS = ("analysis", "commentary", "final", "other")
"""Channels with their own validation loss. Tokens of any other channel count as "other"."""


def train(
    recipe: Recipe,
    run: Run,
    examples: Sequence[TrainingExample],
    validation: Sequence[TrainingExample],
    *,
    command: str = "",
    watch: Watch = lambda event: None,
    saving: Saving | None = None,
    accept_changed_base: bool = False,
) -> events.Finished:
    """Fine-tune, or continue an interrupted run, and return the last event.

    Args:
        examples, validation: compiled training examples. `validation` may be empty.
        command: the command that started the session, for the event `Started`.
        watch: called with every event as it is written.
        saving: what an epoch saves by sharing, if the caller has it (`ossia.sequences.sharing.epoch_saving`).
        accept_changed_base: see `run_session`.

    Returns:
        The last event, whose status is done or stopped.

    Raises:
        UserError: there are no examples, or the data or the base changed since the run began. Also if another process
            trains in the run, or the recipe needs features that this job or machine does not have.
        OssiaError: the loss or a gradient is not finite, or a checkpoint could not be written.
        DoesNotFitError: the GPU ran out of memory.
    """
    objective = SupervisedObjective(recipe, examples, validation, saving)
    return run_session(recipe, run, objective, command=command, watch=watch, accept_changed_base=accept_changed_base)


class SupervisedObjective(Objective):
    """The mean negative log-likelihood over a step's supervised tokens, or with another weighting over its examples."""

    metric_names = REPORTED_CHANNELS

    def __init__(
        self,
        recipe: Recipe,
        examples: Sequence[TrainingExample],
        validation: Sequence[TrainingExample],
        saving: Saving | None = None,
    ) -> None:
        """The arguments are those of `train`."""
        self.settings, self.examples, self.saving = recipe.train, examples, saving
        self._validation = validation
        self._units = weighted(examples, recipe.train.loss_weighting)
        self._collator = Collator(recipe.train.tokens_per_micro_batch)

    @property
    def units(self) -> Sequence[TrainingExample]:
        """The examples, with the weights of the recipe's `train.loss_weighting`."""
        return self._units

    @property
    def validation(self) -> Sequence[TrainingExample]:
        """The held-back examples."""
        return self._validation

    @property
    def probe(self) -> Sequence[TrainingExample]:
        """The validation examples, or the training examples if there are none."""
        return self._validation or self.examples

    def fingerprint(self) -> str:
        """Return the hash of the training and validation examples, before weighting."""
        return fingerprint(self.examples, self._validation)

    def trained_tokens(self) -> int:
        """Return the number of supervised tokens of the training examples."""
        return sum(sum(1 for weight in example.weights if weight) for example in self.examples)

    def prepare(self, model: Any, balance: float) -> Iterable[str]:
        """Decide whether examples share prefixes, and return the decision with its reason.

        The saving is computed from the steps of an epoch unless the caller has passed it.

        Raises:
            UserError: the recipe requires sharing, but it would not be exact for this model.
        """
        settings, obstacles = self.settings, model_obstacles(model, balance)
        if self.saving is None:
            self.saving = epoch_saving(settings, obstacles, self.examples)
        sharing = decide(settings.share_prefixes, obstacles, self.saving)
        self._collator = Collator(settings.tokens_per_micro_batch, sharing.on)
        return [str(sharing)]

    def callbacks(self, folder: Path, emit: Watch) -> Sequence[TrainerCallback]:
        """Return the callback that answers validation prompts, if the recipe sets `train.samples`."""
        settings = self.settings
        if not (settings.samples and self._validation):
            return []
        vocabulary = Vocabulary.load(tokenizer_folder(folder))
        sampling = Sampling(temperature=settings.sample_temperature)
        like = Request(sampling=sampling, max_new_tokens=settings.sample_tokens, seed=settings.seed)
        return [SampleWriter(self._validation[: settings.samples], vocabulary, like, emit)]

    def collate(self, units: Sequence[Any], share: Share) -> StepBatch:
        """Return the examples as flat batches (`steps.Collator`). `names` has the channels of their triples."""
        collator = dataclasses.replace(self._collator, process=share.process, processes=share.processes)
        made: Any = collator(units)
        return made

    def denominator(self, weight: float, units: int) -> float:
        """Return the sum of the weights, or the number of examples if the weighting is not "token"."""
        return weight if self.settings.loss_weighting == "token" else units

    def loss(self, model: nn.Module, batch: MicroBatch, denominator: float) -> Tensor:
        """Return the weighted sum of negative log-likelihoods divided by the denominator, computed by the model."""
        loss: Tensor = model(**batch, denominator=denominator).loss
        return loss

    def metrics(self, model: nn.Module, batch: MicroBatch, names: Sequence[str]) -> Iterator[tuple[str, float, float]]:
        """Yield the weighted negative log-likelihood and the weight of every triple under its channel."""
        nll_S = model(**batch).nll.double() * batch["weights"]
        for name, value, weight in zip(names, nll_S.tolist(), batch["weights"].tolist(), strict=True):
            yield (name if name in REPORTED_CHANNELS else "other"), value, weight

    def summary(self, sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        """Return `loss`, the mean over all supervised tokens, and `loss_X`, the mean over those of each channel X."""
        total, count = torch.tensor(list(sums.values()), dtype=torch.float64).sum(0).tolist()
        found = {"loss": total / count if count else float("nan")}
        for name, (value, weight) in sums.items():
            if weight:
                found[f"loss_{name}"] = value / weight
        return found
