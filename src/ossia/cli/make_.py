"""The commands `ossia make tiny` and `synthetic`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ossia.cli import output
from ossia.cli.app import verb

if TYPE_CHECKING:
    from ossia.workflows.models import StoredModel

app = verb("Make tiny and synthetic checkpoints for tests and rehearsals.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="The folder of the checkpoint.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the random weights.")]


@app.command()
def tiny(folder: Folder, seed: Seed = 0, json: output.Json = False) -> None:
    """Write a gpt-oss of a few megabytes with random weights.

    It has every feature of the architecture, and the real tokenizer.
    """
    from ossia.workflows import models

    with output.watching() as watch:
        made = models.make_tiny(folder, seed=seed, on_event=watch)
    _done(made, json)


@app.command()
def synthetic(
    model: Annotated[str, typer.Argument(help="gpt-oss-20b or gpt-oss-120b.")],
    folder: Folder,
    seed: Seed = 0,
    json: output.Json = False,
) -> None:
    """Write a checkpoint of the published size and layout with random weights.

    An interrupted checkpoint is continued.
    """
    from ossia.workflows import models

    with output.watching() as watch:
        made = models.make_synthetic(model, folder, seed=seed, on_event=watch)
    _done(made, json)


def _done(made: StoredModel, json: bool) -> None:
    if json:
        output.print_json({"folder": str(made.folder), "bytes": made.bytes})
        return
    output.out().print(f"{made.folder}  ({output.size(made.bytes)})", markup=False)
    output.next_step(f"ossia train tiny-demo --set model.path={made.folder}")
