"""Tests of public names: each has one definition in the whole package, so a search finds one owner."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import ossia

SOURCE = Path(ossia.__file__).parent

TWINS = "the same function for several devices, chosen in kernels/dispatch.py"
ALLOWED: dict[str, str] = dict.fromkeys(
    (
        *("dequantise", "dequantise_to_scratch", "product", "gate", "gate_backward", "narrow", "outer"),
        *("dense_forward", "dense_backward", "varlen_forward", "varlen_backward", "paths_forward", "paths_backward"),
        "tokens_per_chunk",
    ),
    TWINS,
) | {
    "serves": "the question that kernels/dispatch.py asks every backend",
    "train": "the workflow around the supervised objective, under the name of the stage",
    "fetch": "the workflow around the download, under the name of the command",
    "FORMATS": "what data/formats collects from each of its modules",
}
"""For each public name that several modules may define, the reason."""


def public_names(tree: ast.Module) -> Iterator[str]:
    """Yield the names that a module defines at its top level, without the commands of the command line."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # A command has the same name as its stage's folder and function.
            if not any(ast.unparse(decorator).startswith("app.command") for decorator in node.decorator_list):
                yield node.name
        elif isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def defined_twice(source: Path) -> dict[str, list[str]]:
    """Return the public names that several modules define, each with these modules."""
    owners: dict[str, list[str]] = defaultdict(list)
    for file in sorted(source.rglob("*.py")):
        place = file.relative_to(source).as_posix()
        names = set(public_names(ast.parse(file.read_text(encoding="utf-8"))))
        if place.startswith("cli/"):
            names.discard("app")  # every command's module defines it
        for name in names:
            if not name.startswith("_"):
                owners[name].append(place)
    return {name: places for name, places in owners.items() if len(places) > 1}


def test_no_public_name_is_defined_twice() -> None:
    unexpected = {name: places for name, places in defined_twice(SOURCE).items() if name not in ALLOWED}
    assert not unexpected, "rename one of each, or add it to ALLOWED with a reason"


def test_no_exception_is_out_of_date() -> None:
    assert ALLOWED.keys() <= defined_twice(SOURCE).keys()


def test_every_way_of_defining_a_name_is_seen(tmp_path: Path) -> None:
    lines = "def f(): ...\nclass C: ...\nA = 1\nB: int = 2\n_hidden = 3\n"
    (tmp_path / "one.py").write_text(lines)
    (tmp_path / "two.py").write_text(lines + "@app.command()\ndef train(): ...\n")
    (tmp_path / "train.py").write_text("def train(): ...\n")
    assert defined_twice(tmp_path).keys() == {"f", "C", "A", "B"}
