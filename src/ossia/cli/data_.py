"""ossia data check | show | stats"""

from __future__ import annotations

import dataclasses
import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ossia.cli import output
from ossia.cli.app import verb

if TYPE_CHECKING:
    from ossia.data.load import Loaded
    from ossia.data.settings import DataSettings
    from ossia.harmony.problem import Problem
    from ossia.harmony.vocabulary import Vocabulary

app = verb("Check, show and count conversations before training.", no_args_is_help=True)

Files = Annotated[
    list[str],
    typer.Argument(
        help="Files (jsonl, json, csv, parquet), folders or hub data set ids; or one recipe (.yaml or name)."
    ),
]
Model = Annotated[
    str | None, typer.Option("--model", help="Checkpoint whose tokenizer to use. Default: the published vocabulary.")
]


@app.command()
def check(
    files: Files,
    set_: output.Set = None,
    model: Model = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 2 on warnings too.")] = False,
    json: output.Json = False,
) -> None:
    """Find what is wrong, row by row. Exits with 2 if a row cannot be used."""
    from ossia.data.checks import check_examples

    sources, settings, vocabulary = _opened(files, set_, model)
    loaded = _loaded(sources, settings)
    before = len(loaded.errors)
    check_examples(loaded.conversations, vocabulary, settings, loaded.problems.append)
    good = len(loaded.conversations) - (len(loaded.errors) - before)
    if json:
        rows = [{**dataclasses.asdict(problem), "where": problem.where} for problem in loaded.problems]
        counts = {"errors": len(loaded.errors), "warnings": len(loaded.warnings)}
        usable = {"rows": loaded.rows, "usable": good, "formats": loaded.formats}
        output.print_json({**usable, **counts, "problems": rows})
    else:
        console = output.out()
        for problem in loaded.problems:
            console.print(str(problem), markup=False)
        formats = ", ".join(f"{count} {name}" for name, count in loaded.formats.items()) or "no known format"
        console.print(
            f"{loaded.rows} rows ({formats}): {good} usable, "
            f"{len(loaded.errors)} errors, {len(loaded.warnings)} warnings"
        )
        output.next_step(f"ossia data show {shlex.quote(files[0])}")
    if loaded.errors or (strict and loaded.warnings):
        raise typer.Exit(2)


@app.command()
def show(
    files: Files,
    row: Annotated[int, typer.Option("--row", min=1, help="Which conversation, from 1.")] = 1,
    set_: output.Set = None,
    model: Model = None,
    json: output.Json = False,
) -> None:
    """Show a conversation's training examples, token by token, with what is trained marked."""
    from ossia.data import examples_of
    from ossia.data.checks import place
    from ossia.errors import UserError
    from ossia.harmony.preview import preview

    sources, settings, vocabulary = _opened(files, set_, model)
    loaded = _loaded(sources, settings)
    if row > len(loaded.conversations):
        first = f"; first problem: {loaded.problems[0]}" if loaded.problems else ""
        raise UserError(f"there are {len(loaded.conversations)} usable conversations, not {row}{first}")
    found: list[Problem] = []
    examples = examples_of(loaded.conversations[row - 1], vocabulary, settings, found.append)
    for problem in found:
        output.err().print(str(place(problem, loaded.conversations[row - 1].source)), markup=False)
    if json:
        output.print_json(
            [{**dataclasses.asdict(e), "tokens": [vocabulary.token_text(i) for i in e.ids]} for e in examples]
        )
        return
    console = output.out()
    for example in examples:
        title = f"{example.row} turn {example.turn + 1}: {len(example.ids)} tokens, {example.trained_tokens} trained"
        console.print(title, markup=False, style="bold")
        marked = (example.ids, example.weights, example.channels, vocabulary)
        console.print(preview(*marked, colour=console.is_terminal, legend=example is examples[0]))
        console.print()
    output.next_step(f"ossia data stats {shlex.quote(files[0])}")


@app.command()
def stats(files: Files, set_: output.Set = None, model: Model = None, json: output.Json = False) -> None:
    """Count tokens: lengths, trained share, channels, turns."""
    from ossia.data import examples_of, statistics

    sources, settings, vocabulary = _opened(files, set_, model)
    loaded = _loaded(sources, settings)
    if loaded.errors:
        output.err().print(f"{len(loaded.errors)} rows cannot be used; ossia data check names them", markup=False)
    # Counted without the limit, to tell how much lies above it.
    unlimited = dataclasses.replace(settings, max_tokens=1 << 30)
    with output.progress("counting", len(loaded.conversations)) as advance:
        examples = []
        for conversation in loaded.conversations:
            examples += examples_of(conversation, vocabulary, unlimited)
            advance(1)
    counted = statistics(examples, settings.max_tokens)
    languages = Counter(
        str(c.extra["reasoning_language"]) for c in loaded.conversations if "reasoning_language" in c.extra
    )
    if json:
        output.print_json({**dataclasses.asdict(counted), "trained_share": counted.trained_share,
                           "limit": settings.max_tokens, "reasoning_languages": languages})  # fmt: skip
        return
    console = output.out()
    console.print(
        f"{counted.rows} conversations, {counted.examples} examples (assistant turns), {counted.tokens:,} tokens, "
        f"{counted.trained_tokens:,} trained ({counted.trained_share:.0%})"
    )
    console.print(
        f"lengths: median {counted.median}, 95% at most {counted.percentile_95}, longest {counted.longest}; "
        f"{counted.over_limit} longer than data.max_tokens = {settings.max_tokens}"
    )
    most = max(counted.histogram.values(), default=1)
    bars = [(f"<= {top}", count, "#" * max(1, count * 40 // most)) for top, count in counted.histogram.items()]
    output.table(("tokens", "examples", ""), bars, right=("tokens", "examples"))
    output.table(
        ("channel", "tokens", "trained"),
        [(name or "(none)", f"{all_:,}", f"{trained:,}") for name, (all_, trained) in counted.channels.items()],
        right=("tokens", "trained"),
    )
    turns = ", ".join(f"{count} with {number}" for number, count in counted.turns.items())
    console.print(f"trained turns per conversation: {turns}")
    if languages:
        console.print("reasoning languages: " + ", ".join(f"{name} {count}" for name, count in languages.most_common()))
    name = shlex.quote(files[0])
    output.next_step(f"ossia plan {name}" if _is_recipe(files) else f"ossia plan <recipe> --set data.train={name}")


def _opened(
    files: list[str], overrides: list[str] | None, model: str | None
) -> tuple[list[str], DataSettings, Vocabulary]:
    """Return (sources, settings, vocabulary). A recipe in place of files gives its data and settings."""
    from ossia import recipes
    from ossia.data.prepare import settings_of
    from ossia.errors import UserError
    from ossia.harmony.vocabulary import Vocabulary

    named = _is_recipe(files)
    recipe: Any = (
        recipes.load(files[0], overrides or [])
        if named
        else recipes.parse("", where="--set", overrides=overrides or [])
    )
    sources = [*recipe.data.train, *recipe.data.validation] if named else list(files)
    if not sources:
        raise UserError("the recipe names no training data", where=files[0], do="--set data.train=conversations.jsonl")
    return sources, settings_of(recipe.data), Vocabulary.load(_tokenizer(model))


def _is_recipe(files: list[str]) -> bool:
    from ossia import recipes

    return len(files) == 1 and (files[0] in recipes.available() or files[0].endswith((".yaml", ".yml")))


def _loaded(sources: list[str], settings: DataSettings) -> Loaded:
    """Read the data. Raises UserError if there are no rows at all."""
    from ossia.data import load_conversations
    from ossia.errors import UserError

    loaded = load_conversations(sources, settings)
    if not loaded.rows:
        raise UserError("there are no rows", where=", ".join(sources))
    return loaded


def _tokenizer(model: str | None) -> Path | None:
    if model is None:
        return None
    from ossia.model.locate import locate

    return locate(model)
