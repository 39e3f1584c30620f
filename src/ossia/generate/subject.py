"""Who answers: a run's checkpoint, or a model folder as it is. Evaluation and chat take either by the same name.

The recipe of the run decides about the base weights, the compute type and the system message, so that questions are
rendered exactly as in training. A model folder has no recipe and gets the defaults.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ossia import recipes, runs
from ossia.checkpoint import locate
from ossia.checkpoint.reader import with_weights
from ossia.config import Recipe
from ossia.errors import UserError
from ossia.harmony.conversation import SystemSettings
from ossia.harmony.tokenizer.vocabulary import Vocabulary
from ossia.recipes import examples


@dataclass(frozen=True)
class Subject:
    """`run` and `checkpoint` (a folder with an adapter) are None for a model folder."""

    recipe: Recipe
    run: runs.Run | None = None
    checkpoint: Path | None = None

    @property
    def name(self) -> str:
        """For people: the run and its checkpoint, or the model."""
        if self.run is None or self.checkpoint is None:
            return self.recipe.model.path
        return f"{self.run.id} {self.checkpoint.name}"

    def system(self) -> SystemSettings:
        """The system message of the recipe."""
        data = self.recipe.data
        return SystemSettings(identity=data.identity, date=data.date, effort=data.effort)

    def vocabulary(self) -> Vocabulary:
        """The tokenizer of the base model. Raises UserError if there is no such model."""
        return locate.vocabulary(self.recipe.model.path)

    def model(self) -> Any:
        """Return the model (a `PeftModel` if there is a checkpoint) in evaluation mode.

        Raises:
            UserError: no such model, or an incomplete one; not an adapter of this model.
        """
        from ossia.model import load

        section = self.recipe.model
        model = load.load_model(locate.locate(section.path), dtype=section.dtype, device=section.device)
        if self.checkpoint is None:
            return model
        from ossia.adapters.apply import load_adapter

        return load_adapter(model, self.checkpoint).eval()


def find(reference: str, *, checkpoint: int | None = None, overrides: Iterable[str] = ()) -> Subject:
    """Resolve a run (folder, id, part of an id, `last`) or a model (folder, name of a fetched one, `example:...`).

    Args:
        checkpoint: the step; by default the run's best checkpoint.
        overrides: `section.key=value`, on top of the run's recipe or of the defaults.

    Raises:
        UserError: there is neither such a run nor such a model, or the run has no such checkpoint.
    """
    if _is_model(reference):
        if checkpoint is not None:
            raise UserError("a model folder has no checkpoints", where=reference, do="leave --checkpoint out")
        recipe = recipes.parse("", where="defaults", overrides=overrides)
        model = recipe.model.model_copy(update={"path": reference})
        return Subject(recipe.model_copy(update={"model": model}))
    try:
        run = runs.find(reference)
    except UserError as error:
        why = f"not a folder with a config.json either; runs: {error.what}{f' ({error.why})' if error.why else ''}"
        raise UserError(f"there is no run and no model {reference!r}", why=why, do="ossia runs ls") from None
    recipe = recipes.load(str(run.path / "recipe.yaml"), overrides)
    if checkpoint is None:
        return Subject(recipe, run, run.best_checkpoint())
    if checkpoint not in run.steps():
        there = ", ".join(map(str, run.steps())) or "none"
        raise UserError(f"there is no checkpoint of step {checkpoint}", where=str(run.path), why=f"there are: {there}")
    return Subject(recipe, run, run.checkpoint(checkpoint))


def _is_model(reference: str) -> bool:
    if reference.startswith(examples.PREFIX) or with_weights(Path(reference)) is not None:
        return True
    if (Path(reference) / "recipe.yaml").is_file():
        return False
    from ossia.checkpoint import hub

    return hub.local(reference) is not None
