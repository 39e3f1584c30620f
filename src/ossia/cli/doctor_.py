"""The command `ossia doctor`."""

from __future__ import annotations

import dataclasses

import typer

from ossia.cli import output
from ossia.cli.app import verb

app = verb("Check this machine, and report which recipes fit on it.")

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@app.command()
def doctor(json: output.Json = False) -> None:
    """Check this machine, and report which recipes fit on it. Exits with 1 if something fails."""
    from rich.text import Text

    from ossia.workflows.plan import examine_machine

    checks = []
    for check in examine_machine():
        checks.append(check)
        if not json:
            line = Text.assemble((f"{check.status:<5}", COLOURS[check.status]), f"{check.name}: {check.found}")
            output.out().print(line)
            if check.do and check.status != "ok":
                output.out().print(Text(f"     try: {check.do}"))
    counts = {status: sum(check.status == status for check in checks) for status in COLOURS}
    if json:
        output.print_json({"checks": [dataclasses.asdict(check) for check in checks], **counts})
    else:
        output.next_step("ossia recipes ls")
    if counts["fail"]:
        raise typer.Exit(1)
