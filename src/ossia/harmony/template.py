"""Comparison of a chat template's tokens with those of Ossia's renderer, on the user's own data.

A server that only supports templates renders a chat with the checkpoint's template. The published template of gpt-oss
differs from Harmony in many places. A model that is trained on one rendering then receives another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from ossia.config import HeaderOrder
from ossia.harmony.conversation import Conversation, without_old_thoughts
from ossia.harmony.render import prologue, render_messages, render_prompt
from ossia.harmony.to_openai import Chat, conversation_from_chat_form
from ossia.harmony.tokenizer.vocabulary import Vocabulary

_CONTEXT = 8  # tokens shown before and after a difference
_GAP = 3  # differences closer than this are shown as one


@dataclass(frozen=True, slots=True)
class Hunk:
    """One difference between the two renderings, as text with control tokens spelt out."""

    index: int
    """Index of the first differing token in the renderer's ids."""
    ours: str
    """The renderer's text."""
    theirs: str
    """The template's text."""
    before: str
    """Text of up to 8 of the renderer's tokens before the difference. It may overlap an earlier difference."""
    after: str
    """Text of up to 8 of the renderer's tokens after the difference."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two renderings of one chat, as token ids, with their differences."""

    ours: list[int]
    """Token ids of the renderer."""
    theirs: list[int] | None
    """Token ids of the template; None if it raised an error."""
    hunks: tuple[Hunk, ...]
    refusal: str = ""
    """The error that the template raised."""

    @property
    def equal(self) -> bool:
        """Whether both renderings have the same tokens."""
        return self.ours == self.theirs


def compare(
    messages: list[Chat],
    tools: list[Chat] | None,
    arguments: dict[str, Any],
    template: str,
    vocabulary: Vocabulary,
    order: HeaderOrder = "channel-first",
) -> Comparison:
    """Render a chat with a template and with Ossia's renderer, and return both with their differences.

    A chat that ends with an assistant message is rendered as a training target. Any other chat is rendered as a prompt.

    Args:
        messages: as returned by `chat_form`, like `tools` and `arguments`.
        template: the text of a Jinja chat template. An error in it is part of the result and not raised.
        order: the header order of the renderer.
    """
    conversation = conversation_from_chat_form(messages, tools, arguments)
    is_prompt = not (conversation.messages and conversation.messages[-1].role == "assistant")
    ours = render_prompt(conversation, vocabulary, order) if is_prompt else _target(conversation, vocabulary, order)
    try:
        text = render_template(template, messages, tools, is_prompt, **arguments)
    except Exception as error:  # a foreign template can raise any error
        return Comparison(ours, None, (), f"{type(error).__name__}: {error}")
    theirs = vocabulary.encode_with_specials(text)
    return Comparison(ours, theirs, tuple(_hunks(ours, theirs, vocabulary)))


def render_template(
    template: str, messages: list[Chat], tools: list[Chat] | None, is_prompt: bool, **arguments: Any
) -> str:
    """Return the text of a chat as transformers renders it with this template. The first call takes half a second."""
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, _ = render_jinja_template(
        [messages], tools=tools, chat_template=template, add_generation_prompt=is_prompt, **arguments
    )
    return str(rendered[0])


def _target(conversation: Conversation, vocabulary: Vocabulary, order: HeaderOrder) -> list[int]:
    """Return the token ids of the chat as a training target, in which the last answer keeps its own thoughts."""
    *context, last = conversation.messages
    messages = (*prologue(conversation), *without_old_thoughts(context), last)
    return render_messages(messages, vocabulary, order, stop=True).ids


def _hunks(ours: Sequence[int], theirs: Sequence[int], vocabulary: Vocabulary) -> list[Hunk]:
    """Return the differing ranges. Equal tokens at both ends are left out of the search, which takes quadratic time."""
    least = min(len(ours), len(theirs))
    head = next((i for i in range(least) if ours[i] != theirs[i]), least)
    tail = next((i for i in range(least - head) if ours[-1 - i] != theirs[-1 - i]), least - head)
    a, b = ours[head : len(ours) - tail], theirs[head : len(theirs) - tail]
    stretches: list[tuple[int, int, int, int]] = []
    for kind, a1, a2, b1, b2 in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        if stretches and a1 - stretches[-1][1] < _GAP and b1 - stretches[-1][3] < _GAP:
            a1, b1 = stretches[-1][0], stretches[-1][2]
            stretches.pop()
        stretches.append((a1, a2, b1, b2))
    decode = vocabulary.decode
    return [
        Hunk(
            head + a1,
            decode(a[a1:a2]),
            decode(b[b1:b2]),
            decode(ours[max(0, head + a1 - _CONTEXT) : head + a1]),
            decode(ours[head + a2 : head + a2 + _CONTEXT]),
        )
        for a1, a2, b1, b2 in stretches
    ]
