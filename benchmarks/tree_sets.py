"""Four synthetic sets of conversations for `benchmarks.trees`, compiled by `ossia.data`.

    chats    one conversation of 10 user turns with thoughts of 200 tokens
    agents   one trace of 20 user turns, each with a thought, a tool call, its output and an answer, under a tool schema
             of 1,500 tokens
    loops    eight conversations of a task and four tool calls each, all under one schema of that size
    single   32 conversations of one question and one answer, of different lengths

All machines get the same sets. Texts are random common words of one token each. So a text has exactly the wanted
length, and long common prefixes do not arise by chance. Ids are reduced modulo the vocabulary of the benchmark's model.
Equal prefixes stay equal.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ossia.config import DataSection
from ossia.data.compile import compile_sources
from ossia.harmony.tokenizer.vocabulary import Vocabulary

TEXT = """time year people way day man thing woman life child world school state family student group country problem
hand part place case week company system program question work government number night point home water room mother
area money story fact month lot right study book eye job word business issue side kind head house service friend
father power hour game line end member law car city community name president team minute idea body information back
parent face others level office door health person art war history party result change morning reason research girl
guy moment air teacher force education"""
WORDS = TEXT.split()
SETS = {"chats": 10, "agents": 20, "loops": 8, "single": 16}
"""For each set, the number of training examples of a step."""


class _Writer:
    """Writes random texts with a given number of tokens. `scale` is a factor on all lengths."""

    def __init__(self, seed: int, scale: float) -> None:
        self.random, self.scale = random.Random(seed), scale

    def text(self, tokens: int) -> str:
        return " ".join(self.random.choices(WORDS, k=max(2, round(tokens * self.scale))))

    def between(self, low: int, high: int) -> str:
        return self.text(self.random.randint(low, high))


def _tools(writer: _Writer) -> list[dict[str, Any]]:
    """Return ten functions, whose schema has about 1,500 tokens."""
    tools = []
    for number in range(10):
        text = {"type": "string", "description": writer.text(24)}
        parameters = {"type": "object", "properties": {"query": text, "unit": text}, "required": ["query"]}
        function = {"name": f"tool_{number}", "description": writer.text(70), "parameters": parameters}
        tools.append({"type": "function", "function": function})
    return tools


def _call(writer: _Writer, thought: int, output: int) -> list[dict[str, Any]]:
    function = {"name": f"tool_{writer.random.randrange(10)}", "arguments": json.dumps({"query": writer.text(6)})}
    call = {"id": "c", "type": "function", "function": function}
    return [
        {"role": "assistant", "thinking": writer.text(thought), "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": writer.text(output)},
    ]


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _answer(text: str, thought: str | None = None) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **({"thinking": thought} if thought else {})}


def _chats(writer: _Writer) -> list[dict[str, Any]]:
    messages = [{"role": "system", "content": writer.text(150)}]
    for _ in range(10):
        messages += [_user(writer.text(150)), _answer(writer.text(60), writer.text(200))]
    return [{"messages": messages}]


def _agents(writer: _Writer) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for _ in range(20):
        messages += [_user(writer.text(8)), *_call(writer, thought=40, output=20), _answer(writer.text(10))]
    return [{"messages": messages, "tools": _tools(writer)}]


def _loops(writer: _Writer) -> list[dict[str, Any]]:
    tools, rows = _tools(writer), []
    for _ in range(8):
        calls = [message for _ in range(4) for message in _call(writer, thought=30, output=40)]
        rows.append({"messages": [_user(writer.text(30)), *calls, _answer(writer.text(60))], "tools": tools})
    return rows


def _single(writer: _Writer) -> list[dict[str, Any]]:
    return [
        {"messages": [_user(writer.between(20, 120)), _answer(writer.between(30, 200), writer.between(50, 300))]}
        for _ in range(32)
    ]


MAKERS: dict[str, Callable[[_Writer], list[dict[str, Any]]]] = {
    "chats": _chats, "agents": _agents, "loops": _loops, "single": _single
}  # fmt: skip


def write_sets(folder: Path, vocabulary: int, scale: float = 1.0) -> dict[str, Path]:
    """Write the training examples of each set and return the files by set. A line is a JSON object of ids and weights.

    Args:
        folder: where the files go.
        vocabulary: ids are reduced to 0..vocabulary - 1.
        scale: factor on all text lengths.
    """
    real, settings = Vocabulary.load(), DataSection(max_tokens=131_072)
    files = {}
    for seed, (name, make) in enumerate(MAKERS.items()):
        rows = folder / f"{name}.rows.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in make(_Writer(seed, scale))), encoding="utf-8")
        compiled = compile_sources([rows], real, settings, cache=False)
        assert not compiled.errors, compiled.errors
        files[name] = folder / f"{name}.jsonl"
        lines = (
            json.dumps({"ids": [id % vocabulary for id in example.ids], "weights": example.weights})
            for example in compiled.examples
        )
        files[name].write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return files
