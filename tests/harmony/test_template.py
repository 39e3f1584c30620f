"""Tests of the exported chat template in transformers against our own renderer, token for token."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from ossia.harmony import chat_template, conversation_from_chat, render_prompt
from ossia.harmony.conversation import Conversation, SystemSettings, without_old_thoughts
from ossia.harmony.render import prologue, render_messages
from ossia.harmony.template import compare, render_template
from ossia.harmony.to_openai import chat_form, conversation_from_chat_form
from ossia.harmony.tokenizer.vocabulary import Vocabulary
from support import harmony_chats as chats
from support import harmony_samples as samples

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


def training_target(conversation: Conversation, vocabulary: Vocabulary) -> list[int]:
    """Return the ids of a conversation whose last message ends with `<|return|>`. Old thoughts are left out."""
    *before, last = conversation.messages
    return render_messages((*prologue(conversation), *without_old_thoughts(before), last), vocabulary, stop=True).ids


@pytest.mark.parametrize("name", ["two turns", "pending tool loop", "parallel calls, results out of order"])
def test_training_targets_are_equal(tokenizer: Any, tokenizer_folder: Path, name: str) -> None:
    messages, tools = CONVERSATIONS[name]
    messages = [*messages, {"role": "assistant", "content": "Well.", "thinking": "last thought"}]
    ours = training_target(conversation_from_chat(messages, tools), Vocabulary.load(tokenizer_folder))
    assert by_template(tokenizer, messages, tools, prompt=False) == ours


def by_plain_jinja(template: str) -> Any:
    """Return the template as a plain jinja2 template.

    Unlike transformers, plain jinja2 keeps keys that are None and does not fill in the other key of a thought.
    """
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def tojson(value: Any, separators: Any = None) -> str:
        return json.dumps(value, ensure_ascii=False, separators=separators)

    def raise_exception(text: str) -> None:
        raise TemplateError(text)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(template)


def test_random_chats_are_equal_as_prompts_and_as_targets(tokenizer_folder: Path) -> None:
    """The template runs as in transformers and in plain jinja2."""
    rng, vocabulary, template = random.Random(7), Vocabulary.load(tokenizer_folder), chat_template()
    plain = by_plain_jinja(template)
    for number in range(1500):
        messages, tools, arguments = chats.chat(rng)
        conversation = conversation_from_chat_form(messages, tools, arguments)
        for prompt in [True, False] if messages[-1]["role"] == "assistant" else [True]:
            ours = render_prompt(conversation, vocabulary) if prompt else training_target(conversation, vocabulary)
            options = {"messages": messages, "tools": tools, "add_generation_prompt": prompt, **arguments}
            texts = [render_template(template, messages, tools, prompt, **arguments), plain.render(**options)]
            for text in texts:
                assert vocabulary.encode_with_specials(text) == ours, f"{number}: {messages}"


def test_random_chats_are_equal_through_the_tokenizer(tokenizer: Any, tokenizer_folder: Path) -> None:
    rng, vocabulary = random.Random(8), Vocabulary.load(tokenizer_folder)
    for _ in range(100):
        messages, tools, arguments = chats.chat(rng)
        ours = render_prompt(conversation_from_chat_form(messages, tools, arguments), vocabulary)
        assert by_template(tokenizer, messages, tools, **arguments) == ours


def test_the_chat_form_of_a_conversation_makes_the_same_conversation() -> None:
    rng = random.Random(9)
    for _ in range(1500):
        conversation = conversation_from_chat_form(*chats.chat(rng))
        assert conversation_from_chat_form(*chat_form(conversation)) == conversation


def test_any_conversation_has_some_chat_form() -> None:
    """A message that the chat form cannot express gets a similar form. No text is lost."""
    rng = random.Random(10)
    for _ in range(300):
        conversation = samples.any_conversation(rng)
        said = json.dumps(chat_form(conversation), ensure_ascii=False)
        for message in conversation.messages:
            text = message.content.removeprefix("# Instructions\n\n")
            assert json.dumps(text, ensure_ascii=False).strip('"') in said or message.content_type == "code"


def test_the_chat_form_is_the_one_that_apis_take() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?", "name": "bob"},
        {"role": "assistant", "thinking": "look", "content": "One moment.", "tool_calls": [call("call_1", "f", "{}")]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sun"},
        {"role": "assistant", "thinking": "done", "content": "Sunny.", "weight": 0.5},
        {"role": "developer", "content": "Now rhyme."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "tool_calls": [call("call_2", "python", '{"code": "1+1"}')]},
        {"role": "tool", "tool_call_id": "call_2", "content": "2"},
        {"role": "assistant", "content": "{}", "channel": "commentary", "recipient": "functions.g"},
    ]
    arguments = {
        "model_identity": "I.",
        "knowledge_cutoff": "2025-01",
        "reasoning_effort": "high",
        "builtin_tools": ["python"],
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
    }
    conversation = conversation_from_chat_form(messages, [WEATHER], arguments)
    assert chat_form(conversation) == (messages, [WEATHER], arguments)


# Three differences of the published template: newlines after instructions, quoted results, one call of several.
OTHER_TEMPLATE = """<|start|>developer<|message|># Instructions

{{ messages[0].content }}

<|end|>
{%- for message in messages[1:] -%}
{%- if message.role == "user" -%}<|start|>user<|message|>{{ message.content }}<|end|>
{%- elif message.tool_calls -%}
{%- set call = message.tool_calls[0].function -%}
<|start|>assistant<|channel|>commentary to=functions.{{ call.name }} <|constrain|>json<|message|>
{{- call.arguments }}<|call|>
{%- elif message.role == "tool" -%}
<|start|>functions.clock to=assistant<|channel|>commentary<|message|>{{ message.content | tojson }}<|end|>
{%- else -%}{{ raise_exception("no " + message.role) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}"""


def test_compare_shows_where_a_checkpoints_template_differs(tokenizer_folder: Path) -> None:
    vocabulary = Vocabulary.load(tokenizer_folder)
    calls = [call("1", "clock", "{}"), call("2", "clock", '{"zone": "UTC"}')]
    messages: list[Any] = [
        {"role": "system", "content": "Be brief."},
        U,
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": "noon"},
        {"role": "tool", "tool_call_id": "2", "content": "eleven"},
    ]
    head = vocabulary.decode(render_prompt(conversation_from_chat([]), vocabulary)).removesuffix("<|start|>assistant")
    found = compare(messages, None, {}, head + OTHER_TEMPLATE, vocabulary)
    assert not found.equal and found.theirs is not None and found.refusal == ""
    shown = [(hunk.ours, hunk.theirs) for hunk in found.hunks]
    lost = (
        '<|start|>assistant<|channel|>commentary to=functions.clock <|constrain|>json<|message|>{"zone": "UTC"}<|call|>'
    )
    assert shown == [(".", ".\n\n"), (f"noon<|end|>{lost}", '"noon"<|end|>'), ("eleven", '"eleven"')]
    assert found.hunks[0].before.endswith("Be brief") and found.hunks[2].after == "<|end|><|start|>assistant"
    for hunk in found.hunks:
        at = len(vocabulary.encode_with_specials(hunk.ours))
        assert vocabulary.decode(found.ours[hunk.index : hunk.index + at]) == hunk.ours
        assert vocabulary.decode(found.ours[: hunk.index]).endswith(hunk.before)


def test_compare_finds_nothing_in_our_own_template(tokenizer_folder: Path) -> None:
    vocabulary = Vocabulary.load(tokenizer_folder)
    for messages, tools in CONVERSATIONS.values():
        found = compare(messages, tools, {"reasoning_effort": "low"}, chat_template(), vocabulary)
        assert found.equal and found.hunks == ()
    target = compare([U, A], None, {}, chat_template(), vocabulary)
    assert target.equal and vocabulary.decode(target.ours).endswith("Hello<|return|>")


def test_a_template_that_refuses_is_a_finding(tokenizer_folder: Path) -> None:
    vocabulary = Vocabulary.load(tokenizer_folder)
    for template, reason in [
        ("{{ raise_exception('not this') }}", "not this"),
        ("{{ messages[0].content.nothing.more }}", "nothing"),
        ("{% if", "TemplateSyntaxError"),
    ]:
        found = compare([U], None, {}, template, vocabulary)
        assert found.theirs is None and not found.equal and found.hunks == () and reason in found.refusal


def test_random_tools_are_equal(tokenizer: Any, tokenizer_folder: Path) -> None:
    rng, vocabulary = random.Random(11), Vocabulary.load(tokenizer_folder)
    for _ in range(150):
        parameters = json.loads(json.dumps(chats.plain(samples.object_schema(rng))))
        description = rng.choice(["One line.", "Two\nlines", "", "Three\r\nlines\n"])
        tool = {"type": "function", "function": {"name": "f", "description": description, "parameters": parameters}}
        ours = render_prompt(conversation_from_chat([U], [tool]), vocabulary)
        assert tokenizer.decode(by_template(tokenizer, [U], [tool])) == vocabulary.decode(ours), parameters


def test_bad_messages_are_refused(tokenizer: Any) -> None:
    from jinja2.exceptions import TemplateError

    with pytest.raises(TemplateError, match="without a call"):
        by_template(tokenizer, [U, {"role": "tool", "content": "x"}], None)
    with pytest.raises(TemplateError, match="Unknown role"):
        by_template(tokenizer, [{"role": "robot", "content": "x"}], None)
    with pytest.raises(TemplateError, match="no built-in tool"):
        by_template(tokenizer, [U], None, builtin_tools=["browse"])
