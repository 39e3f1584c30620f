"""Conversion of a conversation to OpenAI chat messages, for programs that read those. The inverse of `from_openai`.

    thought, then preamble, call    one assistant message with `thinking`, `content` and `tool_calls`
    thought, then answer            one assistant message with `thinking` and `content`
    result                          role tool with the `tool_call_id` of its call
    anything else                   a message with Harmony's own `channel`, `recipient`, `content_type`, `name`

Some conversations have no exact chat form and get the closest one:

* a system message without identity or with other channels,
* developer messages that do not begin with "# Instructions",
* tool messages and named authors without a channel or recipient.
"""

from __future__ import annotations

import json
from typing import Any

from ossia.config import DEFAULT_IDENTITY, DEFAULT_KNOWLEDGE_CUTOFF
from ossia.harmony.builtin import BUILTIN_TOOLS
from ossia.harmony.conversation import (
    JSON_CONTENT,
    Conversation,
    Message,
    SystemSettings,
)
from ossia.harmony.from_openai import conversation_from_chat

Chat = dict[str, Any]

_INSTRUCTIONS = "# Instructions\n\n"


def chat_form(conversation: Conversation) -> tuple[list[Chat], list[Chat] | None, dict[str, Any]]:
    """Return the chat messages, the tools (None for no tools), and the keyword arguments for a chat template.

    `conversation_from_chat_form` makes the same conversation from them. The fields `rejected`, `others`, `score`,
    `prompt`, `source` and `extra` are lost.
    """
    writer, index = _Writer(conversation), 0
    while index < len(conversation.messages):
        index = writer.write(index)
    return writer.chat, _tools(conversation) or None, _arguments(conversation)


def conversation_from_chat_form(
    messages: list[Chat], tools: list[Chat] | None, arguments: dict[str, Any]
) -> Conversation:
    """Return the conversation that Ossia's chat template renders for these messages, tools and keyword arguments."""
    system = SystemSettings(
        identity=arguments.get("model_identity") or DEFAULT_IDENTITY,
        knowledge_cutoff=arguments.get("knowledge_cutoff") or DEFAULT_KNOWLEDGE_CUTOFF,
        date=arguments.get("current_date") or None,
    )
    return conversation_from_chat(
        messages,
        tools,
        system=system,
        effort=arguments.get("reasoning_effort"),
        builtin_tools=arguments.get("builtin_tools"),
        response_format=arguments.get("response_format"),
    )


class _Writer:
    """Writes a conversation to the list `chat`, one chat message after another."""

    def __init__(self, conversation: Conversation) -> None:
        self.chat: list[Chat] = []
        self._messages = conversation.messages
        namespaces = () if conversation.system is None else conversation.system.namespaces
        self._namespaces = {space.name for space in namespaces}
        self._functions = {tool.name for tool in conversation.tools}
        if conversation.instructions is not None:
            self.chat.append({"role": "system", "content": conversation.instructions})

    def write(self, index: int) -> int:
        """Append one chat message for the messages from `index` on that fit into it, and return the next index."""
        message = self._messages[index]
        if message.role == "assistant":
            return self._write_assistant(index)
        if message.role == "tool":
            self._write_result(index)
        elif message.role == "developer" and _is_plain(message) and message.content.startswith(_INSTRUCTIONS):
            self.chat.append({"role": "developer", "content": message.content.removeprefix(_INSTRUCTIONS)})
        else:
            self.chat.append(_as_given(message))
        return index + 1

    def _write_assistant(self, index: int) -> int:
        first, at = self._messages[index], index
        turn = []  # assistant messages of equal weight, which may form one chat message
        for message in self._messages[index : index + 3]:
            if message.role != "assistant" or message.weight != first.weight:
                break
            turn.append(message)
        made: Chat = {"role": "assistant"}
        if turn and _says(turn[0], "analysis") and turn[0].content.strip():
            made["thinking"] = turn.pop(0).content
            at += 1
        if len(turn) > 1 and _says(turn[0], "commentary") and (call := self._call(turn[1])) is not None:
            made |= {"content": turn[0].content, "tool_calls": [call]}
            at += 2
        elif turn and (call := self._call(turn[0])) is not None:
            made["tool_calls"] = [call]
            at += 1
        elif turn and (_says(turn[0], "final") or (turn[0] == Message("assistant", "", "final", weight=first.weight))):
            made["content"] = turn[0].content
            at += 1
        if at == index:
            made, at = _as_given(first), index + 1
        elif first.weight is not None:
            made["weight"] = first.weight
        self.chat.append(made)
        return at

    def _call(self, message: Message) -> Chat | None:
        """Return the item of `tool_calls` for a call in the usual form, or None for any other message."""
        to, plain = message.recipient, message.name is None
        name: str | None = None
        arguments = message.content
        if plain and to and message.channel == "commentary" and message.content_type == JSON_CONTENT:
            name = to.removeprefix("functions.")
            builtin = name.partition(".")[0] in self._namespaces and name not in self._functions
            if name == to or builtin or name.startswith("functions.") or not _is_json(arguments):
                return None
        elif plain and to and message.channel == "analysis" and message.content_type == "code":
            space = to.partition(".")[0]
            if space not in self._namespaces or to in self._functions:
                return None
            name, is_code = to, not BUILTIN_TOOLS[space].tools if space in BUILTIN_TOOLS else False
            arguments = json.dumps({"code": arguments}, ensure_ascii=False) if is_code else arguments
            if not _is_json(arguments):
                return None
        if name is None:
            return None
        return {
            "id": f"call_{sum('tool_calls' in made for made in self.chat) + 1}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }

    def _write_result(self, index: int) -> None:
        message, call = self._messages[index], self._messages[index - 1] if index else None
        if (
            call is not None
            and call.role == "assistant"
            and call.recipient is not None
            and (message.name, message.channel) == (call.recipient, call.channel)
            and (message.recipient, message.content_type) == ("assistant", None)
        ):
            calls = self.chat[-1].get("tool_calls")
            id = {"tool_call_id": calls[0]["id"]} if calls else {"name": message.name}
            self.chat.append({"role": "tool", **id, "content": message.content})
        else:
            self.chat.append(_as_given(message))


def _as_given(message: Message) -> Chat:
    made: Chat = {"role": message.role, "content": message.content}
    for key in ("name", "channel", "recipient", "content_type", "weight"):
        if (value := getattr(message, key)) is not None:
            made[key] = value
    return made


def _says(message: Message, channel: str) -> bool:
    """Return whether a message is a text on this channel without other header fields."""
    plain = (message.name, message.recipient, message.content_type) == (None,) * 3
    return plain and message.channel == channel and message.content != ""


def _is_plain(message: Message) -> bool:
    return (message.name, message.channel, message.recipient, message.content_type) == (None,) * 4


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _tools(conversation: Conversation) -> list[Chat]:
    tools = []
    for tool in conversation.tools:
        function: Chat = {"name": tool.name, "description": tool.description}
        if tool.parameters is not None:
            function["parameters"] = tool.parameters
        tools.append({"type": "function", "function": function})
    return tools


def _arguments(conversation: Conversation) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    if (system := conversation.system) is not None:
        arguments = {
            "model_identity": system.identity,
            "knowledge_cutoff": system.knowledge_cutoff,
            "current_date": system.date,
            "reasoning_effort": system.effort,
            "builtin_tools": [space.name for space in system.namespaces if space.name in BUILTIN_TOOLS],
        }
    formats = [
        {"type": "json_schema", "json_schema": {"name": f.name, "schema": f.schema}
         | ({"description": f.description} if f.description else {})}
        for f in conversation.response_formats
    ]  # fmt: skip
    arguments["response_format"] = formats[0] if len(formats) == 1 else formats
    return {key: value for key, value in arguments.items() if value}
