"""The exported chat template, run by transformers, against our own renderer, token for token."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

import harmony_samples as samples
from ossia.data.examples import examples_of
from ossia.harmony import chat_template, conversation_from_chat, render_prompt
from ossia.harmony.conversation import SystemSettings
from ossia.harmony.vocabulary import Vocabulary

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a place.\nIn degrees.",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "City", "examples": ["Oslo", "Rom"]},
                "unit": {"type": "string", "enum": ["C", "F"], "default": "C"},
                "days": {"type": "array", "items": {"type": "integer"}, "default": [1, 2]},
                "box": {"type": "object", "properties": {"x": {"type": ["number", "null"]}}, "required": ["x"]},
                "when": {"oneOf": [{"type": "string", "description": "a day"}, {"type": "integer", "default": 3}]},
            },
            "required": ["place"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}


def call(id: str, name: str, arguments: Any) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


U, A = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", "thinking": "greet"}
CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], list[Any] | None]] = {
    "user only": ([U], None),
    "instructions": (
        [{"role": "system", "content": "Be brief."}, {"role": "developer", "content": "Or not."}, U],
        None,
    ),
    "two turns": ([U, A, {"role": "user", "content": [{"type": "text", "text": "Why?"}], "name": "bob"}], None),
    "developer in the middle": ([U, A, {"role": "system", "content": "Now rhyme."}, U], None),
    "tools": ([U], [WEATHER, CLOCK]),
    "pending tool loop": (
        [
            U,
            A,
            U,
            {
                "role": "assistant",
                "reasoning_content": "look it up",
                "content": "One moment.",
                "tool_calls": [call("1", "get_weather", '{"place": "Oslo"}')],
            },
            {"role": "tool", "tool_call_id": "1", "content": '{"t": 4}'},
        ],
        [WEATHER, CLOCK],
    ),
    "parallel calls, results out of order": (
        [
            U,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [call("1", "clock", {}), call("2", "get_weather", {"place": "Århus"})],
            },
            {"role": "tool", "tool_call_id": "2", "content": "rain"},
            {"role": "tool", "tool_call_id": "1", "content": "12:00"},
            {"role": "assistant", "content": "Noon, rain.", "thinking": "done"},
            U,
        ],
        [CLOCK, WEATHER],
    ),
}


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.chat_template = chat_template()
    return tokenizer


def by_template(
    tokenizer: Any, messages: list[Any], tools: list[Any] | None, prompt: bool = True, **options: Any
) -> Any:
    return tokenizer.apply_chat_template(
        messages, tools, tokenize=True, return_dict=False, add_generation_prompt=prompt, **options
    )


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("effort", [None, "high"])
def test_prompts_are_equal(tokenizer: Any, tokenizer_folder: Path, name: str, effort: Any) -> None:
    messages, tools = CONVERSATIONS[name]
    options = (
        {} if effort is None else {"reasoning_effort": effort, "current_date": "2026-01-31", "model_identity": "I."}
    )
    system = SystemSettings() if effort is None else SystemSettings("I.", date="2026-01-31", effort=effort)
    conversation = conversation_from_chat(messages, tools, system=system)
    ours = render_prompt(conversation, Vocabulary.load(tokenizer_folder))
    assert by_template(tokenizer, messages, tools, **options) == ours


@pytest.mark.parametrize("name", ["two turns", "pending tool loop", "parallel calls, results out of order"])
def test_training_targets_are_equal(tokenizer: Any, tokenizer_folder: Path, name: str) -> None:
    messages, tools = CONVERSATIONS[name]
    messages = [*messages, {"role": "assistant", "content": "Well.", "thinking": "last thought"}]
    conversation = conversation_from_chat(messages, tools)
    ours = examples_of(conversation, Vocabulary.load(tokenizer_folder))[-1].ids
    assert by_template(tokenizer, messages, tools, prompt=False) == ours


def test_random_tools_are_equal(tokenizer: Any, tokenizer_folder: Path) -> None:
    rng, vocabulary = random.Random(11), Vocabulary.load(tokenizer_folder)
    for _ in range(150):
        parameters = json.loads(json.dumps(plain(samples.object_schema(rng))))
        description = rng.choice(["One line.", "Two\nlines", "", "Three\r\nlines\n"])
        tool = {"type": "function", "function": {"name": "f", "description": description, "parameters": parameters}}
        ours = render_prompt(conversation_from_chat([U], [tool]), vocabulary)
        assert tokenizer.decode(by_template(tokenizer, [U], [tool])) == vocabulary.decode(ours), parameters


def plain(schema: Any) -> Any:
    """Without what a template cannot tell apart: control tokens, and values of the wrong type."""
    if isinstance(schema, str):
        return schema.replace("<|", "< |")
    if isinstance(schema, float) or (isinstance(schema, int) and schema > 2**64):
        return 1.5
    if isinstance(schema, list):
        return [plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strange = {"enum": str, "oneOf": list, "type": (str, list)}
    kept = {key: value for key, value in schema.items() if not (key in strange and not isinstance(value, (list, str)))}
    if isinstance(kept.get("oneOf"), str):
        del kept["oneOf"]
    return {plain(key): plain(value) for key, value in kept.items()}


def test_bad_messages_are_refused(tokenizer: Any) -> None:
    from jinja2.exceptions import TemplateError

    with pytest.raises(TemplateError, match="without a call"):
        by_template(tokenizer, [U, {"role": "tool", "content": "x"}], None)
    with pytest.raises(TemplateError, match="Unknown role"):
        by_template(tokenizer, [{"role": "robot", "content": "x"}], None)
