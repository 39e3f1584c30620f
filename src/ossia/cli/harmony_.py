"""The commands `ossia harmony render` and `parse`."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ossia.cli import output
from ossia.cli.app import verb

app = verb("Convert chat messages to Harmony tokens, and tokens to messages.", no_args_is_help=True)


@app.command()
def render(
    file: Annotated[str, typer.Argument(help="A chat request or a list of messages, in JSON; - for stdin.")],
    whole: Annotated[
        bool, typer.Option("--whole", help="Render old thoughts too, and no <|start|>assistant at the end.")
    ] = False,
    order: Annotated[
        Literal["channel-first", "recipient-first"],
        typer.Option("--order", help="Header order of calls: as the model samples, or as openai-harmony writes."),
    ] = "channel-first",
    text: Annotated[bool, typer.Option("--text", help="Print the text, with control tokens as text.")] = False,
    model: output.Model = None,
) -> None:
    """Print the token ids of the prompt that the model continues, as one line of JSON."""
    from ossia.workflows import harmony

    where = "stdin" if file == "-" else file
    with output.watching() as watch:
        ids = harmony.render_request(
            _json_of(file, where), where=where, whole=whole, order=order, model=model, on_event=watch
        )  # fmt: skip
    print(harmony.decode(ids, model=model) if text else json.dumps({"ids": ids}))


@app.command()
def parse(
    file: Annotated[str, typer.Argument(help="A stream on each line: [1, 2] or {'ids': [1, 2]}; - for stdin.")] = "-",
    start: Annotated[
        Literal["assistant-header", "message"],
        typer.Option("--start", help="Streams begin after <|start|>assistant, like sampled ones, or with <|start|>."),
    ] = "assistant-header",
    text: Annotated[
        bool, typer.Option("--text", help="Lines are texts, or JSON strings, with control tokens as text.")
    ] = False,
    model: output.Model = None,
) -> None:
    """Print the messages of token streams, each as one line of JSON. Any stream gives messages.

    A line that is not a stream is reported on stderr, and the other lines are read. Then the exit code is 2.
    """
    from ossia.errors import UserError, harmless
    from ossia.workflows import harmony

    bad = False
    for stream, (where, line) in enumerate(_lines(file)):
        try:
            read = _text_of(line, where) if text else _ids_of(line, where)
            messages = harmony.parse_stream(read, start=start, model=model)
        except UserError as error:
            bad = True
            print(f"error: {harmless(str(error))}", file=sys.stderr)
            continue
        for message in messages:
            row = {"stream": stream, **dataclasses.asdict(message)}
            print(json.dumps(row, ensure_ascii=False))
        sys.stdout.flush()
    if bad:
        raise typer.Exit(2)


def _json_of(file: str, where: str) -> Any:
    from ossia.errors import UserError

    data = sys.stdin.buffer.read() if file == "-" else _bytes_of(file)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"this is not JSON: {error}", where=where) from error


def _bytes_of(file: str) -> bytes:
    from ossia.errors import UserError

    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise UserError(f"the file cannot be read: {error.strerror or error}", where=file) from error


def _lines(file: str) -> Iterator[tuple[str, str]]:
    """Yield place and text of every line that is not blank."""
    lines = sys.stdin.buffer if file == "-" else _bytes_of(file).splitlines()
    name = "stdin" if file == "-" else file
    for number, line in enumerate(lines, start=1):
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if text.strip():
            yield f"{name}:{number}", text


def _ids_of(line: str, where: str) -> list[int]:
    from ossia.errors import UserError

    do = "[200005, 17196, 200008, 13225, 200002]"
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"this is not JSON: {error}", where=where, do=do) from error
    ids = value.get("ids") if isinstance(value, dict) else value
    if not isinstance(ids, list):
        raise UserError("this is not a list of ids", where=where, do=do)
    for place, id in enumerate(ids):
        if type(id) is not int:
            raise UserError(f"item {place} is not an id: {json.dumps(id)[:60]}", where=where, do=do)
    return ids


def _text_of(line: str, where: str) -> str:
    """Return the line itself, or the value of a JSON string."""
    from ossia.errors import UserError

    if not line.startswith('"'):
        return line
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UserError(f"this is not a JSON string: {error}", where=where) from error
    return str(value)
