"""Supervised fine-tuning with LoRA: `train(recipe, run, examples, validation)`.

The run folder must exist (`ossia.runs.create`). When it already holds checkpoints the run continues from the newest:
same data order, optimiser, schedule and random states, so that the loss goes on as if nothing had happened.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from transformers import PrinterCallback, set_seed
from transformers.utils import logging as transformers_logging

from ossia import events, hardware
from ossia.adapters import apply as lora
from ossia.checkpoint.locate import locate, tokenizer_folder
from ossia.checkpoint.reader import weights_digest
from ossia.config import Recipe
from ossia.errors import DoesNotFitError, OssiaError, UserError
from ossia.files import write_json
from ossia.generate.engine import Request, Sampling
from ossia.harmony.tokenizer.vocabulary import Vocabulary
from ossia.kernels.dispatch import attention_described
from ossia.model.load import load_model
from ossia.runs import Run
from ossia.sequences.example import TrainingExample
from ossia.sequences.sharing import Saving, Sharing, decide, estimated_saving, may_share
from ossia.sequences.weighting import weighted
from ossia.train import checkpoints, fsdp, routing
from ossia.train.arguments import chosen_optimizer, trainer_arguments
from ossia.train.callbacks import Interruption, Reporter, SampleWriter, Watch
from ossia.train.distributed import is_main, world_size
from ossia.train.health import RoutingHealth
from ossia.train.steps import Collator, fingerprint, model_obstacles
from ossia.train.trainer import OssiaTrainer

RECORD = "data/sha256.json"


def train(
    recipe: Recipe,
    run: Run,
    examples: Sequence[TrainingExample],
    validation: Sequence[TrainingExample],
    *,
    command: str = "",
    watch: Watch = lambda event: None,
    saving: Saving | None = None,
) -> events.Finished:
    """Fine-tune, or continue a run that was interrupted.

    Args:
        examples, validation: compiled training examples; validation may be empty.
        command: what started this, for the record.
        watch: called with every event as it is written.
        saving: what an epoch saves by sharing, if the caller has it (`ossia.sequences.sharing.estimated_saving`).

    Returns:
        The last event, whose status is done or stopped.

    Raises:
        UserError: no examples, the data changed since the run began, another process works on the run, or the recipe
            asks for what this job or machine does not have.
        OssiaError: loss or gradient are not finite, or a checkpoint could not be written.
        DoesNotFitError: the GPU ran out of memory.
    """
    if not examples:
        raise UserError("there is nothing to train on", do="ossia data check  shows why rows were left out")
    with _claimed(run):
        _check_data(run, examples, validation)
        return _train(recipe, run, examples, validation, command, watch, saving)


def _train(
    recipe: Recipe,
    run: Run,
    examples: Sequence[TrainingExample],
    validation: Sequence[TrainingExample],
    command: str,
    watch: Watch,
    saving: Saving | None,
) -> events.Finished:
    reporter = Reporter(run, watch, recipe.train.early_stopping)
    newest = run.steps()[-1] if run.steps() else 0
    if newest >= recipe.train.total_steps(len(examples)):
        last = events.Finished(status="done", reason="all steps done", step=newest)
        reporter.emit(last)
        return last
    sharded = _is_sharded(recipe)
    chosen_optimizer(recipe.train, hardware.device(recipe.model.device).value == "cpu")
    if newest:
        checkpoints.check_complete(run.checkpoint(newest))
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    set_seed(recipe.train.seed)
    folder = locate(recipe.model.path)
    _check_record(run, "base", weights_digest(folder), "the base model is not the one that this run began with")
    model = _model(recipe, folder, "cpu" if sharded else recipe.model.device)
    if newest:
        lora.load_adapter_weights(model, run.checkpoint(newest))
    balance, why = _balance(recipe, model)
    sharing = _sharing(recipe, model, examples, balance, saving)
    trainer, interruption = _trainer(recipe, run, model, examples, validation, folder, reporter, balance, sharing.on)
    reporter.emit(
        events.Started(
            command=command,
            pid=os.getpid(),
            total_steps=recipe.train.total_steps(len(examples)),
            examples=len(examples),
            validation_examples=len(validation),
            trained_tokens=sum(sum(1 for weight in example.weights if weight) for example in examples),
        )
    )
    if any(isinstance(event, events.Step) for event in events.read(run.path)):
        reporter.emit(events.Resumed(step=newest))
    for message in filter(None, (why, str(sharing), _attention(model, trainer.args.device))):
        reporter.emit(events.Note(level="info", message=message))
    try:
        trainer.train(resume_from_checkpoint=str(run.checkpoint(newest)) if newest else None)
    except (Exception, KeyboardInterrupt) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        reporter.emit(events.Finished(status="failed", reason=what, step=trainer.state.global_step))
        if isinstance(error, torch.OutOfMemoryError):
            raise DoesNotFitError(
                f"the GPU's memory was full at step {trainer.state.global_step + 1}",
                where=str(run.path),
                do="a new run with a smaller train.tokens_per_micro_batch and data.max_tokens; ossia plan estimates it",
            ) from error
        raise
    finally:
        interruption.restore()
        trainer.routers.close()
        torch.use_deterministic_algorithms(False)
    status = "stopped" if reporter.reason else "done"
    last = events.Finished(status=status, reason=reporter.reason or "all steps done", step=trainer.state.global_step)
    reporter.emit(last)
    return last


def _is_sharded(recipe: Recipe) -> bool:
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise UserError(
            "accelerate's configuration asks for FSDP, and Ossia shards the model itself",
            do="--set train.sharding=fsdp, and a launch without --use_fsdp",
        )
    if recipe.train.sharding == "none":
        return False
    fsdp.require_torch()
    if world_size() == 1:
        raise UserError(
            "train.sharding is fsdp, but this is a job of one process",
            do="torchrun --nproc-per-node 2 -m ossia train ..., or --set train.sharding=none",
        )
    return True


def _model(recipe: Recipe, folder: Path, device: str) -> Any:
    """The base with its adapter. Sharding takes it from main memory to the devices, a layer at a time."""
    dtype = hardware.dtype(recipe.model.dtype, hardware.device(recipe.model.device).value).value
    base = load_model(folder, dtype=dtype, device=device)
    base.name_or_path = recipe.model.path
    base.config.use_cache = False
    if recipe.lora.start_from:
        model = lora.load_adapter(base, Path(recipe.lora.start_from), trainable=True)
    else:
        model = lora.attach_adapter(base, **recipe.lora.model_dump(exclude={"start_from"}))
    if recipe.train.recompute:
        enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if recipe.train.offload:
        if hardware.device(recipe.model.device).value == "cpu":
            raise UserError(
                "train.offload sends activations to main memory, and on a CPU that is where they are",
                do="--set train.offload=false",
            )
        for layer in base.model.layers:
            layer.offload = True
    return model


def _attention(model: Any, device: torch.device) -> str:
    return attention_described(device, model.get_input_embeddings().weight.dtype, model.config.head_dim)


def _balance(recipe: Recipe, model: Any) -> tuple[float, str]:
    """The coefficient of the load-balancing loss, and in words why, where there is something to say."""
    wanted = recipe.train.balance_loss
    if not routing.is_trained(model):
        if wanted is not None:
            raise UserError(
                "train.balance_loss is set, but the router is frozen",
                why="a loss on what nothing can change would only be a number",
                do="router among lora.targets, or without train.balance_loss",
            )
        return 0.0, ""
    if wanted is not None:
        return wanted, f"the router is trained; load-balancing loss with coefficient {wanted:g}, as set"
    chosen = routing.DEFAULT_BALANCE
    return chosen, f"the router is trained, so a load-balancing loss (coefficient {chosen:g}) keeps it from collapsing"


def _sharing(
    recipe: Recipe, model: Any, examples: Sequence[TrainingExample], balance: float, saving: Saving | None
) -> Sharing:
    """Decide with the model as it is. The steps are looked at as they will come, unless somebody has done so."""
    settings, obstacles = recipe.train, model_obstacles(model, balance)
    if saving is None and may_share(settings.share_prefixes, obstacles):
        saving = estimated_saving(examples, settings.examples_per_step, settings.seed, settings.tokens_per_micro_batch)
    return decide(settings.share_prefixes, obstacles, saving)


def _trainer(
    recipe: Recipe,
    run: Run,
    model: Any,
    examples: Sequence[TrainingExample],
    validation: Sequence[TrainingExample],
    folder: Path,
    reporter: Reporter,
    balance: float,
    share: bool,
) -> tuple[OssiaTrainer, Interruption]:
    interruption = Interruption(reporter)
    health = RoutingHealth(
        validation or examples, recipe.train.tokens_per_micro_batch, recipe.train.evaluate_every, reporter.emit
    )
    callbacks: list[Any] = [reporter, interruption, health]
    if recipe.train.samples and validation:
        vocabulary = Vocabulary.load(tokenizer_folder(folder))
        sampling = Sampling(temperature=recipe.train.sample_temperature)
        like = Request(sampling=sampling, max_new_tokens=recipe.train.sample_tokens, seed=recipe.train.seed)
        callbacks.append(SampleWriter(validation[: recipe.train.samples], vocabulary, like, reporter.emit))
    arguments = trainer_arguments(recipe, run, len(examples), bool(validation))
    twin = None
    if recipe.train.sharding == "fsdp":
        twin = fsdp.Twin(model)
        fsdp.shard(model, arguments.device)
    with warnings.catch_warnings():
        # Trainer asks PEFT whether layers are recomputed through a name that transformers has deprecated.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        trainer = OssiaTrainer(
            model=model,
            args=arguments,
            data_collator=Collator(recipe.train.tokens_per_micro_batch, share),
            train_dataset=weighted(examples, recipe.train.loss_weighting),
            eval_dataset=list(validation) or None,
            callbacks=callbacks,
            run=run,
            keep_checkpoints=recipe.train.keep_checkpoints,
            examples_per_step=recipe.train.examples_per_step,
            twin=twin,
            by_examples=recipe.train.loss_weighting != "token",
            routers=routing.Routers(model.get_base_model().model.layers),
            balance=balance,
        )
    trainer.remove_callback(PrinterCallback)  # events go to whoever watches, not to stdout
    reporter.trainer = health.trainer = trainer
    return trainer, interruption


@contextmanager
def _claimed(run: Run) -> Iterator[None]:
    """Hold the run's lock, so that no other process trains here. The system lets go of it if we are killed."""
    if not is_main():
        yield
        return
    lock = FileLock(run.path / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError("another process is training in this run", where=str(run.path)) from None
    try:
        yield
    finally:
        lock.release()


def _check_data(run: Run, examples: Sequence[TrainingExample], validation: Sequence[TrainingExample]) -> None:
    now = fingerprint(examples, validation)
    _check_record(run, "examples", now, "the training data are not those that this run began with")


def _check_record(run: Run, name: str, now: str, what: str) -> None:
    """Compare a hash with the one that the run's first process wrote down, or write it down."""
    path = run.path / RECORD
    record = json.loads(path.read_text()) if path.is_file() else {}
    if record.get(name, now) != now:
        raise UserError(
            what,
            where=str(path),
            why="the loss would not continue where it stopped",
            do="restore what has changed, or start a new run",
        )
    if name not in record and is_main():
        if run.steps():
            raise OssiaError(f"the run has checkpoints but no record of its {name}", where=str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**record, name: now})
