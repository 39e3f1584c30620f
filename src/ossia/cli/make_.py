"""ossia make tiny | synthetic"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ossia.cli import output
from ossia.cli.app import verb

app = verb("Make tiny and synthetic checkpoints for tests and rehearsals.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="Where to write the checkpoint.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the random weights.")]


@app.command()
def tiny(folder: Folder, seed: Seed = 0, json: output.Json = False) -> None:
    """Write a gpt-oss of a few megabytes: every feature of the architecture, the real tokenizer, random weights."""
    from ossia.checkpoint.tiny import write_tiny

    with output.progress("writing", None):
        write_tiny(folder, seed=seed)
    _done(folder, json)


@app.command()
def synthetic(
    model: Annotated[str, typer.Argument(help="gpt-oss-20b or gpt-oss-120b.")],
    folder: Folder,
    seed: Seed = 0,
    json: output.Json = False,
) -> None:
    """Write a checkpoint of the published size and layout with random weights. Continues an interrupted one."""
    from ossia.checkpoint.synthetic import write_synthetic
    from ossia.plan.inputs import published_shape

    shape = published_shape(model)
    with output.transfer(f"writing {model}") as report:
        write_synthetic(folder, shape, seed, report)
    _done(folder, json)


def _done(folder: Path, json: bool) -> None:
    from ossia.checkpoint.reader import CheckpointReader

    size = CheckpointReader(folder).bytes
    if json:
        output.print_json({"folder": str(folder), "bytes": size})
        return
    output.out().print(f"{folder}  ({output.size(size)})", markup=False)
    output.next_step(f"ossia train tiny-demo --set model.path={folder}")
