"""The commands `ossia data check`, `show` and `stats`."""

from __future__ import annotations

import dataclasses
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ossia.cli import output
from ossia.cli.app import verb

if TYPE_CHECKING:
    from ossia.errors import Problem
    from ossia.workflows.data import Counted

app = verb("Check, show and count conversations before training.", no_args_is_help=True)

SHOWN = 20
"""Largest number of problems of one kind that `check` prints without --all."""

Files = Annotated[
    list[str],
    typer.Argument(
        help="Files (jsonl, json, csv, parquet), folders or hub data set ids; or one recipe (.yaml or name)."
    ),
]


@app.command()
def check(
    files: Files,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", metavar="FILE", help="Held-out data. Report its rows that are also in these files."),
    ] = None,
    fix: Annotated[
        Path | None, typer.Option("--fix", metavar="FILE", help="Write a repaired copy (.jsonl) and list the changes.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Print every problem of each kind.")] = False,
    similar: Annotated[bool, typer.Option("--similar/--no-similar", help="Search for near-duplicates.")] = True,
    set_: output.Set = None,
    model: output.Model = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 2 on warnings too.")] = False,
    json: output.Json = False,
) -> None:
    """Report the problems of data, row by row. Exits with 2 if a row cannot be used, or repaired with --fix."""
    from ossia.errors import UserError
    from ossia.workflows import data

    if fix is not None:
        if against or strict or every or not similar:
            what = "--fix cannot be combined with --against, --strict, --all or --no-similar"
            raise UserError(what, do="check the repaired copy with these options")
        _fix(files, fix, set_ or [], model, json)
        return
    with output.watching() as watch:
        checked = data.check(
            files, against=against or (), similar=similar, overrides=set_ or (), model=model, on_event=watch
        )
    errors = len(checked.errors)
    if json:
        output.print_json(checked.as_dict())
    else:
        console = output.out()
        for line in _lines(checked.problems, None if every else SHOWN):
            console.print(line, markup=False)
        named = ", ".join(f"{count} {name}" for name, count in checked.formats.items()) or "no known format"
        counts = f"{checked.usable} usable, {errors} errors, {len(checked.warnings)} warnings"
        console.print(f"{checked.rows} rows ({named}): {counts}")
        step = "check {} --fix repaired.jsonl" if errors and checked.is_mendable else "show {}"
        if checked.usable or checked.is_mendable:
            output.next_step(f"ossia data {step.format(data.command_arguments(files, set_ or (), model))}")
    if errors or (strict and checked.problems):
        raise typer.Exit(2)


@app.command()
def show(
    files: Files,
    row: Annotated[
        int | None, typer.Option("--row", min=1, help="Line number of the row in the file, from 1. Default: the first.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Most conversations to show. Default: 1, or 100 with --html.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write one HTML page instead, for any browser.")
    ] = None,
    tree: Annotated[
        bool, typer.Option("--tree", help="Draw a conversation's prefix tree: each token once, trained tokens marked.")
    ] = False,
    compare_template: Annotated[
        str | None,
        typer.Option(
            "--compare-template", metavar="TEMPLATE",
            help="Show where a chat template renders other tokens: a .jinja file, or a checkpoint (folder or id).",
        ),
    ] = None,
    set_: output.Set = None,
    model: output.Model = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per training example (or tree), of all rows.")
    ] = False,
) -> None:  # fmt: skip
    """Show training examples token by token, with the trained tokens marked."""
    from ossia.cli import data_show, data_tree
    from ossia.errors import UserError
    from ossia.workflows import data

    if sum(map(bool, (html, compare_template, json))) > 1:
        raise UserError("--html, --compare-template and --json exclude each other", do="give one of them")
    if tree and compare_template is not None:
        raise UserError("--tree and --compare-template exclude each other", do="give one of them")
    most = limit if limit is not None else None if json or row is not None else 100 if html else 1
    opened = data.read_conversations(files, row=row, limit=most, overrides=set_ or (), model=model)
    again = data.command_arguments(files, set_ or (), model)
    if html is not None:
        count = data.write_page(html, ", ".join(files), opened.rows, opened.vocabulary, trees=tree)
        output.out().print(f"{'trees of ' * tree}{count} conversations written to {html}", markup=False)
        output.next_step(f"open {shlex.quote(str(html))} in a browser")
    elif compare_template is not None:
        if not data_show.print_comparison(opened, compare_template):
            raise typer.Exit(1)
    elif json:
        (data_tree.print_tree_lines if tree else data_show.print_example_lines)(opened)
    else:
        (data_tree.print_trees if tree else data_show.print_examples)(opened)
        output.next_step(f"ossia data stats {again}")


@app.command()
def stats(
    files: Files,
    at: Annotated[
        str | None, typer.Option("--at", metavar="LENGTHS", help="Count the examples longer than these: 1024,4096.")
    ] = None,
    set_: output.Set = None,
    model: output.Model = None,
    json: output.Json = False,
) -> None:
    """Count tokens: lengths, trained share, channels, turns, tools, languages, and the saving by shared prefixes."""
    from ossia.workflows import data

    with output.watching() as watch:
        limits = _lengths(at) if at is not None else data.LIMITS
        counted = data.count_tokens(files, at=limits, overrides=set_ or (), model=model, on_event=watch)
    if json:
        output.print_json(counted.as_dict())
        return
    _print_statistics(counted)
    name = shlex.quote(files[0])
    output.next_step(f"ossia plan {name}" if data.is_recipe(files) else f"ossia plan <recipe> --set data.train={name}")


def _print_statistics(found: Counted) -> None:
    counted, spoken = found.statistics, found.languages
    console = output.out()

    def counts(of: dict[Any, int], most: int = 8) -> str:
        shown = [f"{name} {count:,}" for name, count in list(of.items())[:most]]
        return ", ".join(shown) + (f" and {len(of) - most} more" if len(of) > most else "")

    console.print(
        f"{counted.rows:,} conversations, {counted.examples:,} examples (assistant turns), {counted.tokens:,} tokens, "
        f"{counted.trained_tokens:,} trained ({counted.trained_share:.0%})"
    )
    console.print(
        f"lengths: median {counted.median:,}, 95% at most {counted.percentile_95:,}, longest {counted.longest:,}; "
        f"{counted.over_limit:,} longer than data.max_tokens = {found.limit}"
    )
    most = max(counted.histogram.values(), default=1)
    bars = [(f"<= {top:,}", f"{count:,}", "#" * max(1, count * 40 // most)) for top, count in counted.histogram.items()]
    output.table(("tokens", "examples", ""), bars, right=("tokens", "examples"))
    if counted.over:
        shown = [f"{count:,} over {bound:,}" for bound, count in counted.over.items()]
        console.print("examples by length: " + "; ".join(shown))
    output.table(
        ("channel", "tokens", "trained"),
        [(name or "(none)", f"{all_:,}", f"{trained:,}") for name, (all_, trained) in counted.channels.items()],
        right=("tokens", "trained"),
    )
    turns = ", ".join(f"{count:,} with {number}" for number, count in counted.turns.items())
    console.print(f"trained turns per conversation: {turns}")
    if counted.alternatives:
        console.print(f"answers kept beside the trained one: {counts(counted.alternatives)}")
    shared = (
        ("none", counted.tokens),
        ("within a conversation", counted.tree_tokens),
        (f"within a step of {found.examples_per_step} examples", counted.tree_tokens_steps),
        ("everywhere", counted.tree_tokens_across),
    )
    output.table(
        ("shared prefixes", "tokens", "saved", "times"),
        [
            (name, f"{left:,}", f"{1 - left / counted.tokens:.0%}", f"{counted.tokens / left:.2f}x")
            for name, left in shared
        ],
        right=("tokens", "saved", "times"),
    )
    if counted.tools or counted.with_tools:
        console.print(
            f"tools: declared in {counted.with_tools:,} conversations; calls: {counts(counted.tools) or 'none'}"
        )
    console.print(f"effort: {counts(counted.efforts)}")
    for name, title in (("user", "questions"), ("analysis", "thoughts"), ("final", "answers")):
        if name in spoken:
            console.print(f"languages of {title} (a sample): {counts(spoken[name])}")
    if counted.reasoning_languages:
        console.print(f"reasoning languages as labelled: {counts(counted.reasoning_languages)}")


def _lengths(text: str) -> tuple[int, ...]:
    from ossia.errors import UserError

    words = [word.strip().replace("_", "") for word in text.split(",")]
    if not all(word.isdigit() and int(word) > 0 for word in words):
        raise UserError("lengths are whole numbers with commas between them", where=f"--at {text}", do="--at 1024,4096")
    return tuple(sorted(map(int, words)))


def _lines(problems: list[Problem], most: int | None) -> Iterator[str]:
    """Yield the problems as lines, at most `most` of a kind, and then the numbers of further problems."""
    seen: Counter[str] = Counter()
    for problem in problems:
        seen[problem.code] += 1
        if most is None or seen[problem.code] <= most:
            yield str(problem)
    for code, count in seen.items():
        if most is not None and count > most:
            yield f"and {count - most:,} more of {code} (--all prints them)"


def _fix(files: list[str], to: Path, overrides: list[str], model: str | None, json: bool) -> None:
    """Write the repaired copy, print the changes, and write rows that cannot be repaired to another file."""
    from json import dumps

    from ossia.workflows.data import repair

    repaired = repair(files, to, overrides=overrides, model=model)
    written, own = repaired.written, repaired.settings
    kept = written.unchanged + written.repaired
    if json:
        output.print_json(dataclasses.asdict(written))
    else:
        for line in written.lines:
            output.out().print(line, markup=False)
        where = (f"; written to {to}" if kept else "; nothing to write") + (
            f", the rest to {written.rejects}" if written.rejects else ""
        )
        output.out().print(
            f"{written.rows} rows: {written.unchanged} unchanged, {written.repaired} repaired, {written.left_out} left "
            f"out{where}",
            markup=False,
        )
        if kept and own is not None:
            options = ["--set", f"data.format={own.format}"] if own.format != "auto" else []
            options += ["--set", f"data.columns={dumps(own.columns)}"] if own.columns else []
            output.next_step(f"ossia data check {shlex.join([str(to), *options])}")
    if written.faulty:
        raise typer.Exit(2)
