"""The workflows that provide models: download published ones, and make tiny and synthetic ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ossia.events import OnEvent, counting, ignore, transferring


@dataclass(frozen=True)
class StoredModel:
    """A complete checkpoint on this machine."""

    folder: Path
    bytes: int
    """Total size of its tensors."""
    repo: str | None = None
    """Name on the hub, OWNER/NAME. None for models made on this machine."""


def fetch(
    model: str,
    to: str | Path | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
    on_event: OnEvent = ignore,
) -> StoredModel:
    """Return a model of the hub, downloaded to this machine and checked.

    Only missing files are downloaded. An earlier attempt is continued.

    Args:
        model: gpt-oss-20b, gpt-oss-120b, or OWNER/NAME on the hub.
        to: the folder of the model. By default it is a folder in Ossia's cache.
        revision: branch, tag or commit.
        token: an access token of the hub. By default it is $HF_TOKEN or the saved login.
        offline: download nothing, and use only files on this machine.
        on_event: called with progress.

    Raises:
        UserError: there is no such model, or it is not on this machine and `offline` is set.
        OssiaError: the download failed.
        DoesNotFitError: the disk is too small.
    """
    from ossia.checkpoint import hub

    with transferring(on_event, f"fetching {model}") as report:
        folder = hub.fetch(
            model, None if to is None else Path(to),
            revision=revision, token=token, offline=offline or None, progress=report,
        )  # fmt: skip
    return _stored(folder, hub.repo_id(model))


def make_tiny(folder: str | Path, *, seed: int = 0, on_event: OnEvent = ignore) -> StoredModel:
    """Write and return a gpt-oss of a few megabytes with random weights.

    It has every feature of the architecture, and the real tokenizer.

    Raises:
        UserError: the folder is not empty.
    """
    from ossia.checkpoint.tiny import write_tiny

    with counting(on_event, "writing"):
        write_tiny(Path(folder), seed=seed)
    return _stored(Path(folder))


def make_synthetic(model: str, folder: str | Path, *, seed: int = 0, on_event: OnEvent = ignore) -> StoredModel:
    """Write and return a checkpoint of the published size and layout with random weights.

    An interrupted checkpoint is continued.

    Args:
        model: gpt-oss-20b or gpt-oss-120b.

    Raises:
        UserError: there is no such model, or the folder contains other files.
        DoesNotFitError: the disk is too small.
    """
    from ossia.checkpoint.synthetic import write_synthetic
    from ossia.plan.inputs import published_shape

    shape = published_shape(model)
    with transferring(on_event, f"writing {model}") as report:
        write_synthetic(Path(folder), shape, seed, report)
    return _stored(Path(folder))


def _stored(folder: Path, repo: str | None = None) -> StoredModel:
    from ossia.checkpoint.reader import CheckpointReader

    return StoredModel(folder, CheckpointReader(folder).bytes, repo)
