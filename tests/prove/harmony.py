"""The proof of the renderer against both Harmony libraries, on random conversations.

It counts the conversations whose token ids differ. The order is recipient-first against openai-harmony, and
channel-first against oss-harmony. oss-harmony 0.0.11 departs from the other sources in four points. There, Ossia
follows the other sources. For three departures, the proof rewrites our ids in the form of oss-harmony, and they must be
equal:

    result     Tool results are `functions.f to=assistant<|channel|>commentary` in OpenAI's docs/format.md, in the
               published template and in openai-harmony. oss-harmony puts the channel first for all on commentary.
    channel    oss-harmony renders calls on other channels than commentary recipient-first. Ours keep the given order.
    type       oss-harmony turns a plain content type, `json` or `code`, into `<|constrain|>json`. Ours stays as given.

The fourth departure is left out of these conversations and has its own test. Numbers from 1e16 in a schema are `1e16`
in openai-harmony. They are `1e+16` in oss-harmony, which was built with a later serde_json.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ossia.harmony.conversation import Conversation, Message, ToolDescription
from ossia.harmony.render import prologue, render_conversation, render_message
from ossia.harmony.tokenizer.vocabulary import CHANNEL, START, Vocabulary
from support import harmony_samples as samples
from support import oss_harmony_judge

_CHUNK = 1000
CHUNKS = 20


def conversations(count: int, seed: int) -> Iterator[Conversation]:
    """Yield random conversations. Half are well formed, and half use all that Harmony can express."""
    rng = random.Random(seed)
    for number in range(count):
        yield (samples.any_conversation if number % 2 else samples.conversation)(rng)


def against_openai_harmony(count: int, seed: int, vocabulary: Vocabulary) -> dict[str, Any]:
    import openai_harmony as oh

    judge, keep_all = samples.judge(), oh.RenderConversationConfig(auto_drop_analysis=False)
    result: dict[str, Any] = {"conversations": count, "messages": 0, "tokens": 0, "differences": 0, "first": None}
    for conversation in conversations(count, seed):
        ours = render_conversation(conversation, vocabulary, "recipient-first")
        theirs = judge.render_conversation(samples.to_judge(conversation), keep_all)
        _count(result, conversation, ours, theirs, vocabulary)
    return result


def against_oss_harmony(count: int, seed: int, vocabulary: Vocabulary) -> dict[str, Any]:
    result: dict[str, Any] = {"conversations": count, "messages": 0, "tokens": 0, "differences": 0, "first": None}
    departures: Counter[str] = Counter()
    chunk: list[Conversation] = []
    for number, conversation in enumerate(conversations(count, seed), 1):
        chunk.append(with_small_numbers(conversation))
        if number % _CHUNK and number < count:
            continue
        rendered = oss_harmony_judge.render([samples.to_judge(one).to_json() for one in chunk])
        assert len(rendered) == len(chunk)
        for one, theirs in zip(chunk, rendered, strict=True):
            ours: list[int] = []
            for message in prologue(one) + one.messages:
                ids, departed = as_oss_writes(message, vocabulary)
                ours += ids
                departures.update(departed)
            _count(result, one, ours, theirs, vocabulary)
        chunk = []
    return result | {"messages_with_departures": dict(departures)}


def with_small_numbers(conversation: Conversation) -> Conversation:
    def small(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: small(item) for key, item in value.items()}
        if isinstance(value, list):
            return [small(item) for item in value]
        return 1.5 if isinstance(value, (int, float)) and value >= 1e16 else value

    def tamed(tools: tuple[ToolDescription, ...]) -> tuple[ToolDescription, ...]:
        return tuple(replace(tool, parameters=small(tool.parameters)) for tool in tools)

    system = conversation.system
    if system is not None:
        spaces = tuple(replace(space, tools=tamed(space.tools)) for space in system.namespaces)
        system = replace(system, namespaces=spaces)
    return replace(conversation, system=system, tools=tamed(conversation.tools))


def as_oss_writes(message: Message, vocabulary: Vocabulary) -> tuple[list[int], list[str]]:
    """Return the ids of a message as oss-harmony writes it, and the names of its departures from our rendering."""
    departures = []
    if message.content_type is not None and not message.content_type.startswith("<|constrain|>"):
        departures.append("type")
        message = replace(message, content_type=f"<|constrain|>{message.content_type}")
    ids = render_message(message, vocabulary, "channel-first")
    if message.recipient in (None, "all") or message.channel is None:
        return ids, departures
    if message.role == "assistant" and message.channel != "commentary":
        return render_message(message, vocabulary, "recipient-first"), [*departures, "channel"]
    if message.role != "assistant" and message.channel == "commentary":
        to, on = vocabulary.encode(f" to={message.recipient}"), [CHANNEL, *vocabulary.encode("commentary")]
        at = ids.index(CHANNEL) - len(to)
        assert ids[0] == START and ids[at : at + len(to + on)] == to + on
        return ids[:at] + on + to + ids[at + len(to + on) :], [*departures, "result"]
    return ids, departures


def _count(
    result: dict[str, Any], conversation: Conversation, ours: list[int], theirs: list[int], vocabulary: Vocabulary
) -> None:
    result["messages"] += len(prologue(conversation)) + len(conversation.messages)
    result["tokens"] += len(theirs)
    if ours != theirs:
        result["differences"] += 1
        result["first"] = result["first"] or [vocabulary.decode(ours), vocabulary.decode(theirs)]


def run_chunk(number: int) -> dict[str, Any]:
    """Compare one chunk of conversations with openai-harmony, and with oss-harmony if it is installed."""
    vocabulary = Vocabulary.load()
    ours = against_openai_harmony(_CHUNK, number, vocabulary)
    counts = {f"openai-harmony {key}": value for key, value in ours.items() if key != "first"}
    firsts = [ours["first"]]
    if oss_harmony_judge.is_installed():
        theirs = against_oss_harmony(_CHUNK, number, vocabulary)
        counts |= {f"oss-harmony {key}": theirs[key] for key in ("conversations", "messages", "tokens", "differences")}
        counts |= {f"oss-harmony departure {key}": n for key, n in theirs["messages_with_departures"].items()}
        firsts.append(theirs["first"])
    return {**counts, "first differences": [first for first in firsts if first]}


def verdict(totals: dict[str, Any]) -> dict[str, Any]:
    """Return the totals. The proof passes if both libraries are compared and no token differs."""
    both = all(totals.get(f"{library} conversations") for library in ("openai-harmony", "oss-harmony"))
    return {"passed": both and not any(value for key, value in totals.items() if key.endswith("differences")), **totals}
