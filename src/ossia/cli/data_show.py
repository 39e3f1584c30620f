"""The ways in which `ossia data show` shows training examples: terminal, JSON lines, HTML, against a template."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ossia.cli import output

if TYPE_CHECKING:
    from ossia.data.compile import Compiling
    from ossia.data.rendered import Example
    from ossia.harmony.tokenizer.vocabulary import Vocabulary


def print_examples(found: Iterable[Compiling], vocabulary: Vocabulary) -> None:
    """Draw every example in the terminal, or as plain text where there is none; of a pair, the rejected one too."""
    from ossia.harmony.preview import preview

    console, first = output.out(), True
    for done in found:
        assert done.rendered is not None
        for problem in done.problems:
            output.err().print(str(problem), markup=False)
        rejected = done.rendered.rejected
        for example in [*done.rendered.examples, *([rejected] if rejected is not None else [])]:
            dropped = f", {example.dropped_turns} old turns left out" if example.dropped_turns else ""
            title = f"turn {example.turn + 1}: {len(example)} tokens, {example.trained_tokens} trained{dropped}"
            title += ", rejected: not trained, here with the marks of a target" * (example.role == "rejected")
            console.print(f"{example.row} {title}", markup=False, style="bold")
            marked = (example.ids, example.weights, example.channels, vocabulary)
            console.print(preview(*marked, colour=console.is_terminal, legend=first))
            console.print()
            first = False


def print_example_lines(found: Iterable[Compiling]) -> None:
    """Print one JSON object per training example."""
    for done in found:
        assert done.rendered is not None
        for example in done.rendered.examples:
            print(json.dumps(example_as_json(example, done.row.file, done.row.line, done.format), ensure_ascii=False))


def example_as_json(example: Example, file: str, row: int, format: str) -> dict[str, Any]:
    """An example for other programs. `row` and `turn` count from 1; `weight` is there if one is neither 0 nor 1."""
    weights = example.weights
    shown: dict[str, Any] = {
        "file": file,
        "row": row,
        "turn": example.turn + 1,
        "format": format,
        "input_ids": example.ids,
        "trained": [int(weight > 0) for weight in weights],
        "channel": example.channels,
    }
    if any(weight not in (0, 1) for weight in weights):
        shown["weight"] = weights
    if example.dropped_turns:
        shown["dropped_turns"] = example.dropped_turns
    return shown


def write_page(path: Path, found: Iterable[Compiling], vocabulary: Vocabulary, title: str, tree: bool) -> None:
    """Write the HTML page, of trees or of examples, over an older page of ours and over nothing else.

    Raises:
        UserError: there is another file, or it cannot be written.
    """
    from ossia.data.page import MARK, page, tree_page
    from ossia.errors import UserError
    from ossia.files import write_atomically

    if path.is_file() and MARK not in path.read_bytes()[:1000].decode("utf-8", "replace"):
        raise UserError("the file exists already and is no page of ours", where=str(path), do="choose another name")
    shown = [(done.rendered, list(map(str, done.problems))) for done in found if done.rendered is not None]
    try:
        write_atomically(path, "".join((tree_page if tree else page)(title, shown, vocabulary)))
    except OSError as error:
        raise UserError(f"the page cannot be written ({error.strerror})", where=str(path)) from error
    output.out().print(f"{'trees of ' * tree}{len(shown)} conversations written to {path}", markup=False)


def print_comparison(found: Iterable[Compiling], template: str, vocabulary: Vocabulary) -> bool:
    """Say for every conversation where the template gives the model other tokens, then sum up. True: nowhere."""
    from ossia.harmony.template import compare
    from ossia.harmony.to_openai import chat_form

    text, name = _template(template)
    console = output.out()
    equal = total = differing = refused = 0
    for done in found:
        assert done.conversation is not None
        total += 1
        compared = compare(*chat_form(done.conversation), text, vocabulary)
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
    console.print(
        f"{total} conversations: {equal} with equal tokens, {refused} refused, {differing} places where {name} differs",
        markup=False,
    )
    if equal < total:
        output.next_step("export with Ossia's template, which renders what was trained: ossia export RUN --to hf")
    return equal == total


def _template(named: str) -> tuple[str, str]:
    """The text of a chat template and a name for it: from a .jinja file, or from a checkpoint."""
    from ossia.errors import UserError

    path = Path(named)
    if path.is_file() and path.suffix != ".json":
        return _checked(path), path.name
    if path.suffix in (".jinja", ".j2", ".json"):
        raise UserError("No such template", where=named, do="name a .jinja file, or a checkpoint's folder or id")
    if not path.is_dir():
        from ossia.checkpoint.locate import locate

        path = locate(named)
    if (path / "chat_template.jinja").is_file():
        return _checked(path / "chat_template.jinja"), f"the template of {path.name}"
    config = path / "tokenizer_config.json"
    template = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    if isinstance(template, list):  # several, by name
        template = next((entry.get("template") for entry in template if entry.get("name") == "default"), None)
    if not isinstance(template, str):
        raise UserError("the checkpoint has no chat template", where=str(path), do="name a .jinja file")
    return template, f"the template of {path.name}"


def _checked(path: Path) -> str:
    """The text of a template that at least compiles."""
    from jinja2 import TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    from ossia.errors import UserError

    try:
        text = path.read_text(encoding="utf-8")
        extensions = ["jinja2.ext.loopcontrols"]
        # {% generation %} is an extension of transformers; it marks and does not change what is rendered.
        plain = text.replace("{% generation %}", "").replace("{% endgeneration %}", "")
        ImmutableSandboxedEnvironment(extensions=extensions).parse(plain)
    except UnicodeDecodeError as error:
        raise UserError("the template is not UTF-8", where=str(path), why=str(error)) from error
    except TemplateSyntaxError as error:
        raise UserError(f"the template is not valid Jinja: {error.message}", where=f"{path}:{error.lineno}") from error
    return text
