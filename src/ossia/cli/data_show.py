"""The output of `ossia data show`: in the terminal, as JSON lines, or compared with a template."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ossia.cli import output
from ossia.workflows import data

if TYPE_CHECKING:
    from ossia.workflows.data import OpenData


def print_examples(opened: OpenData) -> None:
    """Print every example with marks, and the rejected answers of preference pairs. Colours need a terminal."""
    console, first = output.out(), True
    for done in opened.rows:
        for problem in done.problems:
            output.err().print(str(problem), markup=False)
        for example, is_rejected in opened.examples(done):
            dropped = f", {example.dropped_turns} old turns left out" if example.dropped_turns else ""
            title = f"turn {example.turn + 1}: {len(example)} tokens, {example.trained_tokens} trained{dropped}"
            title += ", rejected: not trained, but marked like a target" * is_rejected
            console.print(f"{example.row} {title}", markup=False, style="bold")
            marked = (example.ids, example.weights, example.channels, opened.vocabulary)
            console.print(data.preview(*marked, colour=console.is_terminal, legend=first))
            console.print()
            first = False


def print_example_lines(opened: OpenData) -> None:
    """Print one JSON object per training example."""
    for done in opened.rows:
        for shown in data.examples_as_json(done):
            print(json.dumps(shown, ensure_ascii=False))


def print_comparison(opened: OpenData, named: str) -> bool:
    """Print the places where a template renders other tokens, and the totals. Return whether all tokens are equal.

    Args:
        named: a .jinja file, or a checkpoint (folder or hub id).

    Raises:
        UserError: the template cannot be read.
    """
    template = data.read_template(named)
    console = output.out()
    equal = total = differing = refused = 0
    for done in opened.rows:
        total += 1
        compared = data.compare_with_template(done, template, opened.vocabulary)
        if compared.equal:
            equal += 1
            continue
        console.print(f"{done.row.where}", style="bold", markup=False)
        if compared.theirs is None:
            refused += 1
            console.print(f"  the template refuses it: {compared.refusal}", markup=False)
        for hunk in compared.hunks:
            differing += 1
            console.print(f"  token {hunk.index}: …{hunk.before!r}", markup=False)
            console.print(f"    ossia     {hunk.ours!r}", markup=False, style="green")
            console.print(f"    template  {hunk.theirs!r}", markup=False, style="red")
    counts = f"{equal} with equal tokens, {refused} refused, {differing} places where {template.name} differs"
    console.print(f"{total} conversations: {counts}", markup=False)
    if equal < total:
        output.next_step("export with Ossia's template, which renders the trained tokens: ossia export RUN --to hf")
    return equal == total
