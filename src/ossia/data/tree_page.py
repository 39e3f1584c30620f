"""The prefix trees of conversations as one HTML file that needs nothing else, in the frame of `page`.

Every node folds. It holds the tokens that stand there once, however many examples have them; the trained ones have
their ground as on the page of examples. What most examples go on with stands below a node, the rest is set in.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

from ossia.data.branches import Branch, Forest, forest, whose
from ossia.data.page import framed, heading, tokens
from ossia.data.rendered import Rendered
from ossia.harmony.tokenizer.vocabulary import Vocabulary
from ossia.sequences.sharing import Saving


def tree_page(title: str, conversations: Sequence[tuple[Rendered, list[str]]], vocabulary: Vocabulary) -> Iterator[str]:
    """Yield the text of the page in pieces. A link to `#3` opens the fourth conversation.

    Args:
        conversations: each with remarks to be shown above it, such as its problems.
    """
    grown = [forest(made.examples) for made, _ in conversations]
    total = Saving(sum(one.unshared for one in grown), sum(one.tokens for one in grown))
    sections = (
        _section(made, remarks, one, vocabulary) for (made, remarks), one in zip(conversations, grown, strict=True)
    )
    yield from framed(title, f"all on this page: {total}", sections)


def _section(conversation: Rendered, remarks: list[str], grown: Forest, vocabulary: Vocabulary) -> Iterator[str]:
    yield from heading(conversation, remarks)
    yield f"<p class=saving>{html.escape(str(grown))} <button class=fold>fold all, unfold all</button></p>\n"
    total = len(conversation.examples)
    waiting: list[Branch | str] = list(reversed(grown.roots))
    while waiting:  # without recursion, because a conversation may have a thousand turns
        item = waiting.pop()
        if isinstance(item, str):
            yield item
            continue
        said = f"{len(item.ids):,} tokens, {item.trained_tokens:,} trained"
        yield f"<details open><summary>{said} <small>{html.escape(whose(item, total))}</small></summary>\n"
        yield f"<pre>{tokens(item.ids, item.weights, item.channels, vocabulary)}</pre>\n"
        waiting.append("</details>\n")
        waiting += reversed(item.children)
    yield "</section>\n"
