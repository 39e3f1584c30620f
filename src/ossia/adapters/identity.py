"""The identity of a saved adapter: the SHA-256 of every file beside it, and the base that it was trained on.

Checkpoints of a run and adapters that Ossia exports hold `identity.json`. Adapters of other programs have no such file;
their `adapter_config.json` names the base. Neither torch nor PEFT is imported.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ossia.adapters.config import read_config
from ossia.checkpoint.identity import BaseIdentity, base_identity
from ossia.checkpoint.locate import locate
from ossia.errors import OssiaError, UserError
from ossia.files import files_below, sha256_of, write_json

IDENTITY_FILE = "identity.json"
_FORMAT = 1


@dataclass(frozen=True)
class Base:
    """A base model: the name that a recipe or an adapter gives it, its folder and what is in it."""

    name: str
    folder: Path
    identity: BaseIdentity
    tokenizer: str
    """SHA-256 of tokenizer.json; of the published one where the folder has none."""


def seal(folder: Path, base: Base | dict[str, Any], **facts: Any) -> None:
    """Write `identity.json` for a folder whose other files are complete.

    Args:
        base: the base of the adapter; or, for a copy of a sealed folder, the entry `base` of its `identity.json`.
        facts: further entries, such as `run` and `step`.
    """
    if isinstance(base, Base):
        base = {"path": base.name, "sha256": base.identity.sha256}
    files = {name: sha256_of(path) for name, path in files_below(folder).items() if name != IDENTITY_FILE}
    write_json(folder / IDENTITY_FILE, {"format": _FORMAT, **facts, "base": base, "files": files})


def read_identity(folder: Path) -> dict[str, Any] | None:
    """Return the content of a folder's `identity.json`; None if it has none.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / IDENTITY_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from None
    files, base = (content.get(key) if isinstance(content, dict) else None for key in ("files", "base"))
    if not isinstance(files, dict) or not isinstance(base, dict) or not isinstance(base.get("sha256"), str):
        raise _damaged(path, "keys are missing")
    if any(not isinstance(name, str) or not isinstance(value, str) for name, value in files.items()):
        raise _damaged(path, "an entry of `files` is not a hash")
    assert isinstance(content, dict)
    return content


def check_files(folder: Path) -> dict[str, Any] | None:
    """Compare every file of an adapter's folder with `identity.json` and return that file's content.

    Files that it does not list are not looked at. None: the folder has no `identity.json`.

    Raises:
        UserError: a file is missing or not the one that was written.
    """
    remedy = "use another checkpoint, or restore the file"
    identity = read_identity(folder)
    for name, digest in (identity or {"files": {}})["files"].items():
        path = folder / name
        if ".." in Path(name).parts or Path(name).is_absolute() or not path.is_file():
            raise UserError(f"{name} is missing", where=str(folder), why=f"{IDENTITY_FILE} lists it", do=remedy)
        if sha256_of(path) != digest:
            raise UserError(
                f"{name} is not the file that was written: its SHA-256 differs",
                where=str(path),
                why="the disk, a copy or a program has changed it since",
                do=remedy,
            )
    return identity


def foreign_files(folder: Path) -> list[str]:
    """Return the names of the files in a folder that its `identity.json` does not list."""
    try:
        listed = {IDENTITY_FILE, *(read_identity(folder) or {"files": {}})["files"]}
    except UserError:
        listed = set()
    return [name for name in files_below(folder) if name not in listed]


def difference(folder: Path, identity: dict[str, Any] | None, base: Base) -> str:
    """Return in words where a base differs from the one that an adapter's folder names; empty if it does not.

    Args:
        identity: the content of the folder's `identity.json`, if it has one.
    """
    if identity is not None:
        recorded = identity["base"]
        if recorded["sha256"] == base.identity.sha256:
            return ""
        return f"{IDENTITY_FILE} names {recorded.get('path', 'a base')} with SHA-256 {recorded['sha256'][:12]}"
    named = read_config(folder).base_model
    if not named or named == base.name or Path(named).name.lower() == Path(base.name).name.lower():
        return ""
    try:
        other = locate(named)
    except OssiaError:
        return f"adapter_config.json names {named}"
    if other.resolve() == base.folder.resolve():
        return ""
    return base_identity(other).difference(base.identity) and f"adapter_config.json names {named}"


def _damaged(path: Path, why: str) -> UserError:
    return UserError(
        f"the record of the files is damaged ({why})",
        where=str(path),
        do="use another checkpoint; without this file the others cannot be trusted",
    )
