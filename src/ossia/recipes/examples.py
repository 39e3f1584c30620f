"""The example data and the tiny base model that come with Ossia, named `example:folder/file` in recipes.

In a wheel they lie inside the package, in a checkout in `examples/` at its top.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from ossia.errors import UserError

PREFIX = "example:"


def resolve(name: str) -> str:
    """Return the path that a name stands for: `example:` names are looked up, everything else is returned as it is.

    Raises:
        UserError: there is no such example.
    """
    if not name.startswith(PREFIX):
        return name
    wanted = name.removeprefix(PREFIX)
    for folder in _folders():
        if (folder / wanted).exists():
            return str(folder / wanted)
    raise UserError(f"there is no example {wanted!r}", where=", ".join(str(folder) for folder in _folders()))


def _folders() -> list[Path]:
    package = Path(str(resources.files("ossia")))
    return [package / "examples", package.parent.parent / "examples"]
