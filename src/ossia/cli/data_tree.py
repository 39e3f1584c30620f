"""`ossia data show --tree`: the prefix trees of conversations in the terminal, as JSON lines, as a page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.style import Style
from rich.text import Text

from ossia.cli import output
from ossia.data.branches import Branch, Forest, Stretch, forest, stretches, whose
from ossia.harmony.preview import CHANNEL_COLOURS

if TYPE_CHECKING:
    from ossia.data.compile import Compiling
    from ossia.harmony.tokenizer.vocabulary import Vocabulary

TEXT = 56
"""Characters of a message that are shown."""
_GUIDES = {True: ("● ", "│ ", "├─"), False: ("o ", "| ", "|-")}
"""Node, trunk, branch; with Unicode and without."""


def print_trees(found: Iterable[Compiling], vocabulary: Vocabulary) -> None:
    """Draw the tree of every conversation: what most examples go on with stands below a node, the rest branches off."""
    console = output.out()
    for number, done in enumerate(found):
        assert done.rendered is not None
        for problem in done.problems:
            output.err().print(str(problem), markup=False)
        examples = done.rendered.examples
        grown = forest(examples)
        if number:
            console.print()
        console.print(f"{done.rendered.source} {grown}", markup=False, style="bold")
        drawing = _Drawing(vocabulary, len(examples), console.is_terminal, console.encoding.startswith("utf"))
        for line in drawing.lines(grown.roots):
            console.print(line)


class _Drawing:
    def __init__(self, vocabulary: Vocabulary, total: int, colour: bool, unicode: bool) -> None:
        self.vocabulary, self.total, self.colour = vocabulary, total, colour
        self.node, self.trunk, self.branch = _GUIDES[unicode]

    def lines(self, roots: Sequence[Branch]) -> Iterator[Text]:
        """Without recursion, because a conversation may have a thousand turns."""
        waiting = [(root, "", "") for root in reversed(roots)]
        while waiting:
            branch, guide, indent = waiting.pop()
            yield Text(indent + guide).append(self.node, "bold").append(self._label(branch), "bold")
            inner = indent + (self.trunk if guide else "")
            below = inner + (self.trunk if branch.children else "  ")
            listed = list(stretches(branch, self.vocabulary))
            width = max(12, *(len(stretch.name) for stretch in listed))
            for stretch in listed:
                yield self._stretch(branch, stretch, below, width)
            if branch.children:
                waiting.append((branch.children[-1], "", inner))
            waiting += [(child, self.branch, inner) for child in reversed(branch.children[:-1])]

    def _label(self, branch: Branch) -> str:
        trained = branch.trained_tokens
        said = f", {trained:,} trained" if trained else ""
        return f"{len(branch.ids):,} tokens{said}: {whose(branch, self.total)}"

    def _stretch(self, branch: Branch, stretch: Stretch, indent: str, width: int) -> Text:
        weights = branch.weights[stretch.start : stretch.stop]
        trained = sum(weight > 0 for weight in weights)
        style = Style(color=CHANNEL_COLOURS.get(stretch.channel), dim=not trained) if self.colour else None
        line = Text(f"{indent}  ").append(f"{stretch.name:<{width}}", style)
        line.append(f"{len(weights):>7,}").append(f"{f'{trained:,} trained' if trained else '':>15}  ")
        text = stretch.text if len(stretch.text) <= TEXT else stretch.text[: TEXT - 1] + "…"
        shown = "…" * (stretch.goes_on and bool(text)) + text
        if trained and not self.colour and shown:
            shown = f"«{shown}»"
        if self.colour:
            line.append(
                shown, Style(color=CHANNEL_COLOURS.get(stretch.channel), bold=bool(trained), underline=bool(trained))
            )
        else:
            line.append(shown)
        line.rstrip()
        return line


def print_tree_lines(found: Iterable[Compiling]) -> None:
    """Print one JSON object per conversation."""
    for done in found:
        assert done.rendered is not None
        shown = tree_as_json(forest(done.rendered.examples), done.row.file, done.row.line, done.format)
        print(json.dumps(shown, ensure_ascii=False))


def tree_as_json(grown: Forest, file: str, row: int, format: str) -> dict[str, Any]:
    """A conversation's trees for other programs. Rows and turns count from 1, parents from 0; -1 is no parent."""
    return {
        "file": file,
        "row": row,
        "format": format,
        "examples": sum(len(root.examples) for root in grown.roots),
        "tokens": grown.unshared,
        "tree_tokens": grown.tokens,
        "nodes": [
            {
                "parent": branch.parent,
                "position": branch.position,
                "turns": [example.turn + 1 for example in branch.examples],
                "input_ids": branch.ids,
                "channel": branch.channels,
                "weight": branch.weights,
            }
            for branch in grown.branches
        ],
    }
