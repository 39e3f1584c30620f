"""Actions between steps: events, samples, early stopping, and an orderly end on Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ossia import events
from ossia.generate.engine import Request
from ossia.generate.native import SerialEngine
from ossia.harmony.parse import parse
from ossia.runs import Run
from ossia.sequences.example import TrainingExample, prompt_of
from ossia.train.distributed import is_main
from ossia.train.fsdp import is_sharded
from ossia.train.room import Room, is_full

if TYPE_CHECKING:
    from ossia.harmony.tokenizer.vocabulary import Vocabulary
    from ossia.train.trainer import OssiaTrainer

Watch = Callable[[events.Event], None]
"""Called with each event when it is written."""

INTERRUPTED = "interrupted"


class Reporter(TrainerCallback):
    """A callback that writes events, saves each new best checkpoint, and saves and evaluates at the last step.

    It also stops early after `patience` evaluations without a new best. None: no early stopping.
    """

    def __init__(self, run: Run, watch: Watch, patience: int | None) -> None:
        self.log, self.watch, self.run, self.patience = run.log(), watch, run, patience
        self.trainer: OssiaTrainer | None = None
        self.room: Room | None = None
        """Waits while the disk is full; without it an event that cannot be written ends the training."""
        self.reason = ""
        """The reason training ended before its last step. Empty if it did not."""
        self._began = time.perf_counter()

    def emit(self, event: events.Event) -> None:
        """Append an event to the run and call `watch` with it. Only in the main process of a job."""
        if not is_main():
            return
        while True:
            try:
                self.log.write(event)
                break
            except OSError as error:
                if self.room is None or not is_full(error):
                    raise
                self.room.wait(self.log.path, 1 << 16)
        self.watch(event)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_save = True
            control.should_evaluate = args.eval_strategy != "no"

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        if state.is_world_process_zero and "loss" in logs:
            assert self.trainer is not None
            self.emit(
                events.Step(
                    step=state.global_step,
                    loss=logs["loss"],
                    learning_rate=logs["learning_rate"],
                    grad_norm=logs["grad_norm"],
                    tokens=self.trainer.step_tokens,
                    # The batch was made before `on_step_begin`.
                    seconds=time.perf_counter() - self._began + self.trainer.collating,
                    example_tokens=self.trainer.example_tokens,
                    repeated_tokens=self.trainer.repeated_tokens,
                )
            )

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: dict[str, float], **_: Any
    ) -> None:
        loss = metrics["eval_loss"]
        best = state.best_metric is None or loss < state.best_metric
        if best:
            control.should_save = True  # the best model must be on disk
        if state.is_world_process_zero:
            assert self.trainer is not None
            self.emit(_validation(state.global_step, loss, self.trainer.measured, best))
        losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
        since_best = len(losses) - 1 - losses.index(min(losses)) if losses else 0
        if self.patience is not None and since_best >= self.patience:
            self.reason = f"early stopping: {since_best} evaluations without a new best"
            control.should_training_stop = control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            path = str(self.run.checkpoint(state.global_step))
            best = state.best_global_step == state.global_step
            self.emit(events.Checkpoint(step=state.global_step, path=path, best=best))


def _validation(step: int, loss: float, measured: Mapping[str, float], best: bool) -> events.Validation:
    prefix = "loss_"
    channels = {name.removeprefix(prefix): value for name, value in measured.items() if name.startswith(prefix)}
    others = {name: value for name, value in measured.items() if name != "loss" and not name.startswith(prefix)}
    return events.Validation(step=step, loss=loss, channels=channels, metrics=others, best=best)


class SampleWriter(TrainerCallback):
    """A callback that answers a few validation prompts after each evaluation, to show how the model changes."""

    def __init__(self, examples: Sequence[TrainingExample], vocabulary: Vocabulary, like: Request, emit: Watch) -> None:
        """
        Args:
            examples: each gives a prompt and the expected final message.
            like: the request of a sample without its prompt.
            emit: writes an event.
        """
        self.examples, self.vocabulary, self.like, self.emit = examples, vocabulary, like, emit

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any, **_: Any
    ) -> None:
        # A sharded model needs all processes. They have the same seed and the same answers, and only the main process
        # writes them.
        if not self.examples or not (state.is_world_process_zero or is_sharded(model)):
            return
        prompts = [prompt_of(example) for example in self.examples]
        requests = [replace(self.like, prompt=tuple(prompt), number=n) for n, prompt in enumerate(prompts)]
        completions = SerialEngine(model).complete(requests)
        for example, prompt, completion in zip(self.examples, prompts, completions, strict=True):
            said = self._channels(completion.ids)
            wanted = self._channels(example.ids[len(prompt) :])
            self.emit(
                events.Sample(
                    step=state.global_step,
                    prompt=self.vocabulary.decode(prompt),
                    analysis=said["analysis"],
                    final=said["final"],
                    expected_final=wanted["final"],
                )
            )

    def _channels(self, ids: Sequence[int]) -> dict[str, str]:
        texts = {"analysis": "", "final": ""}
        for message in parse(list(ids), self.vocabulary):
            if message.channel in texts:
                texts[message.channel] += message.content
        return texts


_SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
"""Ctrl-C, what schedulers and containers send (Slurm, Docker, systemd), and a terminal that is closed."""


class Interruption(TrainerCallback):
    """The first signal to stop ends the run after the present step with a checkpoint. A second Ctrl-C ends it at once.

    Of several processes any may get the signal, and all stop after the same step.
    """

    def __init__(self, reporter: Reporter) -> None:
        self.reporter, self.asked = reporter, False
        self._before: dict[signal.Signals, Any] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        with contextlib.suppress(ValueError):  # not the main thread: somebody else handles signals
            for number in _SIGNALS:
                is_hangup = number not in (signal.SIGINT, signal.SIGTERM)
                if is_hangup and signal.getsignal(number) == signal.SIG_IGN:
                    continue  # nohup ignores it, and it stays ignored
                self._before[number] = signal.signal(number, self._ask)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        trainer = self.reporter.trainer
        if trainer is not None and trainer.accelerator.num_processes > 1:
            asked = torch.tensor([float(self.asked)], device=args.device)
            self.asked = bool(trainer.accelerator.reduce(asked).item())
        if self.asked:
            self.reporter.reason = INTERRUPTED
            control.should_training_stop = control.should_save = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.restore()

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked = True
            message = "stopping after this step; Ctrl-C again stops at once"
            self.reporter.watch(events.Note(level="info", message=message))
