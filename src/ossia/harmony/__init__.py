"""Harmony, the message format of gpt-oss: one renderer and one parser for data, training, chat, serving and export.

    conversation    the data classes of a conversation: messages, system settings, tools, response formats
    from_openai     OpenAI's JSON messages -> conversation
    request         the other parts of a chat request: tools, response formats, effort in a text
    builtin         the built-in tools, browser and python
    to_openai       conversation -> OpenAI's JSON messages
    render          conversation -> token ids
    typescript      tool schemas in the TypeScript notation of the prompt
    parse           token ids -> messages, for any sequence of ids
    header          the header of a message, between <|start|> and <|message|>
    preview         token ids as coloured text for a terminal
    template        comparison of a chat template's tokens with the renderer's
    tokenizer/      text <-> token ids

chat_template.jinja implements the same rendering for other programs. This package does not import torch.
"""

from __future__ import annotations

import json
import re
from importlib.resources import files

from ossia.config import HeaderOrder
from ossia.errors import Problem
from ossia.harmony.builtin import builtin_namespaces
from ossia.harmony.conversation import (
    Conversation,
    Message,
    ParsedMessage,
    ResponseFormat,
    SystemSettings,
    ToolDescription,
    without_old_thoughts,
)
from ossia.harmony.from_openai import conversation_from_chat
from ossia.harmony.parse import Parser, parse, parse_text
from ossia.harmony.render import Rendering, render_conversation, render_message, render_messages, render_prompt
from ossia.harmony.request import tools_from_chat
from ossia.harmony.tokenizer.vocabulary import VOCABULARY_SIZE, Vocabulary, offline_tokenizer_folder

__all__ = [
    "VOCABULARY_SIZE",
    "Conversation",
    "Message",
    "ParsedMessage",
    "Parser",
    "Problem",
    "Rendering",
    "ResponseFormat",
    "SystemSettings",
    "ToolDescription",
    "Vocabulary",
    "builtin_namespaces",
    "chat_template",
    "conversation_from_chat",
    "offline_tokenizer_folder",
    "parse",
    "parse_text",
    "render_conversation",
    "render_message",
    "render_messages",
    "render_prompt",
    "tools_from_chat",
    "without_old_thoughts",
]


def chat_template(system: SystemSettings | None = None, order: HeaderOrder = "channel-first") -> str:
    """Return the text of chat_template.jinja, to be exported with a model.

    Args:
        system: what the template puts into the system message where its caller says nothing.
        order: of the headers of the assistant's messages.

    Raises:
        UserError: `system` has tools that a template does not know.

    The template gives the same tokens as `render_prompt`, with one exception: a control token that is spelt out in a
    text becomes a control token. Programs that use templates cannot distinguish the two.
    """
    text = files(__name__).joinpath("chat_template.jinja").read_text(encoding="utf-8")
    settings = system or SystemSettings()
    defaults = {
        "default_identity": settings.identity,
        "default_cutoff": settings.knowledge_cutoff,
        "default_date": settings.date or "",
        "default_effort": settings.effort,
        "default_tools": [space.name for space in settings.namespaces],
        "header_order": order,
    }
    for name, value in defaults.items():
        # Jinja reads the escapes of JSON strings, but not pairs of surrogates.
        before, _, after = re.split(rf"({{%- set {name} = .* -%}})", text)
        text = f"{before}{{%- set {name} = {json.dumps(value, ensure_ascii=False)} -%}}{after}"
    return text
