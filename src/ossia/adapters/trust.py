"""What a run began with, and the one check that every command makes before it uses a run, a checkpoint or an adapter.

`identity.json` of a run folder holds the identity of the base and the digests of tokenizer and examples. It also holds
the recipe as it ran and the compute type. Resuming, evaluating, chatting and exporting call `check_unchanged` and
refuse what differs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from ossia.adapters import identity
from ossia.adapters.identity import IDENTITY_FILE, Base
from ossia.checkpoint import locate
from ossia.checkpoint.identity import BaseIdentity, base_identity
from ossia.checkpoint.reader import side_file
from ossia.errors import UserError
from ossia.events import OnEvent, ignore, transferring
from ossia.files import sha256_of, write_json
from ossia.harmony.tokenizer.encoder import PUBLISHED_SHA256
from ossia.runs import Run

FLAG = "--accept-changed-base"
CHANGEABLE = (
    "name", "description", "hardware", "model.path", "model.device", "data.cache", "eval", "chat", "data.train",
    "data.validation", "train.epochs", "train.steps", "train.evaluate_every", "train.checkpoint_every",
    "train.keep_checkpoints", "train.spare_folder", "train.early_stopping", "train.samples", "train.sample_tokens",
    "train.sample_temperature", "train.report_to",
)  # fmt: skip
"""Settings of a run's recipe that a person may edit: places, whose content is checked by itself, checkpointing,
evaluation, logging and the length of training."""


class RecordedBase(BaseModel):
    """The base that a run trains on: `BaseIdentity` with its hash, and the `path` that the recipe gave."""

    model_config = ConfigDict(extra="forbid", strict=True)

    path: str
    sha256: str
    shape: dict[str, Any]
    tensors: dict[str, str]

    @model_validator(mode="after")
    def _fits_its_hash(self) -> RecordedBase:
        if self.identity.sha256 != self.sha256:
            raise ValueError("the hash of the base is not that of its tensors")
        return self

    @property
    def identity(self) -> BaseIdentity:
        """The identity of the base."""
        return BaseIdentity(self.tensors, self.shape)


class Record(BaseModel):
    """What a run began with."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: int = 1
    base: RecordedBase
    tokenizer: str
    """SHA-256 of tokenizer.json."""
    examples: str
    """Digest of the training and validation examples (`Objective.fingerprint`)."""
    dtype: str
    """Compute type that `model.dtype` came to."""
    recipe: dict[str, Any]
    accepted: list[dict[str, Any]] = []
    """Changes of the base that somebody accepted: time and words."""


def new_record(run: Run, base: Base, *, examples: str, dtype: str) -> Record:
    """Return the record of a run that begins now, and write it into the run's folder."""
    stored = RecordedBase(path=base.name, **base.identity.to_json())
    recipe = run.recipe().model_dump(mode="json")
    record = Record(base=stored, tokenizer=base.tokenizer, examples=examples, dtype=dtype, recipe=recipe)
    write_json(run.path / IDENTITY_FILE, record.model_dump())
    return record


def read_record(run: Run) -> Record | None:
    """Return what a run began with; None if it has not begun, or an older Ossia made it.

    Raises:
        UserError: the record is damaged.
    """
    path = run.path / IDENTITY_FILE
    try:
        return Record.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise UserError(
            "the record of what the run began with is damaged",
            where=str(path),
            why=str(error).partition("\n")[0] or None,
            do="restore the file; or use a checkpoint's folder as an adapter (lora.start_from) in a new run",
        ) from None


def base_of(name: str, on_event: OnEvent = ignore) -> Base:
    """Return the base model of a recipe with its identity. Hashing a model that is new here is reported as progress.

    Raises:
        UserError: there is no such model.
    """
    folder = locate.locate(name)
    with transferring(on_event, "checking the base model") as report:
        identity = base_identity(folder, report)
    tokenizer = side_file(folder, "tokenizer.json")
    return Base(name, folder, identity, sha256_of(tokenizer) if tokenizer is not None else PUBLISHED_SHA256)


def check_unchanged(
    adapter: Path,
    base: Base,
    run: Run | None = None,
    *,
    accept_changed_base: bool = False,
) -> list[str]:
    """Refuse an adapter that is damaged, or whose base, tokenizer or recipe is not the one that it was trained with.

    Args:
        adapter: its folder, a run's checkpoint or any other.
        base: what it is going to be used with.
        run: the run that the checkpoint belongs to.
        accept_changed_base: go on with another base or tokenizer.

    Returns:
        What was accepted, in words.

    Raises:
        UserError: names what differs.
    """
    record = read_record(run) if run is not None else None
    found = identity.check_files(adapter)
    if run is None or record is None:
        return _allowed(identity.difference(adapter, found, base), base, accept_changed_base)
    _check_place(adapter, run, found)
    check_recipe(run, record)
    return check_record(record, base, accept_changed_base=accept_changed_base)


def check_record(record: Record, base: Base, *, accept_changed_base: bool = False) -> list[str]:
    """Refuse a base or a tokenizer that is not the one of a run's record; see `check_unchanged`."""
    found = record.base.identity.difference(base.identity)
    if not found and record.tokenizer != base.tokenizer:
        found = "tokenizer.json has another SHA-256"
    return _allowed(found, base, accept_changed_base)


def check_recipe(run: Run, record: Record) -> None:
    """Refuse a run whose recipe.yaml was edited where that would change what is trained or how it is used.

    Raises:
        UserError: names the keys, and the settings that may be edited.
    """
    now = run.recipe().model_dump(mode="json")
    edited = [key for key in _differences(record.recipe, now) if not _may_change(key)]
    if edited:
        more = f" and {len(edited) - 5} more" if len(edited) > 5 else ""
        raise UserError(
            f"the run's recipe was edited: {', '.join(edited[:5])}{more}",
            where=str(run.path / "recipe.yaml"),
            why=f"checkpoints belong to the recipe that made them; may change: {', '.join(CHANGEABLE)}",
            do="undo the edit, or start a new run (lora.start_from continues from a checkpoint)",
        )


def accept(run: Run, record: Record, words: list[str]) -> None:
    """Write into a run's record that a changed base was accepted."""
    entries = [{"time": time.time(), "what": each} for each in words]
    now = record.model_copy(update={"accepted": [*record.accepted, *entries]})
    write_json(run.path / IDENTITY_FILE, now.model_dump())


def _check_place(adapter: Path, run: Run, found: Mapping[str, Any] | None) -> None:
    """A checkpoint of a run that has a record has one too, and bears the number of its folder."""
    remedy = "use another checkpoint"
    if found is None:
        raise UserError(
            f"{IDENTITY_FILE} is missing", where=str(adapter), why="the checkpoint cannot be trusted", do=remedy
        )
    step = found.get("step")
    if type(step) is not int or adapter.resolve() != run.checkpoint(step).resolve():
        what = f"this folder holds the checkpoint of step {str(step)[:20]}"
        raise UserError(what, where=str(adapter), why="the folder was renamed or copied", do=remedy)


def _allowed(found: str, base: Base, accepted: bool) -> list[str]:
    """Return what was accepted; `found` says in words what differs, and is empty if nothing does."""
    if not found:
        return []
    if accepted:
        return [f"the base model {base.name} is not the one that the adapter was trained on ({found}); accepted"]
    raise UserError(
        f"the base model is not the one that the adapter was trained on: {found}",
        where=str(base.folder),
        why="the adapter's update fits the weights and token ids that it was trained on, and no others",
        do=f"restore the base, or name the right one; {FLAG} goes on with this one and records it",
    )


def _differences(before: Any, after: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys whose values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            yield from _differences(before.get(key), after.get(key), f"{prefix}{key}.")
    elif before != after:
        yield prefix.rstrip(".")


def _may_change(key: str) -> bool:
    return any(key == allowed or key.startswith(f"{allowed}.") for allowed in CHANGEABLE)
