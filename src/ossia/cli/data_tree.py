"""The output of `ossia data show --tree`: prefix trees of conversations in the terminal, or as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.style import Style
from rich.text import Text

from ossia.cli import output
from ossia.workflows import data

if TYPE_CHECKING:
    from ossia.workflows.data import Branch, OpenData, Stretch, Vocabulary

TEXT = 56
"""Largest number of characters of a message that are shown."""
_GUIDES = {True: ("● ", "│ ", "├─"), False: ("o ", "| ", "|-")}
"""Signs of node, trunk and branch, with Unicode (True) or without."""


def print_trees(opened: OpenData) -> None:
    """Draw the tree of every conversation.

    The continuation of most examples is drawn below its node. The other continuations are branches.
    """
    console = output.out()
    for number, done in enumerate(opened.rows):
        assert done.rendered is not None
        for problem in done.problems:
            output.err().print(str(problem), markup=False)
        examples = done.rendered.examples
        grown = data.forest(examples)
        if number:
            console.print()
        console.print(f"{done.rendered.source} {grown}", markup=False, style="bold")
        drawing = _Drawing(opened.vocabulary, len(examples), console.is_terminal, console.encoding.startswith("utf"))
        for line in drawing.lines(grown.roots):
            console.print(line)


class _Drawing:
    def __init__(self, vocabulary: Vocabulary, total: int, colour: bool, unicode: bool) -> None:
        self.vocabulary, self.total, self.colour = vocabulary, total, colour
        self.node, self.trunk, self.branch = _GUIDES[unicode]

    def lines(self, roots: Sequence[Branch]) -> Iterator[Text]:
        """Yield the lines of trees. There is no recursion, because a conversation may have a thousand turns."""
        waiting = [(root, "", "") for root in reversed(roots)]
        while waiting:
            branch, guide, indent = waiting.pop()
            yield Text(indent + guide).append(self.node, "bold").append(self._label(branch), "bold")
            inner = indent + (self.trunk if guide else "")
            below = inner + (self.trunk if branch.children else "  ")
            listed = list(data.stretches(branch, self.vocabulary))
            width = max(12, *(len(stretch.name) for stretch in listed))
            for stretch in listed:
                yield self._stretch(branch, stretch, below, width)
            if branch.children:
                waiting.append((branch.children[-1], "", inner))
            waiting += [(child, self.branch, inner) for child in reversed(branch.children[:-1])]

    def _label(self, branch: Branch) -> str:
        trained = branch.trained_tokens
        said = f", {trained:,} trained" if trained else ""
        return f"{len(branch.ids):,} tokens{said}: {data.whose(branch, self.total)}"

    def _stretch(self, branch: Branch, stretch: Stretch, indent: str, width: int) -> Text:
        weights = branch.weights[stretch.start : stretch.stop]
        trained = sum(weight > 0 for weight in weights)
        style = Style(color=data.CHANNEL_COLOURS.get(stretch.channel), dim=not trained) if self.colour else None
        line = Text(f"{indent}  ").append(f"{stretch.name:<{width}}", style)
        line.append(f"{len(weights):>7,}").append(f"{f'{trained:,} trained' if trained else '':>15}  ")
        text = stretch.text if len(stretch.text) <= TEXT else stretch.text[: TEXT - 1] + "…"
        shown = "…" * (stretch.goes_on and bool(text)) + text
        if trained and not self.colour and shown:
            shown = f"«{shown}»"
        if self.colour:
            line.append(
                shown,
                Style(color=data.CHANNEL_COLOURS.get(stretch.channel), bold=bool(trained), underline=bool(trained)),
            )
        else:
            line.append(shown)
        line.rstrip()
        return line


def print_tree_lines(opened: OpenData) -> None:
    """Print one JSON object per conversation."""
    for done in opened.rows:
        print(json.dumps(data.tree_as_json(done), ensure_ascii=False))
