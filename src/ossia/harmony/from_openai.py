"""Conversion of chat messages in OpenAI's JSON format to a conversation.

    role system, developer   at the start: instructions (joined); later: a developer message in its place
    role user                a user message
    role assistant           `thinking` / `reasoning_content` / `reasoning` -> thought, then
                             without calls: `content` (or `refusal`) -> answer
                             with `tool_calls` or `function_call`: `content` -> preamble, each call -> call
    role tool, function      the result of the call with that id (or name)

Parallel calls are put in sequence (call, result, call, result), because the model always stops after `<|call|>`. Calls
of an announced built-in tool (`python`, `browser.search`) become part of the chain of thought. Messages that have
Harmony's `channel`, `recipient` or `content_type` keep these fields and their `name` unchanged.

The effort has three sources. A value in the request itself has precedence over a line `Reasoning: high` in the texts
at the start. Such a line has precedence over the default of the recipe or the server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ossia.config import CHANNELS, Effort
from ossia.errors import Level, OnProblem, Problem, UserError, did_you_mean, raise_errors
from ossia.harmony.builtin import builtin_namespaces
from ossia.harmony.conversation import (
    DEFAULT_SYSTEM,
    Conversation,
    Message,
    Role,
    SystemSettings,
    ToolNamespace,
    answer,
    call,
    developer,
    preamble,
    thought,
    user,
)
from ossia.harmony.request import (
    clean_name,
    response_formats_from_chat,
    split_effort,
    tools_from_chat,
)

THOUGHT_KEYS = ("thinking", "reasoning_content", "reasoning")
CHAT_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_HEADER_KEYS = ("channel", "recipient", "content_type")

_Header = tuple[str | None, str | None, str | None]  # channel, recipient, content type


def conversation_from_chat(
    messages: Sequence[Any],
    tools: object = None,
    *,
    system: SystemSettings | None = DEFAULT_SYSTEM,
    effort: Effort | None = None,
    builtin_tools: Sequence[str] | None = None,
    response_format: object = None,
    source: str = "",
    extra: Mapping[str, Any] | None = None,
    report: OnProblem = raise_errors,
    path: str = "messages",
    paths: Sequence[str] = (),
) -> Conversation:
    """Return the conversation that chat messages describe.

    Args:
        messages: the list `messages` of a chat request or of a training row.
        tools: the list `tools` (or legacy `functions`), or the same as a JSON text.
        system: the system message. Texts and the arguments below can change parts of it. None: no such message.
        effort: the effort that the row or request states itself. It has precedence over a line in a text.
        builtin_tools: names of built-in tools to announce, in addition to those of `system`.
        response_format: as `response_format` of Chat Completions or `text.format` of Responses, or a list of such.
        report: called with every problem and its place under `path`. By default errors raise UserError. With another
            function, a faulty part is left out and the rest is converted.
        path: the place of the list in the row, for reports of problems.
        paths: the place of each message, if the row's own form is not a list of chat messages.

    Raises:
        UserError: a message, tool or format is faulty and `report` is the default.
    """
    if builtin_tools and system is not None:
        system = _announce(system, builtin_tools, report)
    found = tools_from_chat(tools, report)
    formats = response_formats_from_chat(response_format, report)
    namespaces = () if system is None else system.namespaces
    reader = _Reader(report, path, paths, namespaces, frozenset(tool.name for tool in found))
    for index, message in enumerate(messages):
        reader.read(index, message)
    reader.settle_calls()
    effort = effort or reader.effort
    if effort is not None and system is not None and effort != system.effort:
        system = replace(system, effort=effort)
    instructions = "\n\n".join(reader.instructions) if reader.instructions else None
    return Conversation(
        tuple(reader.messages), system, instructions, found, formats, source=source, extra=dict(extra or {})
    )


def text_of(content: object) -> str | None:
    """Return the text of a `content` field: a string, None, or a list of text parts. None if it is anything else."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        return None
    texts = [part.get("text") or part.get("refusal") or "" if _is_text(part) else part for part in content]
    return "".join(texts) if all(isinstance(text, str) for text in texts) else None


def _is_text(part: object) -> bool:
    return isinstance(part, Mapping) and (isinstance(part.get("text"), str) or isinstance(part.get("refusal"), str))


def _announce(system: SystemSettings, names: Sequence[str], report: OnProblem) -> SystemSettings:
    known = {namespace.name for namespace in system.namespaces}
    try:
        new = builtin_namespaces(names)
    except UserError as error:
        report(Problem("error", "unknown-builtin", error.what, error.do or "", "builtin_tools"))
        return system
    return replace(system, namespaces=system.namespaces + tuple(space for space in new if space.name not in known))


@dataclass(slots=True)
class _Call:
    id: str | None
    name: str
    message: Message
    place: str


class _Reader:
    """Collects atomic messages. Calls wait for their results, so that parallel calls are written one by one."""

    def __init__(
        self,
        report: OnProblem,
        path: str,
        paths: Sequence[str],
        namespaces: Sequence[ToolNamespace],
        functions: frozenset[str],
    ) -> None:
        self.messages: list[Message] = []
        self.instructions: list[str] = []
        self.effort: Effort | None = None
        self._report, self._path, self._paths = report, path, paths
        self._namespaces = {namespace.name: namespace for namespace in namespaces}
        self._functions = functions
        self._waiting: list[_Call] = []
        self._begun = False  # whether a message after the instructions at the start was read
        self._place = ""  # of the current message

    def read(self, index: int, message: object) -> None:
        self._place = self._paths[index] if self._paths else f"{self._path}[{index}]"
        if not isinstance(message, Mapping):
            self._problem("error", "not-an-object", "a message is not an object")
            return
        role, content = message.get("role"), message.get("content")
        text = content if isinstance(content, str) else text_of(content)
        if role in ("tool", "function"):
            self._begun = True
            self._read_result(message, json.dumps(content, ensure_ascii=False) if text is None else text)
            return
        if role not in CHAT_ROLES:
            guess = did_you_mean(str(role), CHAT_ROLES)
            known = f'did you mean "{guess}"?' if guess else f"roles are {', '.join(CHAT_ROLES)}"
            self._problem("error", "unknown-role", f"unknown role {role!r}", ".role", known)
            return
        if text is None:
            what = "content is neither text nor a list of text parts"
            self._problem("error", "not-text", what, ".content", "gpt-oss reads text only")
            return
        self.settle_calls()
        if role == "assistant":
            self._begun = True
            self._read_assistant(message, text)
        elif (header := self._header(message)) is not None:
            self._begun = True
            self.messages.append(self._as_given(role, text, header, _name(message)))
        elif role == "user":
            self._begun = True
            name = _name(message)
            name = None if name is None else clean_name(name, self._place, self._report)
            self.messages.append(user(text, name, self._place))
        else:
            self._read_instructions(text)

    def settle_calls(self) -> None:
        """Append the first call without a result and report the others, since the model stops after the first."""
        if not self._waiting:
            return
        first, *others = self._waiting
        self.messages.append(first.message)
        for other in others:
            what = f"the parallel call of {other.name} has no result: left out"
            do = "give every call its tool message"
            self._report(Problem("warning", "call-without-result", what, do, other.place))
        self._waiting = []

    def _read_instructions(self, text: str) -> None:
        if not text.strip():
            return
        if self._begun:
            self.messages.append(developer(text, self._place))
            return
        rest, effort = split_effort(text)
        self.effort = effort or self.effort
        if rest.strip():
            self.instructions.append(rest)

    def _read_assistant(self, message: Mapping[str, Any], text: str) -> None:
        weight = self._weight(message["weight"]) if "weight" in message else None
        for key in THOUGHT_KEYS:
            if not (thinking := message.get(key)):
                continue
            if not isinstance(thinking, str) and (thinking := text_of(thinking)) is None:
                self._problem("error", "not-text", f"{key} is neither text nor a list of text parts", f".{key}")
                break
            if thinking.strip():
                self.messages.append(thought(thinking, weight, self._place))
                break
        calls = self._read_calls(message, weight)
        has_calls = bool(message.get("tool_calls") or message.get("function_call"))
        if (header := self._header(message)) is not None:
            self._read_harmony(message, text, header, weight, has_calls)
        elif has_calls:
            if text:
                self.messages.append(preamble(text, weight, self._place))
        else:
            refusal = message.get("refusal")
            said = text or (refusal if isinstance(refusal, str) else "")
            if said or message.get("content") is not None:
                self.messages.append(answer(said, weight, self._place))
        self._waiting += calls

    def _read_harmony(
        self, message: Mapping[str, Any], text: str, header: _Header, weight: float | None, has_calls: bool
    ) -> None:
        """Read a message that has Harmony's header fields. If it has calls, its text precedes them unless empty."""
        channel, recipient, content_type = header
        if channel is None:
            channel = "final" if recipient is None else "commentary"
        made = self._as_given("assistant", text, (channel, recipient, content_type), _name(message), weight)
        if recipient is not None and not has_calls:
            self._waiting = [_Call(None, recipient.removeprefix("functions."), made, self._place)]
        elif text or not has_calls:
            self.messages.append(made)

    def _read_calls(self, message: Mapping[str, Any], weight: float | None) -> list[_Call]:
        listed, legacy = message.get("tool_calls"), message.get("function_call")
        if not listed and not legacy:
            return []
        if listed and not isinstance(listed, list):
            self._problem("error", "call-without-name", "tool_calls is not a list", ".tool_calls")
        items = list(enumerate(listed)) if isinstance(listed, list) else []
        calls = []
        for number, item in [*items, *([(-1, {"function": legacy})] if legacy else [])]:
            place = f".tool_calls[{number}]" if number >= 0 else ".function_call"
            function = item.get("function", item) if isinstance(item, Mapping) else None
            if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
                self._problem("error", "call-without-name", "a call without a function name", place)
                continue
            name, arguments = clean_name(function["name"], self._place + place, self._report), _arguments_of(function)
            short = name.removeprefix("functions.")
            space = self._namespaces.get(name.partition(".")[0])
            if space is None or name in self._functions:
                made = call(short, self._arguments(arguments, place), weight, self._place)
            else:
                text = self._arguments(arguments, place) if space.tools else _code(arguments)
                made = Message("assistant", text, "analysis", name, "code", None, weight, self._place)
            calls.append(_Call(item.get("id"), short, made, self._place + place))
        return calls

    def _arguments(self, arguments: object, place: str) -> str:
        """Return the arguments as a JSON text. A text stays unchanged; an object is serialised."""
        text = arguments
        if not isinstance(arguments, str):
            arguments = {} if arguments is None else arguments
            text = json.dumps(arguments, ensure_ascii=False)
        elif not arguments.strip():
            text, arguments = "{}", {}
        try:
            value = json.loads(arguments) if isinstance(arguments, str) else arguments
            wrong = "" if isinstance(value, Mapping) else "are not a JSON object"
        except (ValueError, RecursionError) as error:
            wrong = f"are not JSON: {error}"
        if wrong:
            what, where = f"the arguments of a call {wrong}", f"{place}.function.arguments"
            self._problem("error", "arguments-not-json", what, where, 'write them as in "{\\"city\\": \\"Oslo\\"}"')
        return str(text)

    def _read_result(self, message: Mapping[str, Any], text: str) -> None:
        id, name, header = message.get("tool_call_id"), _name(message), self._header(message)
        found = self._call_of(id, name)
        if found is None and (header is None or name is None):
            do = "put it after the assistant message whose tool_calls has its id"
            self._problem("error", "result-without-call", "a tool result without a call before it", do=do)
            return
        if found is None:
            self.settle_calls()
        else:
            self._waiting.remove(found)
            self.messages.append(found.message)
        if header is None and found is not None:
            header, name = (found.message.channel, "assistant", None), found.message.recipient
        assert header is not None
        author = name if found is None else name or found.message.recipient
        self.messages.append(self._as_given("tool", text, header, author))

    def _call_of(self, id: object, name: str | None) -> _Call | None:
        """Return the waiting call of a result: by id; for legacy functions and rows without ids by name or order."""
        if id is not None:
            for waiting in self._waiting:
                if waiting.id == id:
                    return waiting
        name = None if name is None else clean_name(name, "", lambda _: None).removeprefix("functions.")
        for waiting in self._waiting:
            if (id is None or waiting.id is None) and (name is None or waiting.name == name):
                return waiting
        return None

    def _header(self, message: Mapping[str, Any]) -> _Header | None:
        """Return channel, recipient and content type, or None for none of them. A recipient "all" alone is ignored."""
        if "channel" not in message and "recipient" not in message and "content_type" not in message:
            return None
        values: list[str | None] = []
        for key in _HEADER_KEYS:
            value = message.get(key)
            values.append(value if isinstance(value, str) and value else None)
            if value is not None and not isinstance(value, str):
                self._problem("error", "header", f"{key} is {value!r}, not a text", f".{key}")
        channel, recipient, content_type = values
        if channel is not None and channel not in CHANNELS:
            do = f"channels are {', '.join(CHANNELS)}"
            self._problem("error", "unknown-channel", f"unknown channel {channel!r}", ".channel", do)
            channel = "analysis"  # the purpose of the text is unknown, and a thought is never shown as an answer
        if channel is None and recipient in (None, "all") and content_type is None:
            return None
        return channel, recipient, content_type

    def _weight(self, weight: object) -> float | None:
        if weight is None or (isinstance(weight, (int, float)) and 0 <= weight <= 1):
            return None if weight is None else float(weight)
        self._problem("error", "weight", f"weight is {weight!r}, not a number from 0 to 1", ".weight")
        return None

    def _as_given(
        self, role: Role, text: str, header: _Header, name: str | None, weight: float | None = None
    ) -> Message:
        return Message(role, text, *header, name, weight, self._place)

    def _problem(self, level: Level, code: str, what: str, place: str = "", do: str = "") -> None:
        self._report(Problem(level, code, what, do, self._place + place))


def _arguments_of(function: Mapping[str, Any]) -> object:
    """Return the arguments of a call, which data sets store under different keys."""
    return next((function[key] for key in ("arguments", "parameters", "input") if function.get(key) is not None), None)


def _name(message: Mapping[str, Any]) -> str | None:
    name = message.get("name")
    return name if isinstance(name, str) and name else None


def _code(arguments: object) -> str:
    """Return the raw code for `python`, given as `{"code": …}` (an object or a JSON text) or as plain code."""
    value = arguments
    if isinstance(arguments, str):
        try:
            value = json.loads(arguments)
        except ValueError:
            return arguments
    if isinstance(value, Mapping) and isinstance(value.get("code"), str):
        return str(value["code"])
    return arguments if isinstance(arguments, str) else json.dumps(value, ensure_ascii=False)
