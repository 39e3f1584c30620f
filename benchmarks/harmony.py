"""Compiling, rendering and parsing beside openai-harmony, on the same long chats.

Compiling is the data work of `ossia train` on a file. It reads the JSON, converts the format and runs all checks except
the search for near-duplicates. Then it computes the tokens and weights of all turns' examples. It is measured on one
core, on all cores with an empty cache, and from the cache. The tokens of a conversation count once, although several
examples share them.

openai-harmony renders the same conversations on one thread, without checks and examples. Its objects are built before
the clock starts. The benchmark asserts that both renderers give the same ids.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ossia.config import DataSection
from ossia.data.compile import Compiled, compile_sources, usable_cores
from ossia.data.load import load_conversations
from ossia.harmony.conversation import Conversation
from ossia.harmony.parse import parse
from ossia.harmony.render import render_conversation
from ossia.harmony.tokenizer.vocabulary import Vocabulary

TEXT = """the model reads a sentence about rivers, tables and numbers like 17 or 2,048 while it answers; möglich élève
niño 東京 However, don't `return x + 1;` https://example.org/a?b=c **bold** def f(items): for i in range(10): camelCase
understanding international 3.14159 [1, 2, 3] (see below) Therefore we conclude that - first - second weather"""
WORDS = [*TEXT.split(), "\n\n"]
TOOL = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Searches.",
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string"}, "limit": {"type": "integer"}},
            "required": ["query"],
        },
    },
}
ROUNDS, CHATS, TURNS = 5, 1500, 20
SETTINGS = DataSection(max_tokens=131_072)


def run(cuda: bool) -> dict[str, object]:
    """Return medians in tokens per second, and ratios to openai-harmony."""
    vocabulary, library, cores = Vocabulary.load(), Library(), usable_cores()
    rounds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["OSSIA_CACHE"] = folder
        for number in range(ROUNDS):
            # Each round has new texts, so neither side gains from a warm cache of words.
            file = _write(Path(folder) / f"{number}.jsonl", random.Random(number))
            for name, rate in _round(file, vocabulary, library, cores).items():
                rounds.setdefault(name, []).append(rate)
    medians = {name: round(statistics.median(rates)) for name, rates in rounds.items()}
    return {
        "unit": "tokens per second",
        "chats": CHATS,
        "turns": TURNS,
        "cores": cores,
        "encoder": vocabulary.encoder,
        **medians,
        "ratios to openai-harmony": {
            name: round(medians[ours] / medians[f"openai-harmony, {theirs}"], 2)
            for name, ours, theirs in (
                ("compile, all cores", "compile, all cores", "render"),
                ("compile, one core", "compile, one core", "render"),
                ("render, one core", "render, one core", "render"),
                ("parse, one core", "parse, one core", "parse"),
            )
        },
    }


def _round(file: Path, vocabulary: Vocabulary, theirs: Library, cores: int) -> dict[str, float]:
    def compiled(workers: int, cache: bool) -> Compiled:
        return compile_sources(file, vocabulary, SETTINGS, workers=workers, cache=cache)

    rates = {}
    for name, workers, cache in (
        ("compile, one core", 1, False),
        ("compile, all cores", cores, True),
        ("compile, from the cache", cores, True),
    ):
        seconds, found = _timed(lambda workers=workers, cache=cache: compiled(workers, cache))
        tokens = sum(len(conversation.tokens) for conversation in found.conversations)
        assert len(found.conversations) == CHATS and bool(found.cached) == (name == "compile, from the cache")
        rates[name] = tokens / seconds
    chats = load_conversations(file, SETTINGS).conversations[: CHATS // 5]
    built = [theirs.conversation(chat) for chat in chats]
    seconds, ids = _timed(lambda: [theirs.render(chat) for chat in built])
    tokens = sum(map(len, ids))
    rates["openai-harmony, render"] = tokens / seconds
    seconds, ours = _timed(lambda: [render_conversation(chat, vocabulary, "recipient-first") for chat in chats])
    assert ours == ids, "the two renderers disagree"
    rates["render, one core"] = tokens / seconds
    streams = ids[: CHATS // 50]
    tokens = sum(map(len, streams))
    rates["openai-harmony, parse"] = tokens / _timed(lambda: [theirs.parse(stream) for stream in streams])[0]
    rates["parse, one core"] = tokens / _timed(lambda: [parse(stream, vocabulary, "message") for stream in streams])[0]
    return rates


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def _write(file: Path, rng: random.Random) -> Path:
    def text(words: int) -> str:
        return " ".join(rng.choices(WORDS, k=words))

    with file.open("w", encoding="utf-8") as out:
        for _ in range(CHATS):
            messages: list[dict[str, Any]] = [{"role": "system", "content": text(50)}]
            for turn in range(TURNS):
                messages.append({"role": "user", "content": text(40)})
                if turn % 4 == 3:
                    arguments = json.dumps({"query": text(5), "limit": 3})
                    call = {"id": "1", "type": "function", "function": {"name": "search", "arguments": arguments}}
                    messages.append({"role": "assistant", "thinking": text(60), "tool_calls": [call]})
                    messages.append({"role": "tool", "tool_call_id": "1", "content": text(120)})
                messages.append({"role": "assistant", "thinking": text(120), "content": text(100)})
            out.write(json.dumps({"messages": messages, "tools": [TOOL]}, ensure_ascii=False) + "\n")
    return file


class Library:
    """openai-harmony with the published ranks of its vocabulary."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("bpe_openai")
        assert spec is not None and spec.origin is not None
        ranks = Path(spec.origin).parent / "data" / "o200k_base.tiktoken.gz"
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "o200k_base.tiktoken").write_bytes(gzip.decompress(ranks.read_bytes()))
            os.environ["TIKTOKEN_ENCODINGS_BASE"] = folder
            import openai_harmony

            self._h = openai_harmony
            self._encoding = openai_harmony.load_harmony_encoding("HarmonyGptOss")
        self._config = openai_harmony.RenderConversationConfig(auto_drop_analysis=False)

    def conversation(self, chat: Conversation) -> Any:
        """Return the conversation in the library's classes."""
        h = self._h
        system = h.SystemContent.new().with_reasoning_effort(h.ReasoningEffort.MEDIUM)
        developer = h.DeveloperContent.new().with_instructions(chat.instructions or "")
        tools = [h.ToolDescription.new(t.name, t.description, t.parameters) for t in chat.tools]
        messages = [
            h.Message.from_role_and_content(h.Role.SYSTEM, system),
            h.Message.from_role_and_content(h.Role.DEVELOPER, developer.with_function_tools(tools)),
        ]
        for message in chat.messages:
            made = h.Message.from_author_and_content(
                h.Author(role=h.Role(message.role), name=message.name), message.content
            )
            made.channel, made.recipient, made.content_type = message.channel, message.recipient, message.content_type
            messages.append(made)
        return h.Conversation.from_messages(messages)

    def render(self, conversation: Any) -> list[int]:
        """Return the token ids of all messages. No thoughts are dropped."""
        return self._encoding.render_conversation(conversation, config=self._config)

    def parse(self, ids: list[int]) -> Any:
        """Return the messages of a stream, parsed in the library's strict mode."""
        return self._encoding.parse_messages_from_completion_tokens(ids, None, strict=True)
