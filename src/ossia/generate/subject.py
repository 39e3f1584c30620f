"""The subject of a chat, an evaluation or an export: a run's checkpoint, an adapter on its base, or a model.

The recipe of the run gives the base weights, the compute dtype and the system message, so that questions are rendered
exactly as in training. Exports say how their model was trained. Other adapters and models get the defaults.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ossia import recipes, runs
from ossia.adapters import trust
from ossia.adapters.config import CONFIG_FILE, read_config
from ossia.adapters.identity import IDENTITY_FILE
from ossia.checkpoint import locate
from ossia.checkpoint.reader import with_weights
from ossia.config import DataSection, Recipe, SamplingSection
from ossia.errors import UserError
from ossia.events import OnEvent, ignore
from ossia.generate.engine import Engine, Request, Sampling
from ossia.harmony.builtin import builtin_namespaces
from ossia.harmony.conversation import SystemSettings
from ossia.harmony.tokenizer.vocabulary import Vocabulary
from ossia.recipes import examples

RENDERING = ("identity", "knowledge_cutoff", "date", "effort", "builtin_tools", "header_order")
"""Settings of a recipe's section `data` that determine how a conversation is rendered."""
REPORT = "report.json"
"""The file of an export that describes it."""
RENDERING_FILES = (REPORT, IDENTITY_FILE)
"""Files of an export or a checkpoint that hold these settings under the key `rendering`."""


@dataclass(frozen=True)
class Subject:
    """The model that a reference stands for. `engine` and `model` load it."""

    recipe: Recipe
    """Its section `model` names the base model."""
    run: runs.Run | None = None
    """The run that the adapter belongs to. None for an adapter folder and for a model."""
    adapter: Path | None = None
    """Folder of the adapter on the base model. None for a model without an adapter."""

    @property
    def name(self) -> str:
        """A name for display: the run and its checkpoint, the adapter's folder, or the model."""
        if self.adapter is None:
            return self.recipe.model.path
        return f"{self.run.id} {self.adapter.name}" if self.run is not None else str(self.adapter)

    def system(self) -> SystemSettings:
        """Return the system message of the recipe."""
        return system_of(self.recipe.data)

    def vocabulary(self) -> Vocabulary:
        """Return the tokenizer of the base model.

        Raises:
            UserError: there is no such model.
        """
        return locate.vocabulary(self.recipe.model.path)

    def model(self) -> Any:
        """Return the model (a `PeftModel` if there is an adapter) in evaluation mode.

        Raises:
            UserError: the model is missing or incomplete, or the adapter does not belong to this model.
        """
        from ossia.model import load

        section = self.recipe.model
        model = load.load_model(locate.locate(section.path), dtype=section.dtype, device=section.device)
        if self.adapter is None:
            return model
        from ossia.adapters.apply import load_adapter

        return load_adapter(model, self.adapter).eval()

    def check(self, *, accept_changed_base: bool = False, on_event: OnEvent = ignore) -> list[str]:
        """See that files, base and recipe are those that belong together, before anything is loaded.

        A model without an adapter belongs to nothing else, and nothing is compared.

        Returns:
            What `accept_changed_base` accepted, in words, for whoever records what is done with it.

        Raises:
            UserError: names what differs, see `ossia.adapters.trust.check_unchanged`.
        """
        if self.adapter is None:
            return []
        base = trust.base_of(self.recipe.model.path, on_event)
        return trust.check_unchanged(self.adapter, base, self.run, accept_changed_base=accept_changed_base)

    def engine(self, *, batch_size: int = 16) -> Engine:
        """Load the model and return an engine on it.

        Args:
            batch_size: most requests that are answered together.

        Raises:
            UserError: as in `model`.
        """
        from ossia.generate.native import SerialEngine

        return SerialEngine(self.model(), batch_size=batch_size)


def system_of(data: DataSection) -> SystemSettings:
    """Return the system message that a recipe trains with, built-in tools included."""
    tools = builtin_namespaces(data.builtin_tools)
    return SystemSettings(data.identity, data.knowledge_cutoff, data.date, data.effort, tools)


def rendering_of(data: DataSection) -> dict[str, Any]:
    """Return the settings of a recipe that determine how a conversation is rendered, for reports and other folders."""
    return data.model_dump(mode="json", include=set(RENDERING))


def request_of(section: SamplingSection, seed: int) -> Request:
    """Return a request with the settings of a recipe's section and without a prompt."""
    sampling = Sampling(section.temperature, section.top_k, section.top_p, section.min_p)
    return Request(sampling=sampling, max_new_tokens=section.max_new_tokens, seed=seed)


def open_subject(reference: str, *, checkpoint: int | None = None, overrides: Iterable[str] = ()) -> Subject:
    """Return the run, checkpoint, adapter or model that a reference stands for.

    Args:
        reference: the name or folder of one of these:

            * a run: its folder, its id, a part of its id, or `last`
            * a checkpoint: its folder in a run
            * an adapter: its folder, in PEFT's layout
            * a model: its folder, the name of a fetched model, or `example:...`
        checkpoint: the step of a run's checkpoint. None: the run's best checkpoint.
        overrides: `section.key=value`, applied to the run's recipe or to the defaults.

    Raises:
        UserError: nothing matches the reference, the run does not have the checkpoint, or `checkpoint` is given for an
            adapter or a model. Also if an adapter does not name its base model.
    """
    if _is_model(reference):
        _refuse_step(checkpoint, "a model folder", reference)
        return Subject(_defaults(reference, overrides, Path(reference)))
    folder = Path(reference)
    if (folder / CONFIG_FILE).is_file():
        _refuse_step(checkpoint, "an adapter folder", reference)
        run = runs.Run(folder.resolve().parent.parent)
        if folder.resolve().parent.name == "checkpoints" and (run.path / "recipe.yaml").is_file():
            return Subject(recipes.load_recipe(str(run.path / "recipe.yaml"), overrides), run, folder)
        given = list(overrides)
        named = any(override.partition("=")[0].strip() == "model.path" for override in given)
        return Subject(_defaults(None if named else _base_of(folder), given, folder), None, folder)
    try:
        run = runs.find_run(reference)
    except UserError as error:
        why = f"it is not a folder with a config.json; runs: {error.what}{f' ({error.why})' if error.why else ''}"
        raise UserError(f"there is no run and no model {reference!r}", why=why, do="ossia runs ls") from None
    recipe = recipes.load_recipe(str(run.path / "recipe.yaml"), overrides)
    if checkpoint is None:
        return Subject(recipe, run, run.best_checkpoint())
    if checkpoint not in run.steps():
        there = ", ".join(map(str, run.steps())) or "none"
        raise UserError(f"there is no checkpoint of step {checkpoint}", where=str(run.path), why=f"there are: {there}")
    return Subject(recipe, run, run.checkpoint(checkpoint))


def _refuse_step(checkpoint: int | None, what: str, reference: str) -> None:
    if checkpoint is not None:
        raise UserError(f"{what} has no checkpoints", where=reference, do="leave --checkpoint out")


def _defaults(model: str | None, overrides: Iterable[str], folder: Path) -> Recipe:
    """The default recipe on a model, rendered as a folder of Ossia's says. None: overrides name the model."""
    values: dict[str, Any] = {} if model is None else {"model": {"path": model}}
    where = "defaults"
    for name in RENDERING_FILES:
        found = _rendering_in(folder / name)
        if found is not None:
            values, where = values | {"data": found}, str(folder / name)
            break
    return recipes.parse_recipe(json.dumps(values, ensure_ascii=False), where=where, overrides=overrides)


def _rendering_in(file: Path) -> dict[str, Any] | None:
    """The settings that Ossia wrote into a file; None if it is not Ossia's or has none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["rendering"]
        return {name: found[name] for name in RENDERING if name in found}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _base_of(adapter: Path) -> str:
    """Return the base model that an adapter's configuration names."""
    base = read_config(adapter).base_model
    if not base:
        raise UserError(
            "the adapter does not say which model it belongs to",
            where=str(adapter),
            do="--set model.path=MODEL; for an export --model MODEL",
        )
    return base


def _is_model(reference: str) -> bool:
    if reference.startswith(examples.PREFIX) or with_weights(Path(reference)) is not None:
        return True
    if (Path(reference) / "recipe.yaml").is_file():
        return False
    from ossia.checkpoint import hub

    return hub.local(reference) is not None
