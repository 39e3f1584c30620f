"""A training session: it trains an adapter for a run, a recipe and an objective, and writes checkpoints and events.

The session claims the run, builds the model with its adapter, resumes from the newest checkpoint and trains. It writes
events, and the last one has the reason for the end. The objective (`objective.py`) provides the data and the loss.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, set_seed
from transformers.utils import logging as transformers_logging

from ossia import events, hardware
from ossia.adapters import apply as lora
from ossia.adapters.identity import Base
from ossia.config import Recipe
from ossia.errors import DoesNotFitError, UserError
from ossia.runs import Run
from ossia.train import checkpoints, fsdp, routing
from ossia.train.arguments import chosen_optimizer, trainer_arguments
from ossia.train.building import attention_of, balance_of, is_to_be_sharded, model_to_train
from ossia.train.callbacks import Interruption, Reporter, Watch
from ossia.train.claim import begun, claimed, trusted
from ossia.train.health import RoutingHealth
from ossia.train.objective import Objective
from ossia.train.room import Room
from ossia.train.trainer import OssiaTrainer


def run_session(
    recipe: Recipe,
    run: Run,
    objective: Objective,
    *,
    command: str = "",
    watch: Watch = lambda event: None,
    accept_changed_base: bool = False,
) -> events.Finished:
    """Train towards an objective, or continue an interrupted run, and return the last event.

    The run folder must exist (`ossia.runs.create`). If it has checkpoints, the run continues from the newest. Then data
    order, optimiser, schedule and random states are the same as without the interruption, and so is the loss.

    Args:
        command: the command that started the session, for the event `Started`.
        watch: called with every event as it is written.
        accept_changed_base: continue although the base model, or that of `lora.start_from`, is not the one that the
            adapter was trained on; the run's record says so.

    Returns:
        The last event, whose status is done or stopped.

    Raises:
        UserError: there are no data, or data, base or recipe changed since the run began. Or a checkpoint is damaged,
            or another process works on the run. Or the recipe asks for something that this job or machine lacks.
        OssiaError: loss or gradient are not finite, or a checkpoint could not be written.
        DoesNotFitError: the GPU ran out of memory.
    """
    if not objective.units:
        raise UserError("there is nothing to train on", do="ossia data check  shows why rows were left out")
    with claimed(run):
        examples = objective.fingerprint()
        record = begun(run, examples)
        reporter = Reporter(run, watch, recipe.train.early_stopping)
        newest = run.steps()[-1] if run.steps() else 0
        if newest >= recipe.train.total_steps(len(objective.units)):
            return _finished(reporter, "all steps done", newest)
        if record is not None:  # the compute type is chosen once; another machine might choose another
            recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"dtype": record.dtype})})
        check = partial(trusted, recipe, run, record, examples, newest, reporter.watch, accept_changed_base)
        return _session(recipe, run, objective, reporter, newest, command, check)


def _session(
    recipe: Recipe,
    run: Run,
    objective: Objective,
    reporter: Reporter,
    newest: int,
    command: str,
    check: Callable[[], tuple[Base, list[str]]],
) -> events.Finished:
    """Build the model, write the first events and train.

    Args:
        newest: the step of the checkpoint to continue from, or 0 for none.
        check: returns the base model and what was accepted of it (`trusted`).
    """
    sharded = is_to_be_sharded(recipe)
    chosen_optimizer(recipe.train, hardware.device(recipe.model.device).value == "cpu")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    set_seed(recipe.train.seed)
    base, accepted = check()
    if newest:
        checkpoints.check_state(run.checkpoint(newest), newest)
    model = model_to_train(recipe, base.folder, "cpu" if sharded else recipe.model.device)
    if newest:
        lora.load_adapter_weights(model, run.checkpoint(newest))
    balance, why = balance_of(recipe, model)
    notes = [*accepted, why, *objective.prepare(model, balance)]
    interruption = Interruption(reporter)
    reporter.room = Room(reporter.watch, lambda: interruption.asked)
    trainer = _trainer(recipe, run, model, objective, base, reporter, interruption, balance)
    _announce(recipe, run, objective, reporter, newest, command, [*notes, attention_of(model, trainer.args.device)])
    try:
        trainer.train(resume_from_checkpoint=str(run.checkpoint(newest)) if newest else None)
    except (Exception, KeyboardInterrupt) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        reporter.emit(events.Finished(status="failed", reason=what, step=trainer.state.global_step))
        if isinstance(error, torch.OutOfMemoryError):
            raise DoesNotFitError(
                f"the GPU's memory was full at step {trainer.state.global_step + 1}",
                where=str(run.path),
                do="a new run with smaller train.tokens_per_micro_batch and data.max_tokens. Check it with ossia plan",
            ) from error
        raise
    finally:
        interruption.restore()
        trainer.routers.close()
        torch.use_deterministic_algorithms(False)
    return _finished(reporter, reporter.reason or "all steps done", trainer.state.global_step)


def _trainer(
    recipe: Recipe,
    run: Run,
    model: Any,
    objective: Objective,
    base: Base,
    reporter: Reporter,
    interruption: Interruption,
    balance: float,
) -> OssiaTrainer:
    settings = recipe.train
    callbacks: list[Any] = [reporter, interruption]
    health = None
    if objective.probe:
        tokens = settings.tokens_per_micro_batch
        health = RoutingHealth(objective.probe, tokens, settings.evaluate_every, reporter.emit)
        callbacks.append(health)
    callbacks += objective.callbacks(base.folder, reporter.emit)
    arguments = trainer_arguments(recipe, run, len(objective.units), bool(objective.validation))
    twin = None
    if settings.sharding == "fsdp":
        twin = fsdp.Twin(model)
        fsdp.shard(model, arguments.device)
    with warnings.catch_warnings():
        # Trainer reads a deprecated attribute of PEFT's model to find out whether layers are recomputed.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        trainer = OssiaTrainer(
            model=model,
            args=arguments,
            objective=objective,
            callbacks=callbacks,
            run=run,
            base=base,
            keep_checkpoints=settings.keep_checkpoints,
            examples_per_step=settings.examples_per_step,
            twin=twin,
            routers=routing.Routers(model.get_base_model().model.layers),
            balance=balance,
            room=reporter.room,
            spare_folder=Path(settings.spare_folder) if settings.spare_folder else None,
        )
    trainer.remove_callback(PrinterCallback)  # events go to `watch`, not to stdout
    reporter.trainer = trainer
    if health is not None:
        health.trainer = trainer
    return trainer


def _announce(
    recipe: Recipe,
    run: Run,
    objective: Objective,
    reporter: Reporter,
    newest: int,
    command: str,
    notes: Iterable[str],
) -> None:
    """Write the events that the run starts or resumes, and a note for each automatic choice."""
    reporter.emit(
        events.Started(
            command=command,
            pid=os.getpid(),
            total_steps=recipe.train.total_steps(len(objective.units)),
            examples=len(objective.units),
            validation_examples=len(objective.validation),
            trained_tokens=objective.trained_tokens(),
        )
    )
    if any(isinstance(event, events.Step) for event in events.read(run.path)):
        reporter.emit(events.Resumed(step=newest))
    for message in filter(None, notes):
        reporter.emit(events.Note(level="info", message=message))


def _finished(reporter: Reporter, reason: str, step: int) -> events.Finished:
    """Write and return the last event of a run: stopped if the reporter has a reason, otherwise done."""
    last = events.Finished(status="stopped" if reporter.reason else "done", reason=reason, step=step)
    reporter.emit(last)
    return last
