"""ossia harmony render | parse"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ossia.cli import output
from ossia.cli.app import verb

if TYPE_CHECKING:
    from ossia.config import Effort
    from ossia.errors import Problem
    from ossia.harmony.conversation import Conversation, SystemSettings

app = verb("Turn chat messages into Harmony tokens and tokens into messages.", no_args_is_help=True)

_RENDERED = {
    "messages", "tools", "functions", "system", "instructions", "builtin_tools", "response_format", "reasoning_effort",
    "reasoning",
}  # fmt: skip


@app.command()
def render(
    file: Annotated[str, typer.Argument(help="A chat request or a list of messages, in JSON; - for stdin.")],
    whole: Annotated[
        bool, typer.Option("--whole", help="Everything, old thoughts too, and no <|start|>assistant at the end.")
    ] = False,
    order: Annotated[
        Literal["channel-first", "recipient-first"],
        typer.Option("--order", help="Header order of calls: as the model samples, or as openai-harmony writes."),
    ] = "channel-first",
    text: Annotated[bool, typer.Option("--text", help="Print the text, control tokens spelt out.")] = False,
    model: output.Model = None,
) -> None:
    """Print the tokens that the model is given to continue, as one line of JSON."""
    from ossia.checkpoint.locate import vocabulary as vocabulary_of
    from ossia.harmony.render import render_conversation, render_prompt

    where = "stdin" if file == "-" else file
    conversation = _conversation(_json_of(file, where), where)
    vocabulary = vocabulary_of(model)
    ids = (render_conversation if whole else render_prompt)(conversation, vocabulary, order)
    print(vocabulary.decode(ids) if text else json.dumps({"ids": ids}))


@app.command()
def parse(
    file: Annotated[str, typer.Argument(help="A stream on each line: [1, 2] or {'ids': [1, 2]}; - for stdin.")] = "-",
    start: Annotated[
        Literal["assistant-header", "message"],
        typer.Option("--start", help="Streams begin after <|start|>assistant, as sampled ones do, or with <|start|>."),
    ] = "assistant-header",
    text: Annotated[
        bool, typer.Option("--text", help="Lines are texts, or JSON strings, with control tokens spelt out.")
    ] = False,
    model: output.Model = None,
) -> None:
    """Print the messages of token streams, each as one line of JSON. Any stream gives messages.

    A line that is no stream is named on stderr, the others are read, and the exit code is 2.
    """
    from ossia.checkpoint.locate import vocabulary as vocabulary_of
    from ossia.errors import UserError, harmless
    from ossia.harmony.parse import Parser, parse_text

    vocabulary = None if text else vocabulary_of(model)
    bad = False
    for stream, (where, line) in enumerate(_lines(file)):
        try:
            if vocabulary is None:
                messages = parse_text(_text_of(line, where), start)
            else:
                parser = Parser(vocabulary, start)
                for id in _ids_of(line, where):
                    parser.push(id)
                parser.finish()
                messages = parser.messages
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


# Reading a chat request


def _conversation(value: Any, where: str) -> Conversation:
    """The conversation in a chat request. Raises UserError with the file and the place in it."""
    from ossia.errors import UserError
    from ossia.harmony.from_openai import conversation_from_chat

    request: Mapping[str, Any] = {"messages": value} if isinstance(value, list) else value
    if not isinstance(request, Mapping) or not isinstance(request.get("messages"), list):
        raise UserError(
            "this is neither a list of messages nor an object with one",
            where=where,
            do='{"messages": [{"role": "user", "content": "Hi"}]}',
        )
    left_out = [key for key in request if key not in _RENDERED]
    if left_out:
        output.err().print(f"not rendered: {', '.join(map(str, left_out))}", markup=False)
    messages = list(request["messages"])
    paths = [f"messages[{index}]" for index in range(len(messages))]
    if (instructions := request.get("instructions")) is not None:
        messages, paths = [{"role": "developer", "content": instructions}, *messages], ["instructions", *paths]
    return conversation_from_chat(
        messages,
        request.get("tools") or request.get("functions"),
        system=_system(request, where),
        effort=_effort(request, where),
        builtin_tools=_builtin_tools(request, where),
        response_format=request.get("response_format"),
        report=lambda problem: _report(problem, where),
        paths=paths,
    )


def _report(problem: Problem, where: str) -> None:
    placed = dataclasses.replace(problem, file=where)
    if problem.level == "error":
        raise placed.to_error()
    output.err().print(str(placed), markup=False)


def _system(request: Mapping[str, Any], where: str) -> SystemSettings | None:
    """`system` of the request: null for none, an object with the settings to change."""
    from ossia.errors import UserError, did_you_mean
    from ossia.harmony.conversation import DEFAULT_SYSTEM

    given = request.get("system", {})
    if given is None:
        return None
    types: dict[str, type] = {"identity": str, "knowledge_cutoff": str, "date": str, "effort": str, "channels": list}
    for key, value in given.items() if isinstance(given, Mapping) else [("", given)]:
        place = f"{where} system.{key}".removesuffix(".")
        if not key or (value is not None and not isinstance(value, types.get(key, object))):
            raise UserError("this has the wrong type", where=place, do='"system": {"date": "2026-01-31"}')
        if key not in types:
            close = did_you_mean(key, types)
            raise UserError(
                f"{key} is not a setting of the system message",
                where=place,
                do=f"did you mean {close}?" if close else f"settings are {', '.join(types)}",
            )
        if key == "effort" and value is not None:
            _checked_effort(value, place)
    settings: dict[str, Any] = {
        key: tuple(map(str, value)) if isinstance(value, list) else value for key, value in given.items()
    }
    return dataclasses.replace(DEFAULT_SYSTEM, **settings)


def _builtin_tools(request: Mapping[str, Any], where: str) -> list[str]:
    from ossia.errors import UserError

    names = request.get("builtin_tools") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError("this is no list of names", where=f"{where} builtin_tools", do='["python", "browser"]')
    return names


def _effort(request: Mapping[str, Any], where: str) -> Effort | None:
    """`reasoning_effort`, as in Chat Completions, or `reasoning.effort`, as in Responses."""
    reasoning = request.get("reasoning")
    if (value := request.get("reasoning_effort")) is not None:
        return _checked_effort(value, f"{where} reasoning_effort")
    value = reasoning.get("effort") if isinstance(reasoning, Mapping) else reasoning
    return None if value is None else _checked_effort(value, f"{where} reasoning")


def _checked_effort(value: Any, place: str) -> Effort:
    from ossia.config import EFFORTS
    from ossia.errors import UserError

    for effort in EFFORTS:
        if value == effort:
            return effort
    raise UserError(f"{value!r} is no effort", where=place, do=f"one of {', '.join(EFFORTS)}")


# Reading files and lines


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
    """(place, text) of every line that is not blank."""
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
        raise UserError("this is no list of ids", where=where, do=do)
    for place, id in enumerate(ids):
        if type(id) is not int:
            raise UserError(f"item {place} is no id: {json.dumps(id)[:60]}", where=where, do=do)
    return ids


def _text_of(line: str, where: str) -> str:
    """The line itself, or what it says as a JSON string."""
    from ossia.errors import UserError

    if not line.startswith('"'):
        return line
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UserError(f"this is not a JSON string: {error}", where=where) from error
    return str(value)
