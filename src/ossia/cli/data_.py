"""ossia data check | show | stats"""

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
    from ossia.config import DataSection, DataSource
    from ossia.data import Compiled
    from ossia.data.compile import Compiling
    from ossia.data.stats import Statistics
    from ossia.errors import Problem
    from ossia.harmony.tokenizer.vocabulary import Vocabulary

app = verb("Check, show and count conversations before training.", no_args_is_help=True)

SHOWN = 20
"""Problems of one kind that `check` prints one by one."""

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
        typer.Option("--against", metavar="FILE", help="Held-out data: report rows of it that these files have too."),
    ] = None,
    fix: Annotated[
        Path | None, typer.Option("--fix", metavar="FILE", help="Write a repaired copy (.jsonl) and say what changed.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Print every problem, however many of a kind.")] = False,
    similar: Annotated[bool, typer.Option("--similar/--no-similar", help="Search for near-duplicates.")] = True,
    set_: output.Set = None,
    model: output.Model = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 2 on warnings too.")] = False,
    json: output.Json = False,
) -> None:
    """Find what is wrong, row by row. Exits with 2 if a row cannot be used, or with --fix could not be mended."""
    from ossia.config import sources_of
    from ossia.data.fix import FIXES
    from ossia.errors import UserError

    asked = _opened(files, set_, model).unweighted()
    if fix is not None:
        if against or strict or every or not similar:
            what = "--fix goes with neither --against, --strict, --all nor --no-similar"
            raise UserError(what, do="check the repaired copy with them")
        _fix(asked, fix, json)
        return
    compiled = _compiled(asked.train, asked)
    held_out = sources_of(against) if against else asked.validation
    test = _compiled(held_out, asked) if held_out else None
    problems = _all_problems(compiled, test, similar)
    errors = sum(problem.level == "error" for problem in problems)
    usable = len(compiled.conversations) + (len(test.conversations) if test else 0)
    rows = compiled.rows + (test.rows if test else 0)
    formats = compiled.formats + (test.formats if test else type(compiled.formats)())
    if json:
        listed = [{**dataclasses.asdict(problem), "where": problem.where} for problem in problems]
        counts = {"errors": errors, "warnings": len(problems) - errors}
        output.print_json({"rows": rows, "usable": usable, "formats": formats, **counts, "problems": listed})
    else:
        console = output.out()
        for line in _lines(problems, None if every else SHOWN):
            console.print(line, markup=False)
        named = ", ".join(f"{count} {name}" for name, count in formats.items()) or "no known format"
        console.print(f"{rows} rows ({named}): {usable} usable, {errors} errors, {len(problems) - errors} warnings")
        mendable = any(problem.code in FIXES for problem in problems)
        step = "check {} --fix repaired.jsonl" if errors and mendable else "show {}"
        if usable or mendable:
            output.next_step(f"ossia data {step.format(asked.again)}")
    if errors or (strict and problems):
        raise typer.Exit(2)


@app.command()
def show(
    files: Files,
    row: Annotated[
        int | None, typer.Option("--row", min=1, help="Which row: its line in the file, from 1. Default: the first.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="At most so many conversations. Default: 1, 100 with --html.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write one HTML page instead, for any browser.")
    ] = None,
    tree: Annotated[
        bool, typer.Option("--tree", help="Draw a conversation's prefix tree: each token once, with what is trained.")
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
    """Show training examples, token by token, with what is trained marked."""
    from ossia.cli import data_show, data_tree
    from ossia.errors import UserError

    if sum(map(bool, (html, compare_template, json))) > 1:
        raise UserError("--html, --compare-template and --json exclude each other", do="give one of them")
    if tree and compare_template is not None:
        raise UserError("--compare-template compares sequences and --tree draws none", do="give one of them")
    asked = _opened(files, set_, model)
    most = limit if limit is not None else None if json or row is not None else 100 if html else 1
    found = _conversations(asked, row, most)
    if html is not None:
        data_show.write_page(html, found, asked.vocabulary, ", ".join(files), tree)
        output.next_step(f"open {shlex.quote(str(html))} in a browser")
    elif compare_template is not None:
        if not data_show.print_comparison(found, compare_template, asked.vocabulary):
            raise typer.Exit(1)
    elif json:
        (data_tree.print_tree_lines if tree else data_show.print_example_lines)(found)
    elif tree:
        data_tree.print_trees(found, asked.vocabulary)
        output.next_step(f"ossia data stats {asked.again}")
    else:
        data_show.print_examples(found, asked.vocabulary)
        output.next_step(f"ossia data stats {asked.again}")


@app.command()
def stats(
    files: Files,
    at: Annotated[
        str | None, typer.Option("--at", metavar="LENGTHS", help="Count truncation at these lengths: 1024,4096.")
    ] = None,
    set_: output.Set = None,
    model: output.Model = None,
    json: output.Json = False,
) -> None:
    """Count tokens: lengths, trained share, channels, turns, tools, languages, and what tree training saves."""
    from ossia.data import statistics
    from ossia.data.stats import LIMITS, detect_languages
    from ossia.errors import UserError

    asked = _opened(files, set_, model)
    limits = _lengths(at) if at is not None else LIMITS
    # Counted without the limit, to tell how much lies above it.
    limit = asked.settings.max_tokens
    unlimited = dataclasses.replace(asked, settings=asked.settings.model_copy(update={"max_tokens": 1 << 30}))
    compiled = _compiled(asked.train + asked.validation, unlimited)
    if not compiled.conversations:
        raise UserError("no row can be used", where=", ".join(files), do=f"ossia data check {asked.again}")
    if compiled.errors:
        output.err().print(f"{len(compiled.errors)} rows cannot be used; ossia data check names them", markup=False)
    with output.progress("counting", len(compiled.conversations)) as advance:
        steps = (asked.examples_per_step, asked.seed)
        counted = statistics(compiled.conversations, limit, limits, advance, steps)
    spoken = detect_languages(compiled.conversations, asked.vocabulary)
    if json:
        shares = {"trained_share": counted.trained_share, "saved_share": counted.saved_share}
        given = {"limit": limit, "examples_per_step": asked.examples_per_step}
        output.print_json({**dataclasses.asdict(counted), **shares, **given, "languages": spoken})
        return
    _print_statistics(counted, limit, spoken, asked.examples_per_step)
    name = shlex.quote(files[0])
    output.next_step(f"ossia plan {name}" if _is_recipe(files) else f"ossia plan <recipe> --set data.train={name}")


def _print_statistics(counted: Statistics, limit: int, spoken: dict[str, dict[str, int]], per_step: int) -> None:
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
        f"{counted.over_limit:,} longer than data.max_tokens = {limit}"
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
        (f"within a step of {per_step} examples", counted.tree_tokens_steps),
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


@dataclasses.dataclass(frozen=True)
class _Asked:
    """What a command works on."""

    train: list[DataSource]
    validation: list[DataSource]
    settings: DataSection
    vocabulary: Vocabulary
    cache: bool
    seed: int
    examples_per_step: int
    again: str
    """The files and options as they were typed, for the next command."""

    def unweighted(self) -> _Asked:
        """The same with every row once, whatever the mixture's weights."""
        train, validation = (
            [s.model_copy(update={"weight": 1.0}) for s in sources] for sources in (self.train, self.validation)
        )
        return dataclasses.replace(self, train=train, validation=validation)


def _opened(files: list[str], overrides: list[str] | None, model: str | None) -> _Asked:
    """Find out what is asked for. A recipe in place of files gives its data and settings."""
    from ossia import recipes
    from ossia.checkpoint.locate import vocabulary
    from ossia.config import sources_of
    from ossia.errors import UserError

    named = _is_recipe(files)
    recipe: Any = (
        recipes.load_recipe(files[0], overrides or [])
        if named
        else recipes.parse_recipe("", where="--set", overrides=overrides or [])
    )
    train = sources_of(recipe.data.train if named else files)
    if not train:
        raise UserError("the recipe names no training data", where=files[0], do="--set data.train=conversations.jsonl")
    if not named and (recipe.data.train or recipe.data.validation):
        raise UserError("the files are named already", where="--set data.train", do="name all of them as arguments")
    return _Asked(
        train=train,
        validation=sources_of(recipe.data.validation) if named else [],
        settings=recipe.data,
        vocabulary=vocabulary(model),
        cache=recipe.data.cache,
        seed=recipe.train.seed,
        examples_per_step=recipe.train.examples_per_step,
        again=shlex.join([*files, *(x for change in overrides or [] for x in ("--set", change)),
                          *(("--model", model) if model else ())]),
    )  # fmt: skip


def _is_recipe(files: list[str]) -> bool:
    from ossia import recipes

    return len(files) == 1 and (files[0] in recipes.available() or files[0].endswith((".yaml", ".yml")))


def _compiled(sources: list[DataSource], asked: _Asked) -> Compiled:
    """Compile on all cores. Raises UserError if there are no rows at all."""
    from ossia.data.compile import compile_sources, total_bytes, usable_cores
    from ossia.errors import UserError

    with output.progress("compiling (MB)", sum(map(total_bytes, sources)) // 10**6 or None) as advance:
        compiled = compile_sources(
            sources, asked.vocabulary, asked.settings,
            workers=usable_cores(), cache=asked.cache, seed=asked.seed, progress=output.in_millions(advance),
        )  # fmt: skip
    if not compiled.rows:
        raise UserError("there are no rows", where=", ".join(source.path for source in sources))
    return compiled


def _all_problems(compiled: Compiled, test: Compiled | None, similar: bool) -> list[Problem]:
    """What is wrong with single rows, and what only all of them together show."""
    from ossia.data import corpus

    problems = [*compiled.problems, *(test.problems if test else [])]
    if similar:
        with output.progress("searching near-duplicates", len(compiled.conversations)) as advance:
            problems += corpus.near_duplicates(compiled.conversations, advance)
    if test:
        problems += corpus.leaks(compiled.conversations, test.conversations)
    return [*problems, *corpus.effort_labels(compiled.conversations)]


def _conversations(asked: _Asked, row: int | None, most: int | None) -> Iterator[Compiling]:
    """Usable conversations as they are read.

    Raises UserError if there is none, or if `row` cannot be used.
    """
    from ossia.data.compile import compile_rows
    from ossia.errors import UserError

    count, first = 0, ""
    for source in asked.train + asked.validation:
        for done in compile_rows(source, asked.vocabulary, asked.settings, row):
            if done.rendered is None:
                first = first or next(str(problem) for problem in done.problems if problem.level == "error")
                if row is not None:
                    raise UserError(f"row {row} cannot be used", why=first, do="ossia data check FILE --fix COPY")
                continue
            yield done
            count += 1
            if row is not None or count == most:
                return
    if not count:
        what = "there is no usable conversation" if row is None else f"there is no row {row}"
        raise UserError(what, why=first or None, where=", ".join(source.path for source in asked.train))


def _lines(problems: list[Problem], most: int | None) -> Iterator[str]:
    """The problems as lines, at most so many of a kind, and how many more there are."""
    seen: Counter[str] = Counter()
    for problem in problems:
        seen[problem.code] += 1
        if most is None or seen[problem.code] <= most:
            yield str(problem)
    for code, count in seen.items():
        if most is not None and count > most:
            yield f"and {count - most:,} more of {code} (--all prints them)"


def _fix(asked: _Asked, to: Path, json: bool) -> None:
    """Write the repaired copy, say what changed, and keep what could not be repaired."""
    from json import dumps

    from ossia.data.fix import write_fixed
    from ossia.data.sources import settings_for

    written = write_fixed(asked.train, asked.settings, to)
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
        owns = [settings_for(source, asked.settings) for source in asked.train]
        if kept and all((own.format, own.columns) == (owns[0].format, owns[0].columns) for own in owns):
            options = ["--set", f"data.format={owns[0].format}"] if owns[0].format != "auto" else []
            options += ["--set", f"data.columns={dumps(owns[0].columns)}"] if owns[0].columns else []
            output.next_step(f"ossia data check {shlex.join([str(to), *options])}")
    if written.faulty:
        raise typer.Exit(2)
