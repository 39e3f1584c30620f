"""transformers' Trainer with five things of our own: steps made of micro-batches, the loss of an objective, checkpoints
in Ossia's layout, validation in the same code path as training, and a stop with a name when a number is not finite.

Everything else (optimiser, schedule, clipping, accelerate, random states, data order, resuming) is Trainer's.
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
    """Trains the adapter of a `PeftModel` around an `OssiaForCausalLM` towards an objective."""

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
        """Of the last step, over all devices: see `events.Step`."""
        self.collating = 0.0
        """Seconds that making the last step's batch took."""
        self.measured: dict[str, float] = {}
        """What the last evaluation found (`Objective.summary`)."""

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """Run a step's micro-batches and return this process's part of its loss, times the number of processes."""
        model.train()
        # A process may have nothing to do in a step, and Trainer takes an empty batch for a mistake.
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
            # Gradients of several devices are averaged, but the denominator already counts all of them.
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
        """Average gradients over devices with the last micro-batch; sharded ones at once: whole ones take memory."""
        return contextlib.nullcontext() if last or self.twin is not None else self.accelerator.no_sync(model)

    def _idle(self, micro_batches: int) -> list[dict[str, Tensor]]:
        """Micro-batches without weight that keep a sharded model's processes in step with the one that has most to do.

        Otherwise a process needs one only if it has nothing else, to take part in averaging the gradients.
        """
        if self.twin is None:
            return [] if micro_batches else [self.on_device(self.objective.idle())]
        most = int(self.accelerator.gather(torch.tensor([micro_batches], device=self.args.device)).max())
        return [self.on_device(self.objective.idle()) for _ in range(most - micro_batches)]

    def taken_load(self) -> tuple[Tensor, float | None, int]:
        """Return what the routers did since the last call, over all devices.

        Returns:
            int64 [L, E] (token, choice) pairs per layer and expert; the mean load-balancing loss, None where there is
            none; the tokens.
        """
        load_LE, counted = (self.accelerator.reduce(value) for value in self.routers.take())
        summed, tokens = counted.tolist()
        return load_LE, summed / tokens if self.balance else None, int(tokens)

    def on_device(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A micro-batch's inputs where the model computes."""
        return {name: value.to(self.args.device) for name, value in inputs.items()}

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        *_: Any,
        metric_key_prefix: str = "eval",
        **__: Any,
    ) -> EvalLoopOutput:
        """Return what the objective measures on the validation units."""
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
        """What this process evaluates, and whether it is work: a sharded model needs all processes in every pass."""
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
        """Every process is given whole steps; the objective picks the micro-batches that are the process's own."""
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
        """The same for validation, in the order of the data."""
        data: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        return DataLoader(data, batch_size=self.examples_per_step, collate_fn=self._collate)

    def _collate(self, units: Sequence[Any]) -> StepBatch:
        state = self.accelerator
        return self.objective.collate(units, Share(state.process_index, state.num_processes))

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Trainer's estimate counts frozen experts that a token never meets; Ossia reports tokens instead."""
        return 0

    def _reduced(self, sums: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
        """The sum and the weight of every metric, over all processes."""
        names = self.objective.metric_names
        table = torch.tensor([sums.get(name, [0.0, 0.0]) for name in names], dtype=torch.float64)
        if self.accelerator.num_processes > 1:
            table = self.accelerator.reduce(table.to(self.args.device)).cpu()
        return {name: (value, weight) for name, (value, weight) in zip(names, table.tolist(), strict=True)}

    # Trainer's hooks for reading and writing checkpoints.

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
                self.room.wait(
                    self.run.checkpoint(self.state.global_step), 3 * trained + 2**20
                )  # AdamW has two moments

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
            self._save_rng_state(str(partial))  # every process its own
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
        """Nothing: the stage has loaded the adapter before the model was wrapped."""


class ConversationOrder(Sampler[list[int]]):
    """Yields each step's examples, as indices: a new permutation of the conversations in every epoch.

    The order is the same whether prefixes are shared or not, so sharing changes what is computed and nothing about the
    optimisation. It has a price of its own, paid in both cases: the turns of a conversation mostly fall into one step,
    so a step sees fewer conversations than if examples were shuffled one by one, and its gradient varies more. With
    conversations of n turns, `examples_per_step` of k means about k / n conversations. A conversation at the edge of a
    step goes on in the next one. The last step of an epoch may have fewer examples.
    """

    def __init__(
        self, conversations: Sequence[Sequence[int]], examples_per_step: int, seed: int, steps_done: Callable[[], int]
    ) -> None:
        """
        Args:
            conversations: indices of the examples of each.
            steps_done: optimiser steps of the run so far, asked at the beginning of an epoch; a resumed run begins in
                the middle of one, and its caller skips the steps that were done.
        """
        self.conversations, self.examples_per_step, self.seed = conversations, examples_per_step, seed
        self.steps_done = steps_done
        self.examples = sum(map(len, conversations))

    def __len__(self) -> int:
        return -(-self.examples // self.examples_per_step)

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.epoch(self.steps_done() // len(self))

    def epoch(self, number: int) -> Iterator[list[int]]:
        """The steps of one epoch."""
        return epoch(self.conversations, self.examples_per_step, self.seed, number)
