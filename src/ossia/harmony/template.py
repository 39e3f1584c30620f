"""Where a chat template would show the model other tokens than Ossia's renderer, on the user's own data.

A server that only knows templates shows the model what the checkpoint's template makes of a chat. The published
template of gpt-oss differs from Harmony in many places; a model tuned on one rendering is then asked in another.
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
    """One place where the two renderings differ, as text with control tokens spelt out."""

    index: int
    """Of the first differing token in our ids."""
    ours: str
    theirs: str
    before: str
    """The tokens before it, which are the same in both."""
    after: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two renderings of one chat. `theirs` is None where the template refused it, and `refusal` says why."""

    ours: list[int]
    theirs: list[int] | None
    hunks: tuple[Hunk, ...]
    refusal: str = ""

    @property
    def equal(self) -> bool:
        """Whether the model would see the same tokens."""
        return self.ours == self.theirs


def compare(
    messages: list[Chat],
    tools: list[Chat] | None,
    arguments: dict[str, Any],
    template: str,
    vocabulary: Vocabulary,
    order: HeaderOrder = "channel-first",
) -> Comparison:
    """Render a chat with a template and with our renderer, and find the differences.

    Chats that end with the assistant are rendered as a training target, all others as a prompt.

    Args:
        messages, tools, arguments: as `chat_form` gives them.
        template: the text of a Jinja chat template. One that raises is a finding, not an error.
    """
    conversation = conversation_from_chat_form(messages, tools, arguments)
    is_prompt = not (conversation.messages and conversation.messages[-1].role == "assistant")
    ours = render_prompt(conversation, vocabulary, order) if is_prompt else _target(conversation, vocabulary, order)
    try:
        text = render_template(template, messages, tools, is_prompt, **arguments)
    except Exception as error:  # whatever a foreign template does
        return Comparison(ours, None, (), f"{type(error).__name__}: {error}")
    theirs = vocabulary.encode_with_specials(text)
    return Comparison(ours, theirs, tuple(_hunks(ours, theirs, vocabulary)))


def render_template(
    template: str, messages: list[Chat], tools: list[Chat] | None, is_prompt: bool, **arguments: Any
) -> str:
    """The text that transformers makes of a chat with this template. Takes half a second the first time."""
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, _ = render_jinja_template(
        [messages], tools=tools, chat_template=template, add_generation_prompt=is_prompt, **arguments
    )
    return str(rendered[0])


def _target(conversation: Conversation, vocabulary: Vocabulary, order: HeaderOrder) -> list[int]:
    """The last turn as a training target: the answer that ends it does not drop its own thoughts."""
    *context, last = conversation.messages
    messages = (*prologue(conversation), *without_old_thoughts(context), last)
    return render_messages(messages, vocabulary, order, stop=True).ids


def _hunks(ours: Sequence[int], theirs: Sequence[int], vocabulary: Vocabulary) -> list[Hunk]:
    """The differing stretches. What is equal at both ends is left out of the search, which is quadratic."""
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
