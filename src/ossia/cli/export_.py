"""The command `ossia export RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ossia.cli import output
from ossia.cli.app import verb
from ossia.workflows import export as workflow
from ossia.workflows.export import ExpertsFormat

app = verb("Merge the adapter and write a checkpoint for other programs.")

_TARGETS = workflow.all_targets().values()


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="A run (folder, id, part of the id, or `last`), or an adapter folder.")],
    to: Annotated[
        str,
        typer.Option(
            metavar=f"<{'|'.join(target.name for target in _TARGETS)}>",
            help=" ".join(f"{target.name}: {target.help}." for target in _TARGETS),
        ),
    ] = workflow.DEFAULT,
    out: Annotated[Path | None, typer.Option(help="A new or empty folder. Default: in the run's exports.")] = None,
    experts: Annotated[
        ExpertsFormat,
        typer.Option(help="Format of the merged experts. auto: four bits if they keep the fine-tune, else bf16."),
    ] = "auto",
    checkpoint: Annotated[int | None, typer.Option(help="Step of the checkpoint. Default: the best one.")] = None,
    model: Annotated[str | None, typer.Option(help="Base model of an adapter folder: folder or hub id.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export in that folder.")] = False,
    accept_changed_base: output.AcceptChangedBase = False,
    json: output.Json = False,
) -> None:
    """Write a tuned model for other programs, verify it, and print the effect of rounding on the fine-tune."""
    with output.watching() as watch:
        done = workflow.export(
            run, to=to, out=out, experts=experts, checkpoint=checkpoint, model=model, overwrite=overwrite,
            accept_changed_base=accept_changed_base, on_event=watch,
        )  # fmt: skip
    for warning in done.warnings:
        output.err().print(f"warning: {warning}", markup=False)
    if json:
        output.print_json({"path": str(done.path), "warnings": done.warnings, **done.report})
    else:
        for label, text in _facts(done.path, done.report):
            output.out().print(f"{label:<20} {text}", markup=False)
    if workflow.find_target(to).is_model:
        output.next_step(f"ossia chat {done.path}")
    elif done.run is not None:
        output.next_step(f"ossia chat {done.run.id}")


def _facts(path: Path, report: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("written", str(path)), ("base", report["base"])]
    if "verified" not in report:
        return [*rows, ("files", ", ".join(report["sha256"]))]
    experts, update, verified = report["experts"], report["update"], report["verified"]
    rows.append(("experts", f"{experts['layout']}: {experts['reason']}"))
    text = "{rho:.2%} of the weights, {keep:.0%} kept, noise {error:.2f} times the update"
    for name, part in update.items():
        if name != "tensors" and part["rho"]:
            rows.append((f"update of {name}", text.format(**part)))
    text = "{tensors} tensors verified, {identical_to_source} identical to the base's"
    rows.append(("bytes", text.format(**verified["bytes"])))
    if kept := report["template"]["kept"]:
        rows.append(("chat template", f"Ossia's, which renders as in training; the base's is kept as {kept}"))
    logits = verified["logits"]
    if "skipped" in logits:
        return [*rows, ("logits", f"not compared: {logits['skipped']}")]
    text = "KL to base + adapter: mean {mean_kl:.2g}, max {max_kl:.2g} nats per token; likeliest token equal {top1:.1%}"
    rows.append(("logits", text.format(**logits)))
    return [*rows, ("", f"(the tuning itself changed the base by {logits['effect_kl']:.2g} nats per token)")]
