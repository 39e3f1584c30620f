"""Ossia behind the interface of openai-harmony's Rust extension. With it, the library's own tests run against Ossia.

openai-harmony consists of a Python layer and an extension module `openai_harmony.openai_harmony`, which takes
conversations as JSON. In tests/harmony/test_conformance.py, this module replaces the extension, under the Python layer
and the tests of the library. This module only translates. JSON becomes our classes, and the repairs of our parser
become the errors of the library's strict mode.
"""

from __future__ import annotations

import json
from typing import Any

from ossia.config import Effort
from ossia.harmony.builtin import builtin_namespaces
from ossia.harmony.conversation import (
    Message,
    ParsedMessage,
    SystemSettings,
    ToolDescription,
    ToolNamespace,
    without_old_thoughts,
)
from ossia.harmony.parse import Parser, parse
from ossia.harmony.render import developer_text, render_messages, system_text
from ossia.harmony.tokenizer.vocabulary import (
    CALL,
    END,
    RETURN,
    SPECIAL_TOKENS,
    START,
    STARTOFTEXT,
    VOCABULARY_SIZE,
    Vocabulary,
)

ORDER = "recipient-first"
EFFORTS: dict[str, Effort] = {"Low": "low", "Medium": "medium", "High": "high"}


class HarmonyError(RuntimeError):
    """The counterpart of the library's error."""


class PyHarmonyEncoding:
    name = "HarmonyGptOss"

    def __init__(self) -> None:
        self.vocabulary = Vocabulary.load()

    def render(self, message_json: str, render_options: dict[str, Any]) -> list[int]:
        has_functions = render_options["conversation_has_function_tools"]
        return render_messages([_message(json.loads(message_json), has_functions)], self.vocabulary, ORDER).ids

    def render_conversation(self, conversation_json: str, config: dict[str, Any]) -> list[int]:
        return self._render(conversation_json, config, stop=False)

    def render_conversation_for_training(self, conversation_json: str, config: dict[str, Any]) -> list[int]:
        return self._render(conversation_json, config, stop=True)

    def render_conversation_for_completion(
        self, conversation_json: str, next_turn_role: str, config: dict[str, Any]
    ) -> list[int]:
        ids = self._render(conversation_json, config, stop=False)
        return [*ids, START, *self.vocabulary.encode(next_turn_role)]

    def _render(self, conversation_json: str, config: dict[str, Any], stop: bool) -> list[int]:
        given = json.loads(conversation_json)["messages"]
        contents = [part for message in given for part in message["content"] if part["type"] == "developer_content"]
        has_functions = any(part.get("tools", {}).get("functions", {}).get("tools") for part in contents)
        messages = tuple(_message(message, has_functions) for message in given)
        kept = without_old_thoughts(messages) if config["auto_drop_analysis"] else messages
        return render_messages(kept, self.vocabulary, ORDER, stop).ids

    def parse_messages_from_completion_tokens(self, tokens: list[int], role: str | None, strict: bool) -> str:
        messages = parse(tokens, self.vocabulary, "message" if role is None else "assistant-header")
        return _to_json(messages, strict)

    def decode_bytes(self, tokens: list[int]) -> bytes:
        if unknown := [id for id in tokens if not 0 <= id <= VOCABULARY_SIZE]:
            raise HarmonyError(f"Invalid token for decoding: {unknown[0]}")
        return b"".join(map(self.vocabulary.token_bytes, tokens))

    def decode_utf8(self, tokens: list[int]) -> str:
        try:
            return self.decode_bytes(tokens).decode("utf-8")
        except UnicodeDecodeError as error:
            raise HarmonyError(f"Invalid utf-8: {error}") from error

    def encode(self, text: str, allowed_special: list[str]) -> list[int]:
        return self.vocabulary.encode_with_specials(text) if allowed_special else self.vocabulary.encode(text)

    def special_tokens(self) -> list[str]:
        return list(SPECIAL_TOKENS.values())

    def is_special_token(self, token: int) -> bool:
        return token >= STARTOFTEXT

    def stop_tokens(self) -> list[int]:
        return [RETURN, CALL, END]

    def stop_tokens_for_assistant_actions(self) -> list[int]:
        return [RETURN, CALL]


class PyStreamableParser:
    def __init__(self, encoding: PyHarmonyEncoding, role: str | None, strict: bool) -> None:
        self._parser = Parser(encoding.vocabulary, "message" if role is None else "assistant-header")
        self._strict = strict
        self.tokens: list[int] = []
        self.last_content_delta: str | None = None

    def process(self, token: int) -> None:
        self.tokens.append(token)
        self.last_content_delta = "".join(delta.text for delta in self._parser.push(token)) or None
        _to_json(self._parser.messages, self._strict)

    def process_eos(self) -> None:
        self._parser.finish()
        _to_json(self._parser.messages, self._strict)

    @property
    def current_content(self) -> str:
        return "" if self._parser.current is None else self._parser.current.content

    @property
    def messages(self) -> str:
        current = self._parser.current
        return _to_json([message for message in self._parser.messages if message is not current], self._strict)


def load_harmony_encoding(name: str) -> PyHarmonyEncoding:
    assert name == PyHarmonyEncoding.name
    return PyHarmonyEncoding()


def get_tool_namespace_config(name: str) -> dict[str, Any]:
    (space,) = builtin_namespaces([name])
    tools = [{"name": t.name, "description": t.description, "parameters": t.parameters} for t in space.tools]
    return {"name": space.name, "description": space.description, "tools": tools}


def _message(given: dict[str, Any], has_functions: bool) -> Message:
    text = "".join(_text(part, has_functions) for part in given["content"])
    channel, recipient, content_type = given.get("channel"), given.get("recipient"), given.get("content_type")
    return Message(given["role"], text, channel, recipient, content_type, given.get("name"))


def _text(part: dict[str, Any], has_functions: bool) -> str:
    if part["type"] == "text":
        return part["text"]
    spaces = tuple(_namespace(space) for space in part.get("tools", {}).values())
    if part["type"] == "developer_content":
        (functions,) = spaces or (None,)
        return developer_text(part.get("instructions"), functions)
    effort = part.get("reasoning_effort")
    settings = SystemSettings(
        identity=part.get("model_identity"),
        knowledge_cutoff=part.get("knowledge_cutoff"),
        date=part.get("conversation_start_date"),
        effort=None if effort is None else EFFORTS[effort],
        namespaces=spaces,
        channels=tuple(part["channel_config"]["valid_channels"]),
    )
    return system_text(settings, has_functions)


def _namespace(given: dict[str, Any]) -> ToolNamespace:
    tools = [ToolDescription(t["name"], t["description"], t.get("parameters")) for t in given["tools"]]
    return ToolNamespace(given["name"], tuple(tools), given.get("description"))


def _to_json(messages: list[ParsedMessage], strict: bool) -> str:
    """Return the messages as the library's JSON.

    The library gives no channel if the header names none. In strict mode it raises where our parser repairs a header.
    """
    found = []
    for m in messages:
        no_channel = any(repair.startswith("no channel") for repair in m.repairs)
        if strict and any(not repair.startswith("no channel") for repair in m.repairs):
            raise HarmonyError(f"unexpected tokens remaining in message header: {m.repairs}")
        made = {"role": m.role, "name": m.name, "content": m.content, "channel": None if no_channel else m.channel}
        found.append(made | {"recipient": m.recipient, "content_type": m.content_type})
    return json.dumps(found)
