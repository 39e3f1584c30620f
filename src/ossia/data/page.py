"""Training examples or their prefix trees as one self-contained HTML file, for reviews and for sharing.

`page` has one tab per trained turn of a conversation. Every token is visible and coloured by its channel. Trained
tokens have a coloured background, and control tokens are bold. Pointing at a token shows its id.

`tree_page` has the nodes of a conversation's prefix tree. Each node folds. Its tokens are shown once, whatever the
number of examples that contain them. The child with the most examples is directly below its node, and the other
children are indented.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path

from ossia.data.branches import Branch, Forest, forest, whose
from ossia.data.compile import Compiling
from ossia.data.rendered import Example, Rendered
from ossia.errors import UserError
from ossia.files import write_atomically
from ossia.harmony.preview import pieces
from ossia.harmony.tokenizer.vocabulary import START, STARTOFTEXT, VOCABULARY_SIZE, Vocabulary
from ossia.sequences.sharing import Saving

MARK = '<meta name="generator" content="ossia data show">'
"""An element of every page. `write_page` replaces only files that contain it."""


def page(title: str, conversations: Iterable[tuple[Rendered, list[str]]], vocabulary: Vocabulary) -> Iterator[str]:
    """Yield the HTML of a page of examples in pieces. A link to `#3` opens the fourth conversation.

    Args:
        conversations: each with remarks that are shown above it, such as its problems.
    """
    yield from _framed(title, "", (_section(made, remarks, vocabulary) for made, remarks in conversations))


def tree_page(title: str, conversations: Sequence[tuple[Rendered, list[str]]], vocabulary: Vocabulary) -> Iterator[str]:
    """Yield the HTML of a page of prefix trees in pieces. A link to `#3` opens the fourth conversation.

    Args:
        conversations: each with remarks that are shown above it, such as its problems.
    """
    grown = [forest(made.examples) for made, _ in conversations]
    total = Saving(sum(one.unshared for one in grown), sum(one.tokens for one in grown))
    sections = (
        _tree_section(made, remarks, one, vocabulary) for (made, remarks), one in zip(conversations, grown, strict=True)
    )
    yield from _framed(title, f"all on this page: {total}", sections)


def write_page(
    path: Path, title: str, found: Iterable[Compiling], vocabulary: Vocabulary, *, trees: bool = False
) -> int:
    """Write the usable conversations to an HTML file, and return their number. An older page is replaced.

    Args:
        found: compiled rows. Rows that cannot be used are left out.
        trees: whether to write prefix trees in place of examples.

    Raises:
        UserError: the path is a file that is not such a page, or it cannot be written.
    """
    if path.is_file() and MARK not in path.read_bytes()[:1000].decode("utf-8", "replace"):
        raise UserError("the file exists already and is not a page of Ossia", where=str(path), do="choose another name")
    shown = [(done.rendered, list(map(str, done.problems))) for done in found if done.rendered is not None]
    try:
        write_atomically(path, "".join((tree_page if trees else page)(title, shown, vocabulary)))
    except OSError as error:
        raise UserError(f"the page cannot be written ({error.strerror})", where=str(path)) from error
    return len(shown)


def _framed(title: str, legend: str, sections: Iterable[Iterable[str]]) -> Iterator[str]:
    """Yield the page with its sections, one per conversation. `legend` is a text in its header."""
    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    before, after = template.split("<!--conversations-->")
    yield before.replace("<!--title-->", html.escape(title)).replace("<!--legend-->", html.escape(legend))
    for section in sections:
        yield from section
    yield after


def _heading(conversation: Rendered, remarks: list[str]) -> Iterator[str]:
    """Yield the beginning of a conversation's section: its name and the remarks on it."""
    yield f'<section class="conversation" data-name="{html.escape(conversation.source)}">\n'
    yield f"<h2>{html.escape(conversation.source)}</h2>\n"
    if remarks:
        yield "<ul class=remarks>" + "".join(f"<li>{html.escape(remark)}</li>" for remark in remarks) + "</ul>\n"


def _section(conversation: Rendered, remarks: list[str], vocabulary: Vocabulary) -> Iterator[str]:
    examples = conversation.examples
    yield from _heading(conversation, remarks)
    yield "<div class=tabs>"
    for index, example in enumerate(examples):
        pressed = "true" if index == len(examples) - 1 else "false"
        yield f'<button data-turn="{index}" aria-pressed="{pressed}">turn {example.turn + 1}</button>'
    yield "</div>\n"
    for index, example in enumerate(examples):
        hidden = "" if index == len(examples) - 1 else " hidden"
        yield f'<div class="turn" data-turn="{index}"{hidden}>{_caption(example)}\n'
        yield f"<pre>{_tokens(example.ids, example.weights, example.channels, vocabulary)}</pre></div>\n"
    yield "</section>\n"


def _tree_section(conversation: Rendered, remarks: list[str], grown: Forest, vocabulary: Vocabulary) -> Iterator[str]:
    yield from _heading(conversation, remarks)
    yield f"<p class=saving>{html.escape(str(grown))} <button class=fold>fold all, unfold all</button></p>\n"
    total = len(conversation.examples)
    waiting: list[Branch | str] = list(reversed(grown.roots))
    while waiting:  # without recursion, because a conversation can have a thousand turns
        item = waiting.pop()
        if isinstance(item, str):
            yield item
            continue
        said = f"{len(item.ids):,} tokens, {item.trained_tokens:,} trained"
        yield f"<details open><summary>{said} <small>{html.escape(whose(item, total))}</small></summary>\n"
        yield f"<pre>{_tokens(item.ids, item.weights, item.channels, vocabulary)}</pre>\n"
        waiting.append("</details>\n")
        waiting += reversed(item.children)
    yield "</section>\n"


def _caption(example: Example) -> str:
    length, trained = len(example), example.trained_tokens
    dropped = f", {example.dropped_turns} old turns left out" if example.dropped_turns else ""
    return f"<p>{length:,} tokens, {trained:,} trained ({trained / length:.0%}){dropped}</p>"


def _tokens(ids: Sequence[int], weights: Sequence[float], channels: Sequence[str], vocabulary: Vocabulary) -> str:
    """Return the HTML of tokens, with a block per message."""
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
