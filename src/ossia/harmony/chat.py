"""Chat messages in OpenAI's JSON format, made into a conversation. Used by data sets and by the server alike.

    role system, developer   at the start: instructions (joined); later: a developer message in its place
    role user                a user message
    role assistant           `thinking` / `reasoning` / `reasoning_content` -> thought, then
                             without calls: `content` -> answer
                             with `tool_calls` or `function_call`: `content` -> preamble, each call -> call
    role tool, function      the result of the call with that id (or name)

Parallel calls are put in sequence, call, result, call, result: after `<|call|>` the model always stops. Messages that
already carry Harmony's `channel` are taken over as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ossia.errors import did_you_mean
from ossia.harmony.conversation import (
    CHANNELS,
    DEFAULT_SYSTEM,
    Conversation,
    Message,
    SystemSettings,
    ToolDescription,
    answer,
    call,
    developer,
    preamble,
    thought,
    user,
)
from ossia.harmony.problem import Level, Problem, Report, raise_errors

THOUGHT_KEYS = ("thinking", "reasoning_content", "reasoning")
CHAT_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def conversation_from_chat(
    messages: Sequence[Any],
    tools: object = None,
    *,
    system: SystemSettings | None = DEFAULT_SYSTEM,
    source: str = "",
    extra: Mapping[str, Any] | None = None,
    report: Report = raise_errors,
    path: str = "messages",
) -> Conversation:
    """Make a conversation of chat messages.

    Args:
        messages: the list `messages` of a chat request or of a training row.
        tools: the list `tools` (or legacy `functions`), or the same as a JSON text.
        report: gets every problem, with its place under `path`. By default errors raise UserError. With another
            report, a faulty part is left out and the rest converted.
    """
    reader = _Reader(report)
    for index, message in enumerate(messages):
        reader.read(f"{path}[{index}]", message)
    reader.settle_calls()
    found = tools_from_chat(tools, report)
    instructions = "\n\n".join(reader.instructions) if reader.instructions else None
    return Conversation(tuple(reader.messages), system, instructions, found, source, dict(extra or {}))


def tools_from_chat(tools: object, report: Report = raise_errors) -> tuple[ToolDescription, ...]:
    """The function tools of a chat request. A function without properties has no arguments: `() => any`."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except ValueError as error:
            report(Problem("error", "tools", f"tools is not JSON: {error}", path="tools"))
            return ()
    if not isinstance(tools, list):
        if tools:
            report(Problem("error", "tools", "tools is not a list", path="tools"))
        return ()
    found = []
    for index, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            report(Problem("error", "tools", "a tool without a function name", path=f"tools[{index}]"))
            continue
        parameters = function.get("parameters")
        takes_arguments = isinstance(parameters, Mapping) and bool(parameters.get("properties"))
        description = function.get("description")
        found.append(ToolDescription(function["name"], str(description or ""), parameters if takes_arguments else None))
    return tuple(found)


def text_of(content: object) -> str | None:
    """The text of a `content` field: a string, None, or a list of text parts. None if it holds anything else."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        return None
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
    strings = [text for text in texts if isinstance(text, str)]
    return "".join(strings) if len(strings) == len(texts) else None


@dataclass(slots=True)
class _Call:
    id: str | None
    name: str
    message: Message
    path: str


class _Reader:
    """Collects atomic messages. Calls wait for their results, so that parallel calls come out one after the other."""

    def __init__(self, report: Report) -> None:
        self.messages: list[Message] = []
        self.instructions: list[str] = []
        self._report = report
        self._waiting: list[_Call] = []

    def read(self, path: str, message: object) -> None:
        if not isinstance(message, Mapping):
            self._problem("error", "not-an-object", "a message is not an object", path)
            return
        role = message.get("role")
        if role not in CHAT_ROLES:
            guess = did_you_mean(str(role), CHAT_ROLES)
            known = f'did you mean "{guess}"?' if guess else f"roles are {', '.join(CHAT_ROLES)}"
            self._problem("error", "unknown-role", f"unknown role {role!r}", f"{path}.role", known)
            return
        text = text_of(message.get("content"))
        if text is None and role not in ("tool", "function"):
            what = "content is neither text nor a list of text parts"
            self._problem("error", "not-text", what, f"{path}.content", "gpt-oss reads text only")
            return
        if role in ("tool", "function"):
            value = message.get("content")
            self._read_result(path, message, text if text is not None else json.dumps(value, ensure_ascii=False))
            return
        self.settle_calls()
        if role in ("system", "developer"):
            self._read_instructions(text or "")
        elif role == "user":
            name = message.get("name")
            self.messages.append(user(text or "", name if isinstance(name, str) else None))
        else:
            self._read_assistant(path, message, text or "")

    def settle_calls(self) -> None:
        """Write out calls that no result came for. Only the first can stand: the model stops after it."""
        if self._waiting:
            first, *others = self._waiting
            self.messages.append(first.message)
            for other in others:
                what = f"the parallel call of {other.name} has no result: left out"
                self._problem("warning", "call-without-result", what, other.path, "give every call its tool message")
        self._waiting = []

    def _read_instructions(self, text: str) -> None:
        if self.messages:
            self.messages.append(developer(text))
        else:
            self.instructions.append(text)

    def _read_assistant(self, path: str, message: Mapping[str, Any], text: str) -> None:
        weight = self._weight(path, message)
        if (channel := message.get("channel")) is not None:
            self._read_harmony(path, message, text, channel, weight)
            return
        for key in THOUGHT_KEYS:
            if (thinking := message.get(key)) and isinstance(thinking, str):
                self.messages.append(thought(thinking, weight))
                break
        calls = self._read_calls(path, message, weight)
        if calls and text:
            self.messages.append(preamble(text, weight))
        self._waiting = calls
        says_something = message.get("content") is not None
        if not calls and not message.get("tool_calls") and not message.get("function_call"):
            refusal = message.get("refusal")
            if says_something or isinstance(refusal, str):
                self.messages.append(answer(text or (refusal if isinstance(refusal, str) else ""), weight))

    def _read_harmony(
        self, path: str, message: Mapping[str, Any], text: str, channel: object, weight: float | None
    ) -> None:
        if channel not in CHANNELS:
            self._problem("error", "unknown-channel", f"unknown channel {channel!r}", f"{path}.channel")
            return
        fields = {key: message.get(key) for key in ("recipient", "content_type")}
        texts = {key: value if isinstance(value, str) else None for key, value in fields.items()}
        made = Message("assistant", text, str(channel), texts["recipient"], texts["content_type"], weight=weight)
        if made.recipient is None:
            self.messages.append(made)
        else:
            self._waiting = [_Call(None, made.recipient.removeprefix("functions."), made, path)]

    def _read_calls(self, path: str, message: Mapping[str, Any], weight: float | None) -> list[_Call]:
        listed = message.get("tool_calls") or []
        items = [(f"{path}.tool_calls[{i}]", item) for i, item in enumerate(listed if isinstance(listed, list) else [])]
        if message.get("function_call"):
            items.append((f"{path}.function_call", {"function": message["function_call"]}))
        calls = []
        for place, item in items:
            function = item.get("function", item) if isinstance(item, Mapping) else None
            if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
                self._problem("error", "call-without-name", "a call without a function name", place)
                continue
            arguments = self._arguments(function.get("arguments"), f"{place}.function.arguments")
            name = function["name"].removeprefix("functions.")
            calls.append(_Call(item.get("id"), name, call(name, arguments, weight), place))
        return calls

    def _arguments(self, arguments: object, path: str) -> str:
        """A JSON text stays as it is; an object becomes one."""
        if not isinstance(arguments, str):
            return json.dumps({} if arguments is None else arguments, ensure_ascii=False)
        try:
            json.loads(arguments)
        except ValueError as error:
            what = f"the arguments of a call are not JSON: {error}"
            self._problem("error", "arguments-not-json", what, path, 'write them as in "{\\"city\\": \\"Oslo\\"}"')
        return arguments

    def _read_result(self, path: str, message: Mapping[str, Any], text: str) -> None:
        id, name = message.get("tool_call_id"), message.get("name")
        if isinstance(name, str):
            name = name.removeprefix("functions.")
        found = next((c for c in self._waiting if id is not None and c.id == id), None)
        if found is None:  # legacy functions and rows without ids: by name, else in order
            open_calls = [c for c in self._waiting if c.id is None or id is None]
            found = next((c for c in open_calls if name is None or c.name == name), None)
        if found is None:
            what = "a tool result without a call before it"
            do = "put it after the assistant message whose tool_calls has its id"
            self._problem("error", "result-without-call", what, path, do)
            return
        self._waiting.remove(found)
        recipient, channel = found.message.recipient, found.message.channel
        self.messages += [found.message, Message("tool", text, channel, "assistant", name=recipient)]

    def _weight(self, path: str, message: Mapping[str, Any]) -> float | None:
        weight = message.get("weight")
        if weight is None or (isinstance(weight, (int, float)) and 0 <= weight <= 1):
            return None if weight is None else float(weight)
        self._problem("error", "weight", f"weight is {weight!r}, not a number from 0 to 1", f"{path}.weight")
        return None

    def _problem(self, level: Level, code: str, what: str, path: str, do: str = "") -> None:
        self._report(Problem(level, code, what, do, path))
