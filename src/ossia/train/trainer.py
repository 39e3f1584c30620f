"""transformers' Trainer with four things of our own: a step made of passes, the loss inside the model's forward,
checkpoints in Ossia's layout, and validation in the same code path as training.

Everything else (optimiser, schedule, clipping, accelerate, random states, data order, resuming) is Trainer's.
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from ossia.errors import OssiaError
from ossia.model import lora
from ossia.runs import Run
from ossia.train import checkpoints
from ossia.train.steps import Trainable

CHANNELS = ("analysis", "commentary", "final", "other")


class OssiaTrainer(Trainer):
    """Trains the adapter of a `PeftModel` around an `OssiaForCausalLM` on steps made by `steps.Collator`."""

    def __init__(self, *args: Any, run: Run, keep_checkpoints: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.run, self.keep_checkpoints = run, keep_checkpoints
        self.step_tokens = 0
        """Tokens processed in the last step, over all devices."""

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """Run a step's passes and return its loss: the mean over the step's supervised tokens on all devices."""
        model.train()
        passes = self._prepare_inputs(inputs["passes"])
        sums = torch.stack(
            [torch.stack([p["weights"].sum(), p["weights"].new_tensor(p["input_ids"].numel())]) for p in passes]
        )
        denominator, tokens = self.accelerator.reduce(sums.sum(0)).tolist()
        self.step_tokens = int(tokens)
        if not denominator:
            raise OssiaError(f"step {self.state.global_step + 1} has no supervised token")
        total = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(passes, 1):
            last = number == len(passes)
            # Gradients of several devices are averaged, but the denominator already counts all of them.
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                loss = model(**batch, denominator=denominator).loss * self.accelerator.num_processes
                self.accelerator.backward(loss)
            total += loss.detach().float()
        if not math.isfinite(total.item()):
            raise OssiaError(
                f"the loss of step {self.state.global_step + 1} is {total.item()}",
                where=str(self.run.path),
                why="the last checkpoint is still good",
                do="a lower train.learning_rate, from the recipe in the run folder",
            )
        return total

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        *_: Any,
        metric_key_prefix: str = "eval",
        **__: Any,
    ) -> EvalLoopOutput:
        """Return the validation set's mean negative log-likelihood over all supervised tokens, and per channel."""
        model = self.model
        model.eval()
        sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        with torch.no_grad():
            for batch in dataloader:
                for inputs, names in zip(self._prepare_inputs(batch["passes"]), batch["channels"], strict=True):
                    nll_S = model(**inputs).nll.double() * inputs["weights"]
                    for name, value, weight in zip(names, nll_S.tolist(), inputs["weights"].tolist(), strict=True):
                        known = name if name in CHANNELS else "other"
                        sums[known][0] += value
                        sums[known][1] += weight
        metrics = self._reduced(sums, metric_key_prefix)
        return EvalLoopOutput(predictions=(), label_ids=None, metrics=metrics, num_samples=len(dataloader.dataset))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Each process takes every n-th validation example, so that none is counted twice."""
        data: Sequence[Trainable] = self.eval_dataset if eval_dataset is None else eval_dataset
        mine = data[self.accelerator.process_index :: self.accelerator.num_processes]
        return DataLoader(mine, batch_size=self.args.per_device_eval_batch_size, collate_fn=self.data_collator)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Trainer's estimate counts frozen experts that a token never meets; Ossia reports tokens instead."""
        return 0

    def _reduced(self, sums: dict[str, list[float]], prefix: str) -> dict[str, float]:
        table = torch.tensor([sums.get(name, [0.0, 0.0]) for name in CHANNELS], dtype=torch.float64)
        if self.accelerator.num_processes > 1:
            table = self.accelerator.reduce(table.to(self.args.device)).cpu()
        total, count = table.sum(0).tolist()
        metrics = {f"{prefix}_loss": total / count if count else float("nan")}
        for name, (value, weight) in zip(CHANNELS, table.tolist(), strict=True):
            if weight:
                metrics[f"{prefix}_loss_{name}"] = value / weight
        return metrics

    # Trainer's hooks for reading and writing checkpoints.

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        step, partial = self.state.global_step, checkpoints.partial_folder(self.run, self.state.global_step)
        writes = self.args.should_save
        with checkpoints.writing(self.run, step) if writes else contextlib.nullcontext():
            self.accelerator.wait_for_everyone()  # the folder is there
            self._save(str(partial))
            self._save_optimizer_and_scheduler(str(partial))
            self._save_rng_state(str(partial))  # every process its own
            if writes:
                self.state.save_to_json(str(partial / "trainer_state.json"))
            self.accelerator.wait_for_everyone()  # everything is in it
        if writes:
            # Every time, because a process may be killed between a checkpoint and the note that it is the best.
            if self.state.best_global_step is not None:
                checkpoints.remember_best(self.run, self.state.best_global_step, float(self.state.best_metric or 0.0))
            checkpoints.prune(self.run, self.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self.args.should_save:
            lora.save(self.accelerator.unwrap_model(self.model), Path(str(output_dir)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        lora.load_weights(self.accelerator.unwrap_model(model or self.model), Path(resume_from_checkpoint))
