"""Tests of the helpers: all are in `support` and in its list, and no test imports another test."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import support

TESTS = Path(__file__).parent


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (alias.name for alias in node.names)


def test_no_test_imports_another_one() -> None:
    files = sorted(TESTS.rglob("*.py"))
    assert len(files) > 90
    for file in files:
        names = [part for name in imported(ast.parse(file.read_text(encoding="utf-8"))) for part in name.split(".")]
        assert not [name for name in names if name.startswith("test_") or name == "conftest"], file


def test_the_list_of_helpers_is_complete() -> None:
    lines = [line.split() for line in (support.__doc__ or "").splitlines() if line.startswith("    ")]
    modules = sorted(path.stem for path in (TESTS / "support").glob("*.py") if path.stem != "__init__")
    assert [words[0] for words in lines] == modules
    assert all(len(words) > 3 for words in lines)
