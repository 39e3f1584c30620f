"""The example data and the tiny base model that are included in Ossia, called `example:folder/file` in recipes.

An installed wheel has them inside the package. A source checkout has them in `examples/` at the top level.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from ossia.errors import UserError

PREFIX = "example:"


def resolve(name: str) -> str:
    """Return the path of an example. A name that does not begin with `example:` is returned unchanged.

    Raises:
        UserError: the example does not exist.
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
