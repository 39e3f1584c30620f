"""Random conversations, the judge openai-harmony, and the conversion to its classes, for tests of Harmony and data."""

from __future__ import annotations

import os
import random
import string
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ossia.files import cache_folder
from ossia.harmony.builtin import BROWSER, PYTHON
from ossia.harmony.conversation import (
    JSON_CONTENT,
    ROLES,
    Conversation,
    Message,
    ResponseFormat,
    SystemSettings,
    ToolDescription,
    ToolNamespace,
)
from ossia.harmony.render import prologue, response_formats_section
from ossia.harmony.tokenizer.files import read_ranks

WORDS = [
    "the", "weather", "in", "Paris", "is", "4.5", "naïve", "日本語", "👩‍🚀", "\n\n", "  ", "\t", '{"a": 1}', "``",
    "<|end|>", "<|start|>assistant", "<|call|>", "<|channel|>final<|message|>", "<|return|>", "مرحبا", "e\u0301",
    "functions.f", "to=user", "\u0000", "\ufeff", "1234567", "// note", "namespace x {", "don't", "I'll", "\r\n",
]  # fmt: skip


@lru_cache(maxsize=1)
def judge() -> Any:
    """Return the encoding of openai-harmony. It has the ranks of bpe-openai instead of a download."""
    import base64

    folder = cache_folder() / "tiktoken"
    path = folder / "o200k_base.tiktoken"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        lines = (base64.b64encode(token) + b" %d\n" % rank for token, rank in read_ranks().items())
        draft = folder / f"draft-{os.getpid()}"
        draft.write_bytes(b"".join(lines))
        draft.replace(path)
    os.environ["TIKTOKEN_ENCODINGS_BASE"] = str(Path(folder))
    from openai_harmony import HarmonyEncodingName, load_harmony_encoding

    return load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)


def to_judge(conversation: Conversation) -> Any:
    """Return the conversation in the classes of openai-harmony."""
    import openai_harmony as oh

    def tool(description: ToolDescription) -> Any:
        return oh.ToolDescription.new(description.name, description.description, description.parameters)

    messages = []
    if (system := conversation.system) is not None:
        names = {"low": oh.ReasoningEffort.LOW, "medium": oh.ReasoningEffort.MEDIUM, "high": oh.ReasoningEffort.HIGH}
        content = oh.SystemContent(
            model_identity=system.identity,
            reasoning_effort=None if system.effort is None else names[system.effort],
            conversation_start_date=system.date,
            knowledge_cutoff=system.knowledge_cutoff,
            channel_config=oh.ChannelConfig.require_channels(list(system.channels)),
        )
        for space in system.namespaces:
            tools = [tool(t) for t in space.tools]
            content.with_tools(oh.ToolNamespaceConfig(name=space.name, description=space.description, tools=tools))
        messages.append(oh.Message.from_role_and_content(oh.Role.SYSTEM, content))
    if any(m.role == "developer" for m in prologue(conversation)):
        instructions, formats = conversation.instructions, conversation.response_formats
        content = oh.DeveloperContent(instructions=instructions)
        if conversation.tools:
            content = content.with_function_tools([tool(t) for t in conversation.tools])
        contents: list[Any] = [content]
        if formats and (conversation.tools or instructions is None):  # the library has no response formats
            gap = "\n\n" if conversation.tools else ""
            contents.append(oh.TextContent(text=gap + response_formats_section(formats)))
        elif formats:
            content.instructions = f"{instructions}\n\n{response_formats_section(formats)}"
        messages.append(oh.Message.from_role_and_contents(oh.Role.DEVELOPER, contents))
    for m in conversation.messages:
        messages.append(
            oh.Message(
                author=oh.Author(role=oh.Role(m.role), name=m.name),
                content=[oh.TextContent(text=m.content)],
                channel=m.channel,
                recipient=m.recipient,
                content_type=m.content_type,
            )
        )
    return oh.Conversation.from_messages(messages)


def text(rng: random.Random, most: int = 8) -> str:
    words = [rng.choice(WORDS) if rng.random() < 0.8 else _noise(rng) for _ in range(rng.randint(0, most))]
    return rng.choice(["", " ", " "]).join(words)


def _noise(rng: random.Random) -> str:
    planes = [
        (0x20, 0x7F),
        (0xA0, 0x250),
        (0x370, 0x600),
        (0x900, 0xDFF),
        (0x2000, 0x2BFF),
        (0x4E00, 0x9FFF),
        (0x1F300, 0x1FAFF),
    ]
    low, high = rng.choice(planes)
    return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 5)))


def name(rng: random.Random) -> str:
    return rng.choice(string.ascii_lowercase) + "".join(
        rng.choices(string.ascii_letters + string.digits + "_", k=rng.randint(1, 9))
    )


def schema(rng: random.Random, depth: int = 0) -> Any:
    kinds = [
        "string",
        "number",
        "integer",
        "boolean",
        "array",
        "object",
        "null",
        "list",
        "oneOf",
        "anyOf",
        "none",
        "odd",
    ]
    kind = rng.choice(kinds if depth < 3 else kinds[:4])
    out: dict[str, Any] = {}
    if kind == "object":
        out = object_schema(rng, depth + 1)
    elif kind == "array":
        out = {"type": "array"} | ({"items": schema(rng, depth + 1)} if rng.random() < 0.7 else {})
    elif kind == "list":
        out = {"type": rng.sample(["string", "integer", "number", "null", "object"], rng.randint(0, 3))}
    elif kind in ("oneOf", "anyOf"):
        out = {kind: [schema(rng, depth + 1) for _ in range(rng.randint(0, 3))]}
    elif kind == "odd":
        out = rng.choice(
            [{"$ref": "#/x"}, {"const": 3}, {"type": 5}, {"type": "string", "enum": [1, 2]}, {"oneOf": "x"}]
        )
    elif kind != "none":
        out = {"type": kind}
    if rng.random() < 0.25:
        out["enum"] = rng.choice([[], ["a", 'b"c', "d e"], [1, "x", None]])
    extras = {
        "description": lambda: rng.choice([text(rng, 4), "line one\nline two", 7]),
        "default": lambda: rng.choice(
            ["x", 'q"t', 1, -1.5, 1e-5, 2e16, 1e300, 123456789.25, True, None, [1, {"a": "é\n"}], {}, 2**70]
        ),
        "title": lambda: text(rng, 2),
        "examples": lambda: rng.choice([[], ["a", 'b"'], [1, "z"], "no"]),
        "nullable": lambda: rng.choice([True, False, "yes"]),
    }
    for key, make in extras.items():
        if rng.random() < 0.25:
            out[key] = make()
    return out


def object_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    properties = {name(rng): schema(rng, depth) for _ in range(rng.randint(0, 4))}
    out: dict[str, Any] = {"type": "object"}
    if rng.random() < 0.9:
        out["properties"] = properties
    if rng.random() < 0.7:
        out["required"] = [key for key in properties if rng.random() < 0.5]
    if rng.random() < 0.3:
        out["description"] = text(rng, 3)
    if depth == 0 and rng.random() < 0.1:
        out["oneOf"] = [schema(rng, 2), schema(rng, 2)]
    return out


def tool(rng: random.Random) -> ToolDescription:
    description = rng.choice([text(rng), "one\ntwo\r\nthree\n", "", "plain words"])
    return ToolDescription(name(rng), description, None if rng.random() < 0.2 else object_schema(rng))


def system(rng: random.Random) -> SystemSettings:
    spaces = rng.sample(
        [
            ToolNamespace("python", (), "Runs code.\nStateful."),
            ToolNamespace("browser", (tool(rng), tool(rng)), rng.choice([None, "Looks\nthings up."])),
            ToolNamespace(name(rng), (tool(rng),)),
        ],
        rng.choice([0, 0, 0, 1, 2, 3]),
    )
    return SystemSettings(
        identity=rng.choice([None, SystemSettings().identity, text(rng)]),
        knowledge_cutoff=rng.choice([None, "2024-06"]),
        date=rng.choice([None, "2026-01-31"]),
        effort=rng.choice([None, "low", "medium", "high"]),
        namespaces=tuple(spaces),
        channels=rng.choice([(), ("analysis", "commentary", "final"), ("analysis", "final")]),
    )


def turn(rng: random.Random, functions: list[str]) -> list[Message]:
    """Return a user message and the assistant's turn, well formed."""
    out = [Message("user", text(rng), name=rng.choice([None, None, None, "bob"]))]
    if rng.random() < 0.1:
        out.insert(0, Message("developer", f"# Instructions\n\n{text(rng)}"))
    for _ in range(rng.choice([0, 0, 1, 2])):
        if rng.random() < 0.7:
            out.append(Message("assistant", text(rng), "analysis"))
        if rng.random() < 0.4:
            out.append(Message("assistant", text(rng), "commentary"))
        target = f"functions.{rng.choice(functions)}"
        channel, kind = rng.choice(
            [("commentary", JSON_CONTENT)] * 4 + [("analysis", "code"), ("commentary", "json"), ("commentary", None)]
        )
        out.append(Message("assistant", text(rng), channel, target, kind))
        out.append(Message("tool", text(rng), channel, "assistant", name=target))
    if rng.random() < 0.7:
        out.append(Message("assistant", text(rng), "analysis"))
    out.append(Message("assistant", text(rng), "final"))
    return out


def conversation(rng: random.Random) -> Conversation:
    """Return a random conversation whose turns all have answers. Sometimes its end is cut off."""
    tools = tuple(tool(rng) for _ in range(rng.choice([0, 0, 1, 2, 4])))
    functions = [t.name for t in tools] or ["lookup"]
    messages = [m for _ in range(rng.randint(1, 4)) for m in turn(rng, functions)]
    if rng.random() < 0.2:
        messages = messages[: rng.randint(1, len(messages))]
    instructions = rng.choice([None, "", text(rng), text(rng, 20)])
    return Conversation(tuple(messages), rng.choice([None, *[system(rng)] * 4]), instructions, tools)


def response_format(rng: random.Random) -> ResponseFormat:
    description = rng.choice(["", "A shopping list", "two\nlines", text(rng, 3)])
    return ResponseFormat(name(rng), object_schema(rng), description)


ODD_RECIPIENTS = [
    None, None, None, "all", "assistant", "user", "python", "browser.search", "functions.f", "functions.<|end|>",
    "a b", "", "<|call|>", "日本", "lookup_weather",
]  # fmt: skip
ODD_CONTENT_TYPES = [
    None, None, None, JSON_CONTENT, "<|constrain|> json", "<|constrain|>", "json", "code", "text", "json <|constrain|>",
    "<|constrain|><|end|>", "<|message|>", "", "a b",
]  # fmt: skip
ODD_NAMES = [None, None, "bob", "functions.f", "a b", "Zoë:1", "<|end|><|start|>system", ":", "\n"]


def any_message(rng: random.Random) -> Message:
    """Return a message with any author, name, channel, recipient and content type. All may spell out control tokens."""
    role = rng.choice(ROLES)
    author = rng.choice(ODD_NAMES) or ("functions.g" if role == "tool" else None)
    channel = rng.choice([None, "analysis", "commentary", "final", "<|channel|>x", "other"])
    return Message(role, text(rng), channel, rng.choice(ODD_RECIPIENTS), rng.choice(ODD_CONTENT_TYPES), author)


def any_conversation(rng: random.Random) -> Conversation:
    """Return a random conversation that may use everything that Harmony can express, useful or not."""
    base = conversation(rng)
    messages = list(base.messages)
    for _ in range(rng.choice([0, 1, 3])):
        messages.insert(rng.randint(0, len(messages)), any_message(rng))
    settings = base.system
    if settings is not None and rng.random() < 0.4:
        kept = tuple(space for space in settings.namespaces if space.name not in ("browser", "python"))
        announced = rng.choice([(BROWSER,), (PYTHON,), (PYTHON, BROWSER)])
        settings = replace(settings, namespaces=rng.choice([kept, ()]) + announced)
    formats = tuple(response_format(rng) for _ in range(rng.choice([0, 0, 0, 1, 2])))
    return replace(base, messages=tuple(messages), system=settings, response_formats=formats)
