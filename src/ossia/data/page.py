"""Training examples as one HTML file that needs nothing else: for a colleague, a review, an issue.

One page per conversation, one tab per trained turn. Every token is visible, coloured by channel; trained ones stand on
a ground of their own; control tokens are set apart. The id of a token shows when the pointer rests on it.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files

from ossia.data.rendered import Example, Rendered
from ossia.harmony.preview import pieces
from ossia.harmony.tokenizer.vocabulary import START, STARTOFTEXT, VOCABULARY_SIZE, Vocabulary

MARK = '<meta name="generator" content="ossia data show">'
"""Stands in every page, to tell it from somebody's file of the same name."""


def page(title: str, conversations: Iterable[tuple[Rendered, list[str]]], vocabulary: Vocabulary) -> Iterator[str]:
    """Yield the text of the page in pieces. A link to `#3` opens the fourth conversation.

    Args:
        conversations: each with remarks to be shown above it, such as its problems.
    """
    yield from framed(title, "", (_section(made, remarks, vocabulary) for made, remarks in conversations))


def framed(title: str, legend: str, sections: Iterable[Iterable[str]]) -> Iterator[str]:
    """Yield the page around sections, one per conversation. `legend` is text for its head."""
    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    before, after = template.split("<!--conversations-->")
    yield before.replace("<!--title-->", html.escape(title)).replace("<!--legend-->", html.escape(legend))
    for section in sections:
        yield from section
    yield after


def heading(conversation: Rendered, remarks: list[str]) -> Iterator[str]:
    """Open a conversation's section: its name, and the remarks on it."""
    yield f'<section class="conversation" data-name="{html.escape(conversation.source)}">\n'
    yield f"<h2>{html.escape(conversation.source)}</h2>\n"
    if remarks:
        yield "<ul class=remarks>" + "".join(f"<li>{html.escape(remark)}</li>" for remark in remarks) + "</ul>\n"


def _section(conversation: Rendered, remarks: list[str], vocabulary: Vocabulary) -> Iterator[str]:
    examples = conversation.examples
    yield from heading(conversation, remarks)
    yield "<div class=tabs>"
    for index, example in enumerate(examples):
        pressed = "true" if index == len(examples) - 1 else "false"
        yield f'<button data-turn="{index}" aria-pressed="{pressed}">turn {example.turn + 1}</button>'
    yield "</div>\n"
    for index, example in enumerate(examples):
        hidden = "" if index == len(examples) - 1 else " hidden"
        yield f'<div class="turn" data-turn="{index}"{hidden}>{_caption(example)}\n'
        yield f"<pre>{tokens(example.ids, example.weights, example.channels, vocabulary)}</pre></div>\n"
    yield "</section>\n"


def _caption(example: Example) -> str:
    length, trained = len(example), example.trained_tokens
    dropped = f", {example.dropped_turns} old turns left out" if example.dropped_turns else ""
    return f"<p>{length:,} tokens, {trained:,} trained ({trained / length:.0%}){dropped}</p>"


def tokens(ids: Sequence[int], weights: Sequence[float], channels: Sequence[str], vocabulary: Vocabulary) -> str:
    """Mark up tokens, a block per message."""
    parts: list[str] = []
    first = next((i for i, weight in enumerate(weights) if weight > 0), -1)
    for start, stop, text in pieces(ids, vocabulary):
        if ids[start] == START or not parts:
            parts.append(("</div>" if parts else "") + '<div class="m">')
        control = STARTOFTEXT <= ids[start] < VOCABULARY_SIZE
        classes = f"{channels[start]}{' on' * (weights[start] > 0)}{' ctl' * control}"
        weight = f' data-w="{weights[start]:g}"' if weights[start] not in (0, 1) else ""
        weight += f' style="--w:{min(1.0, max(0.25, weights[start])):.2g}"' if weight else ""
        weight += " data-first" if start <= first < stop else ""
        shown = html.escape(text).replace("\n", "⏎\n")
        parts.append(f'<i class="{classes}" data-i="{ids[start:stop]}"{weight}>{shown}</i>')
    return "".join(parts) + ("</div>" if parts else "")
