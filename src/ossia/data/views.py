"""Training examples and prefix trees as JSON, for other programs. Rows and turns count from 1."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ossia.data.branches import forest
from ossia.data.compile import Compiling
from ossia.data.rendered import Example


def examples_as_json(done: Compiling) -> Iterator[dict[str, Any]]:
    """Yield one JSON object per training example of a usable row. docs/data.md lists the keys."""
    assert done.rendered is not None
    yield from (_example(example, done) for example in done.rendered.examples)


def _example(example: Example, done: Compiling) -> dict[str, Any]:
    """Return one example. It has the key `weight` if a weight is neither 0 nor 1."""
    weights = example.weights
    shown: dict[str, Any] = {
        "file": done.row.file,
        "row": done.row.line,
        "turn": example.turn + 1,
        "format": done.format,
        "input_ids": example.ids,
        "trained": [int(weight > 0) for weight in weights],
        "channel": example.channels,
    }
    if any(weight not in (0, 1) for weight in weights):
        shown["weight"] = weights
    if example.dropped_turns:
        shown["dropped_turns"] = example.dropped_turns
    return shown


def tree_as_json(done: Compiling) -> dict[str, Any]:
    """Return the prefix trees of a usable row. Parents are indices of `nodes` from 0, or -1 for a root."""
    assert done.rendered is not None
    grown = forest(done.rendered.examples)
    return {
        "file": done.row.file,
        "row": done.row.line,
        "format": done.format,
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
