"""The command `ossia fetch MODEL`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ossia.cli import output
from ossia.cli.app import verb

app = verb("Download gpt-oss from the hub, and continue interrupted downloads.")


@app.command()
def fetch(
    model: Annotated[str, typer.Argument(help="gpt-oss-20b, gpt-oss-120b, or OWNER/NAME on the hub.")],
    to: Annotated[Path | None, typer.Option("--to", help="Folder. Default: Ossia's cache ($OSSIA_CACHE).")] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit.")] = None,
    token: Annotated[
        str | None,
        typer.Option("--token", help="Default: $HF_TOKEN or the saved login. gpt-oss needs none.", show_default=False),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Download nothing, use files on this machine.")] = False,
    json: output.Json = False,
) -> None:
    """Download the needed files of a model and check them. An interrupted download is continued."""
    from ossia.workflows import models

    with output.watching() as watch:
        got = models.fetch(model, to, revision=revision, token=token, offline=offline, on_event=watch)
    if json:
        output.print_json({"model": got.repo, "folder": str(got.folder), "bytes": got.bytes})
        return
    output.out().print(f"{got.folder}  ({output.size(got.bytes)}, complete)", markup=False)
    output.next_step(f"ossia chat {got.folder if to else got.repo}")
