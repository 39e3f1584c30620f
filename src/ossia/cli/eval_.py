"""The command `ossia eval RUN_OR_MODEL`."""

from __future__ import annotations

from typing import Annotated

import typer

from ossia.cli import output
from ossia.cli.app import verb

app = verb("Compare a run with its base on held-out questions.")


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run (folder, id, part of it, `last`) or a model.")],
    vs: Annotated[output.Against, typer.Option(help="Ask the base model the same questions.")] = output.Against.base,
    data: Annotated[list[str] | None, typer.Option(help="Held-out file. May be repeated. Default: eval.data.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most questions, drawn at random from the data.")] = None,
    checkpoint: Annotated[int | None, typer.Option(metavar="STEP", help="Default: the run's best checkpoint.")] = None,
    set_: output.Set = None,
    accept_changed_base: output.AcceptChangedBase = False,
    json: output.Json = False,
) -> None:
    """Ask held-out questions and print every measure before and after tuning, with 95 % intervals.

    Questions, answers and verdicts are written to the run's folder evals/. Ctrl-C keeps the answers so far.
    """
    from ossia.workflows import evaluate as workflow

    with output.watching() as watch:
        report = workflow.evaluate(
            run, data=data or (), vs_base=vs is output.Against.base, limit=limit, checkpoint=checkpoint,
            overrides=set_ or (), accept_changed_base=accept_changed_base, on_event=watch,
        )  # fmt: skip
    summary = report.summary()
    if json:
        output.print_json({"path": str(report.path), "complete": report.complete, **summary.to_json()})
    else:
        for columns, rows in (workflow.main_table(summary), workflow.group_table(summary)):
            if rows:
                output.table(columns, rows, right=columns[1:])
                output.out().print()
    for remark in workflow.remarks(summary):
        output.err().print(remark, markup=False)
    output.err().print(f"written to {report.path}", markup=False)
    if not report.complete:
        output.err().print(f"interrupted after {summary.questions} of {len(report.questions)} questions", markup=False)
        raise typer.Exit(130)
    output.next_step(f"ossia chat {run} --vs base" if "tuned" in report.arms else f"ossia chat {run}")
