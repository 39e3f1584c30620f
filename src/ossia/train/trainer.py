"""transformers' Trainer with the following changes.

* Steps consist of micro-batches.
* The order of the examples keeps the turns of a conversation together.
* The loss is that of an objective.
* Checkpoints have Ossia's layout.
* Validation uses the same code path as training.
* Training stops with an error that names the layer when a loss or a gradient is not finite.

Trainer itself does everything else: optimiser, schedule, clipping, accelerate, random states, resuming.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from ossia.adapters import apply as lora
from ossia.adapters import identity
from ossia.adapters.identity import Base
from ossia.errors import OssiaError
from ossia.generate.subject import rendering_of
from ossia.runs import Run
from ossia.sequences.order import conversations_of, epoch
from ossia.train import checkpoints, fsdp, nonfinite
from ossia.train.fsdp import Twin
from ossia.train.objective import MicroBatch, Objective, Share, StepBatch
from ossia.train.room import Room, is_full
from ossia.train.routing import Routers


class OssiaTrainer(Trainer):
    """A Trainer for the adapter of a `PeftModel` around an `OssiaForCausalLM`, with the loss of an objective."""

    def __init__(
        self,
        *args: Any,
        objective: Objective,
        run: Run,
        base: Base,
        keep_checkpoints: int,
        examples_per_step: int,
        routers: Routers,
        balance: float = 0.0,
        twin: Twin | None = None,
        room: Room | None = None,
        spare_folder: Path | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            objective: gives the units, their micro-batches and the loss.
            base: the model that the adapter belongs to, which checkpoints record.
            examples_per_step: units of a step, over all processes.
            balance: coefficient of the load-balancing loss, 0 for none.
            twin: the adapter in whole tensors, if the model is going to be sharded.
            room: waits while the disk is full; without it a full disk ends the training.
            spare_folder: where a checkpoint goes that the run's disk has no room for.
        """
        data = {"train_dataset": objective.units, "eval_dataset": list(objective.validation) or None}
        super().__init__(*args, **data, **kwargs)
        self.objective = objective
        self.run, self.base, self.rendering = run, base, rendering_of(run.recipe().data)
        self.keep_checkpoints, self.examples_per_step = keep_checkpoints, examples_per_step
        self.routers, self.balance, self.twin = routers, balance, twin
        self.room, self.spare_folder = room, spare_folder
        self.step_tokens = 0
        """Tokens processed in the last step, over all devices."""
        self.example_tokens = self.repeated_tokens = 0
        """Counts of the last step, over all devices; see `events.Step`."""
        self.collating = 0.0
        """Seconds of making the last step's batch."""
        self.measured: dict[str, float] = {}
        """Metrics of the last evaluation (`Objective.summary`)."""

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """Run the forward and backward passes of a step's micro-batches.

        Returns:
            This process's part of the step's loss, times the number of processes: a float32 scalar.

        Raises:
            OssiaError: the step has no supervised token, or the loss or a gradient is not finite.
        """
        model.train()
        # A process may have no micro-batches in a step, and Trainer raises an error for an empty batch.
        micro_batches = self._prepare_inputs(inputs["micro_batches"]) if inputs["micro_batches"] else []
        sizes_2 = torch.zeros(2, device=self.args.device)
        for batch in micro_batches:
            weight = self.objective.weight(batch)
            sizes_2 += torch.stack([weight, weight.new_tensor(batch["input_ids"].numel())])
        total_weight, tokens = self.accelerator.reduce(sizes_2).tolist()
        self.step_tokens, self.collating = int(tokens), inputs["seconds"]
        self.example_tokens, self.repeated_tokens = inputs["example_tokens"], inputs["repeated_tokens"]
        if not total_weight:
            raise OssiaError(f"step {self.state.global_step + 1} has no supervised token")
        denominator = self.objective.denominator(total_weight, inputs["examples"])
        total = torch.zeros((), device=self.args.device)
        devices, idle = self.accelerator.num_processes, self._idle(len(micro_batches))
        for number, batch in enumerate([*micro_batches, *idle], 1):
            works = number <= len(micro_batches)
            # Gradients are averaged over the devices. The denominator already counts the tokens of all devices, so the
            # loss is multiplied by their number.
            with self._unsynchronised(model, last=number == max(1, len(micro_batches))):
                share = batch["input_ids"].numel() / tokens if works else 0.0
                with self.routers.training_pass(scale=self.balance * share * devices, count=works):
                    loss = self.objective.loss(model, batch, denominator) * (devices if works else 0)
                self.accelerator.backward(loss)
            total += loss.detach().float()
        where, step = str(self.run.path), self.state.global_step + 1
        nonfinite.check_finite(self.accelerator, model, total, [*micro_batches, *idle], step, where, self._forward)
        return total

    def _forward(self, model: nn.Module, batch: MicroBatch) -> Tensor:
        return self.objective.loss(model, batch, 1.0)

    def _unsynchronised(self, model: nn.Module, last: bool) -> Any:
        """Return a context that averages gradients over devices only with the last micro-batch.

        Sharded gradients are averaged with every micro-batch, because whole gradients take memory.
        """
        return contextlib.nullcontext() if last or self.twin is not None else self.accelerator.no_sync(model)

    def _idle(self, micro_batches: int) -> list[dict[str, Tensor]]:
        """Return micro-batches without weight, so that this process takes part in all collective operations.

        With a sharded model every process needs as many micro-batches as the process with the most. Otherwise a process
        needs one only if it has none, to take part in averaging the gradients.
        """
        if self.twin is None:
            return [] if micro_batches else [self.on_device(self.objective.idle())]
        most = int(self.accelerator.gather(torch.tensor([micro_batches], device=self.args.device)).max())
        return [self.on_device(self.objective.idle()) for _ in range(most - micro_batches)]

    def taken_load(self) -> tuple[Tensor, float | None, int]:
        """Return the routers' counts since the last call, over all devices.

        Returns:
            The number of (token, choice) pairs per layer and expert, int64 [L, E].

            The mean load-balancing loss, or None if it is not trained.

            The number of tokens.
        """
        load_LE, counted = (self.accelerator.reduce(value) for value in self.routers.take())
        summed, tokens = counted.tolist()
        return load_LE, summed / tokens if self.balance else None, int(tokens)

    def on_device(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a micro-batch's inputs on the device of the model."""
        return {name: value.to(self.args.device) for name, value in inputs.items()}

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        *_: Any,
        metric_key_prefix: str = "eval",
        **__: Any,
    ) -> EvalLoopOutput:
        """Return the metrics of the objective on the validation units."""
        model = self.model
        model.eval()
        sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        with torch.no_grad():
            for inputs, names, works in self._evaluation_micro_batches(dataloader):
                for name, value, weight in self.objective.metrics(model, inputs, names):
                    sums[name][0] += value * works
                    sums[name][1] += weight * works
        self.measured = self.objective.summary(self._reduced(sums))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.measured.items()}
        return EvalLoopOutput(predictions=(), label_ids=None, metrics=metrics, num_samples=len(dataloader.dataset))

    def _evaluation_micro_batches(self, dataloader: DataLoader) -> Iterator[tuple[dict[str, Tensor], Any, bool]]:
        """Return this process's micro-batches: (inputs, names, whether the metrics count).

        A sharded model needs all processes in every pass. So a process may also have idle micro-batches, which do not
        count.
        """
        mine: Iterable[tuple[Any, Any, bool]] = (
            (inputs, names, True)
            for batch in dataloader
            for inputs, names in zip(batch["micro_batches"], batch["names"], strict=True)
        )
        if self.twin is not None:
            mine = list(mine)
            mine += [(inputs, [], False) for inputs in self._idle(len(mine))]
        return ((self.on_device(inputs), names, works) for inputs, names, works in mine)

    def get_train_dataloader(self) -> DataLoader:
        """Return a loader of steps in the order of `ConversationOrder`.

        Every process gets the whole step. The objective then selects the process's own micro-batches.
        """
        order = ConversationOrder(
            conversations_of(self.train_dataset),
            self.examples_per_step,
            self.args.seed,
            steps_done=lambda: self.state.global_step,
        )
        return DataLoader(
            self.train_dataset, batch_sampler=order, collate_fn=self._collate,
            pin_memory=self.args.dataloader_pin_memory,
        )  # fmt: skip

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return a loader of validation units, `examples_per_step` at a time in the order of the data."""
        data: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        return DataLoader(data, batch_size=self.examples_per_step, collate_fn=self._collate)

    def _collate(self, units: Sequence[Any]) -> StepBatch:
        state = self.accelerator
        return self.objective.collate(units, Share(state.process_index, state.num_processes))

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0, because Trainer's estimate also counts experts that a token does not use. Ossia reports tokens."""
        return 0

    def _reduced(self, sums: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
        """Return (weighted sum, weight) of every metric, over all processes."""
        names = self.objective.metric_names
        table = torch.tensor([sums.get(name, [0.0, 0.0]) for name in names], dtype=torch.float64)
        if self.accelerator.num_processes > 1:
            table = self.accelerator.reduce(table.to(self.args.device)).cpu()
        return {name: (value, weight) for name, (value, weight) in zip(names, table.tolist(), strict=True)}

    # Overrides of Trainer's methods that read and write checkpoints.

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint; on a full disk wait for room, or write it to the spare folder and end.

        In a job of several processes the others would run into a timeout meanwhile, so there it fails at once.
        """
        while True:
            try:
                self._write_checkpoint(self.run)
                return
            except (OSError, OssiaError) as error:
                cause = error.__cause__ or error
                if self.room is None or self.accelerator.num_processes > 1 or not is_full(cause):
                    raise
                if self.spare_folder is not None:
                    self._save_elsewhere(self.spare_folder, error)
                trained = sum(p.numel() * p.element_size() for p in self.model.parameters() if p.requires_grad)
                # The adapter, AdamW's two moments, and what is small.
                self.room.wait(self.run.checkpoint(self.state.global_step), 3 * trained + 2**20)

    def _save_elsewhere(self, folder: Path, error: Exception) -> NoReturn:
        """Write the checkpoint below another folder and end the training."""
        other = Run(folder / self.run.id)
        self._write_checkpoint(other)
        saved = other.checkpoint(self.state.global_step)
        raise OssiaError(
            f"the disk of the run is full; the state of step {self.state.global_step} was saved elsewhere",
            where=str(saved),
            do=f"free disk space, mv {saved} {self.run.checkpoints}/, then: ossia train --resume {self.run.id}",
        ) from error

    def _write_checkpoint(self, run: Run) -> None:
        """Write a checkpoint into a run's folder, name the best one, and remove those that are not kept."""
        step, partial = self.state.global_step, checkpoints.partial_folder(run, self.state.global_step)
        writes = self.args.should_save
        with checkpoints.new_checkpoint(run, step) if writes else contextlib.nullcontext():
            self.accelerator.wait_for_everyone()  # the folder is there
            self._save(str(partial))
            self._save_optimizer_and_scheduler(str(partial))
            self._save_rng_state(str(partial))  # each process has its own
            if writes:
                self.state.save_to_json(str(partial / "trainer_state.json"))
            self.accelerator.wait_for_everyone()  # everything is in it
            if writes:
                identity.seal(partial, self.base, run=self.run.id, step=step, rendering=self.rendering)
        if writes and run == self.run:
            # Every time, because a process may be killed between a checkpoint and the note that it is the best.
            if self.state.best_global_step is not None:
                checkpoints.remember_best(self.run, self.state.best_global_step, float(self.state.best_metric or 0.0))
            checkpoints.prune(self.run, self.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        model = self.accelerator.unwrap_model(self.model)
        if self.twin is not None:
            self.twin.save(model, Path(str(output_dir)))
        elif self.args.should_save:
            lora.save_adapter(model, Path(str(output_dir)))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.twin is None:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        fsdp.save_optimizer(self.model, self.optimizer.optimizer, Path(output_dir) / "optimizer.pt")
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with checkpoints.readable(checkpoint, "the random states"):
            super()._load_rng_state(checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with checkpoints.readable(checkpoint, "optimizer.pt or scheduler.pt"):
            self._load_states(checkpoint)

    def _load_states(self, checkpoint: str | None) -> None:
        if self.twin is None or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        fsdp.load_optimizer(self.model, self.optimizer.optimizer, Path(checkpoint) / "optimizer.pt")
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Do nothing, because the session has loaded the adapter before the model was wrapped."""


class ConversationOrder(Sampler[list[int]]):
    """A sampler that yields each step's examples as indices, with the conversations in a new random order every epoch.

    The order is the same with and without shared prefixes. So sharing reduces the computation and does not change the
    optimisation.

    The order has a cost in both cases. The turns of a conversation are mostly in one step, so a step has fewer
    conversations than with shuffled examples, and its gradient varies more. If conversations have n turns, a step of k
    examples has about k / n conversations. A conversation may continue in the next step. The last step of an epoch may
    have fewer examples.
    """

    def __init__(
        self, conversations: Sequence[Sequence[int]], examples_per_step: int, seed: int, steps_done: Callable[[], int]
    ) -> None:
        """
        Args:
            conversations: per conversation, the indices of its examples.
            examples_per_step: number of examples of a step.
            seed: seed of the random order.
            steps_done: returns the number of optimiser steps of the run so far. It is called at the start of an epoch.
                A resumed run may start in the middle of an epoch, and then Trainer skips the steps already done.
        """
        self.conversations, self.examples_per_step, self.seed = conversations, examples_per_step, seed
        self.steps_done = steps_done
        self.examples = sum(map(len, conversations))

    def __len__(self) -> int:
        return -(-self.examples // self.examples_per_step)

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.epoch(self.steps_done() // len(self))

    def epoch(self, number: int) -> Iterator[list[int]]:
        """Return the steps of epoch `number` (from 0), as indices of examples."""
        return epoch(self.conversations, self.examples_per_step, self.seed, number)
