"""Rendering of long chats: ours against openai-harmony's, the same conversations, token for token the same ids."""

from __future__ import annotations

import gzip
import importlib.util
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ossia.harmony.conversation import Conversation, Message, answer, user
from ossia.harmony.render import render_conversation
from ossia.harmony.vocabulary import Vocabulary

TEXT = "the model reads a sentence about rivers tables numbers 17 and 2,048 möglich élève niño 東京 while it answers"


def run(cuda: bool) -> dict[str, object]:
    """Return the median tokens per second over five rounds, in turns."""
    rng = random.Random(0)
    chats = [_chat(rng) for _ in range(30)]
    vocabulary = Vocabulary.load()
    theirs = _library()
    ours = [render_conversation(chat, vocabulary, "recipient-first") for chat in chats]
    assert ours == [theirs(chat) for chat in chats], "the two renderers disagree"
    tokens = sum(map(len, ours))
    rounds: dict[str, list[float]] = {"ossia": [], "openai-harmony": []}
    for _ in range(5):
        # Texts of a round are new to both: neither profits from what it has seen.
        fresh = [_chat(rng) for _ in range(30)]
        rounds["ossia"].append(_seconds(lambda chat: render_conversation(chat, vocabulary, "recipient-first"), fresh))
        rounds["openai-harmony"].append(_seconds(theirs, fresh))
    medians = {name: tokens / statistics.median(seconds) for name, seconds in rounds.items()}
    return {
        "unit": "tokens per second",
        "tokens": tokens,
        **{name: round(value) for name, value in medians.items()},
        "ratio": round(medians["ossia"] / medians["openai-harmony"], 3),
    }


def _chat(rng: random.Random) -> Conversation:
    messages: list[Message] = []
    for _ in range(20):
        messages.append(user(" ".join(rng.choices(TEXT.split(), k=60))))
        messages.append(answer(" ".join(rng.choices(TEXT.split(), k=120))))
    return Conversation(tuple(messages))


def _seconds(render: Callable[[Conversation], object], chats: list[Conversation]) -> float:
    began = time.perf_counter()
    for chat in chats:
        render(chat)
    return time.perf_counter() - began


def _library() -> Callable[[Conversation], list[int]]:
    spec = importlib.util.find_spec("bpe_openai")
    assert spec is not None and spec.origin is not None
    ranks = Path(spec.origin).parent / "data" / "o200k_base.tiktoken.gz"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "o200k_base.tiktoken").write_bytes(gzip.decompress(ranks.read_bytes()))
        os.environ["TIKTOKEN_ENCODINGS_BASE"] = folder
        import openai_harmony as h

        encoding = h.load_harmony_encoding("HarmonyGptOss")

    def render(chat: Conversation) -> list[int]:
        system = h.SystemContent.new().with_reasoning_effort(h.ReasoningEffort.MEDIUM)
        messages = [h.Message.from_role_and_content(h.Role.SYSTEM, system)]
        for message in chat.messages:
            made = h.Message.from_role_and_content(h.Role(message.role), message.content)
            messages.append(made.with_channel(message.channel) if message.channel else made)
        config = h.RenderConversationConfig(auto_drop_analysis=False)
        return encoding.render_conversation(h.Conversation.from_messages(messages), config=config)

    return render
