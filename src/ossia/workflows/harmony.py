"""The workflows that convert chat requests to Harmony tokens, and Harmony tokens to messages."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from ossia.checkpoint import locate
from ossia.config import EFFORTS, Effort, HeaderOrder
from ossia.errors import Problem, UserError, did_you_mean
from ossia.events import Note, OnEvent, ignore
from ossia.harmony.conversation import DEFAULT_SYSTEM, Conversation, ParsedMessage, SystemSettings
from ossia.harmony.from_openai import conversation_from_chat
from ossia.harmony.parse import Parser, Start, parse_text
from ossia.harmony.render import render_conversation, render_prompt
from ossia.harmony.tokenizer.vocabulary import Vocabulary

_RENDERED = {
    "messages", "tools", "functions", "system", "instructions", "builtin_tools", "response_format", "reasoning_effort",
    "reasoning",
}  # fmt: skip


def render_request(
    request: Any,
    *,
    where: str = "request",
    whole: bool = False,
    order: HeaderOrder = "channel-first",
    model: str | None = None,
    on_event: OnEvent = ignore,
) -> list[int]:
    """Return the token ids of the prompt that the model continues.

    Args:
        request: a chat request or a list of messages, as in `conversation_of_request`.
        where: the name of the request in messages.
        whole: whether to render the whole conversation: with thoughts of earlier turns, and without
            `<|start|>assistant` at the end.
        order: the order of the parts in the headers of tool calls.
        model: the checkpoint with the tokenizer. None: the published vocabulary.
        on_event: called with notes.

    Raises:
        UserError: the request cannot be read.
    """
    conversation = conversation_of_request(request, where, on_event)
    return (render_conversation if whole else render_prompt)(conversation, _vocabulary(model), order)


def decode(ids: Sequence[int], *, model: str | None = None) -> str:
    """Return the text of token ids, with control tokens as text.

    Args:
        model: the checkpoint with the tokenizer. None: the published vocabulary.
    """
    return _vocabulary(model).decode(ids)


def parse_stream(
    stream: Sequence[int] | str, *, start: Start = "assistant-header", model: str | None = None
) -> list[ParsedMessage]:
    """Return the messages of a token stream, or of a text with control tokens as text. Any stream gives messages.

    Args:
        stream: token ids, or a text.
        start: the beginning of the stream: after `<|start|>assistant`, as in sampled streams, or at `<|start|>`.
        model: the checkpoint with the tokenizer. None: the published vocabulary. It is not used for a text.
    """
    if isinstance(stream, str):
        return parse_text(stream, start)
    parser = Parser(_vocabulary(model), start)
    for token in stream:
        parser.push(token)
    parser.finish()
    return parser.messages


@functools.lru_cache(maxsize=4)
def _vocabulary(model: str | None) -> Vocabulary:
    """Return the vocabulary of a checkpoint, or the published vocabulary for None."""
    return locate.vocabulary(model)


def conversation_of_request(value: Any, where: str, on_event: OnEvent = ignore) -> Conversation:
    """Return the conversation in a chat request, or in a list of messages.

    Args:
        value: decoded JSON: a list of messages, or an object with `messages`. The object may have other keys of Chat
            Completions and Responses that belong to the prompt.
        where: the name of the request in messages, such as its file.
        on_event: called with a note for each problem that is not an error, and for keys that are not rendered.

    Raises:
        UserError: the request cannot be read. The error has the place in the request.
    """
    request: Mapping[str, Any] = {"messages": value} if isinstance(value, list) else value
    if not isinstance(request, Mapping) or not isinstance(request.get("messages"), list):
        raise UserError(
            "this is neither a list of messages nor an object with one",
            where=where,
            do='{"messages": [{"role": "user", "content": "Hi"}]}',
        )
    left_out = [key for key in request if key not in _RENDERED]
    if left_out:
        on_event(Note(level="warning", message=f"not rendered: {', '.join(map(str, left_out))}"))
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
        report=lambda problem: _report(problem, where, on_event),
        paths=paths,
    )


def _report(problem: Problem, where: str, on_event: OnEvent) -> None:
    placed = dataclasses.replace(problem, file=where)
    if problem.level == "error":
        raise placed.to_error()
    on_event(Note(level="warning", message=str(placed)))


def _system(request: Mapping[str, Any], where: str) -> SystemSettings | None:
    """Return the system message of a request, or None for null. The value is an object with the settings to change."""
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
    names = request.get("builtin_tools") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError("this is not a list of names", where=f"{where} builtin_tools", do='["python", "browser"]')
    return names


def _effort(request: Mapping[str, Any], where: str) -> Effort | None:
    """Return `reasoning_effort` as in Chat Completions, or `reasoning.effort` as in Responses, or None."""
    reasoning = request.get("reasoning")
    if (value := request.get("reasoning_effort")) is not None:
        return _checked_effort(value, f"{where} reasoning_effort")
    value = reasoning.get("effort") if isinstance(reasoning, Mapping) else reasoning
    return None if value is None else _checked_effort(value, f"{where} reasoning")


def _checked_effort(value: Any, place: str) -> Effort:
    for effort in EFFORTS:
        if value == effort:
            return effort
    raise UserError(f"{value!r} is not a reasoning effort", where=place, do=f"one of {', '.join(EFFORTS)}")
