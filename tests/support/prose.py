"""The sentences of a tree's prose: docstrings, comments, messages and Markdown, each with its place.

A sentence ends with a full stop, an exclamation or question mark before a capital, a digit or a code span. An item of a
list, a cell of a table and an entry of a docstring's section (`Args:`) are sentences of their own. Code is not prose.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LONGEST = 25  # words: the house rule

_ABBREVIATION = re.compile(r"\b(e\.g|i\.e|vs|etc|cf)\.")
_END = re.compile(r"(?<=[.!?])[\"')*]*\s+(?=[A-Z`\"'(\[*]|\d)")
_ITEM = re.compile(r"([-*+]|\d+[.)])\s+|#+\s")
_ENTRY = re.compile(r"[\w`*/, .-]{1,40}: ")
_SECTION = re.compile(r"(Args|Raises|Returns|Yields|Shapes?|Attributes):$")
_SPAN = re.compile(r"`[^`]*`|\*\*")
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_SHORTEST_MESSAGE = 8  # words: what has fewer is a name, a key or a format


class Sentence(NamedTuple):
    path: Path
    line: int  # of the paragraph or docstring it stands in
    text: str

    @property
    def words(self) -> int:
        """The number of its words; a code span is one."""
        plain = _LINK.sub(r"\1", _SPAN.sub(lambda span: " code " if "`" in span[0] else "", self.text))
        return sum(1 for word in plain.split() if re.search(r"[^\W_]", word))


def of_tree(root: Path) -> Iterator[Sentence]:
    """Every sentence of the Python and Markdown files under a folder, or of one file."""
    files = sorted(path for path in root.rglob("*") if path.suffix in (".py", ".md")) if root.is_dir() else [root]
    for path in files:
        text = path.read_text()
        for line, paragraph in _markdown(text) if path.suffix == ".md" else _python(text):
            for sentence in _sentences(paragraph):
                yield Sentence(path, line, sentence)


def _sentences(paragraph: str) -> list[str]:
    plain = re.sub(r"\s+", " ", _ABBREVIATION.sub(r"\1", paragraph)).strip()
    return [part for part in _END.split(plain) if part]


def _markdown(text: str) -> Iterator[tuple[int, str]]:
    fenced = False
    block: list[str] = []
    start = 0
    for number, line in enumerate([*text.splitlines(), ""], 1):
        bare = line.strip()
        if bare.startswith("```"):
            fenced, bare = not fenced, ""
        elif fenced or (line.startswith("    ") and not block):
            bare = ""
        if block and (not bare or _ITEM.match(bare) or bare.startswith("|")):
            yield start, " ".join(block)
            block = []
        if bare.startswith("|"):
            yield from ((number, cell) for cell in bare.strip("|").split("|"))
        elif bare and not bare.startswith("#"):
            start = start if block else number
            block.append(_ITEM.sub("", bare, count=1) if _ITEM.match(bare) else bare)


def _python(text: str) -> Iterator[tuple[int, str]]:
    tree = ast.parse(text)
    documented: set[int] = set()
    for node in ast.walk(tree):
        for statement in node.body if isinstance(getattr(node, "body", None), list) else ():
            value = getattr(statement, "value", None)
            if isinstance(statement, ast.Expr) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                documented.add(id(value))
                yield from ((value.lineno, part) for part in _docstring(value.value))
    yield from _messages(tree, documented)
    yield from _comments(text)


def _docstring(text: str) -> Iterator[str]:
    """The paragraphs of a docstring, without its indented code and tables."""
    block: list[str] = []
    section = False
    # The first line says where the column of the docstring is; `cleandoc` would take a list alone for the column.
    first, _, rest = text.partition("\n")
    own = min((len(line) - len(line.lstrip()) for line in rest.splitlines()[-1:] if not line.strip()), default=0)
    lines = [first.strip(), *(line[own:] for line in rest.expandtabs().splitlines())]
    for line in [*lines, ""]:
        bare, indent = line.strip(), len(line) - len(line.lstrip())
        section = bool(_SECTION.match(bare)) or (section and (indent > 0 or not bare))
        if indent >= 4 and not section:
            bare = ""
        starts = _ENTRY if section and indent == 4 and _ENTRY.match(bare) else _ITEM
        if block and (not bare or starts.match(bare) or _SECTION.match(bare)):
            yield " ".join(block)
            block = []
        if bare and not _SECTION.match(bare):
            block.append(starts.sub("", bare, count=1) if starts.match(bare) else bare)


def _messages(tree: ast.AST, documented: set[int]) -> Iterator[tuple[int, str]]:
    """Literals of several words: what a person reads. A value put into one counts as one word."""
    inner: set[int] = set()
    for node in ast.walk(tree):  # from the outside to the inside: parts of an f-string are seen after it
        if isinstance(node, ast.JoinedStr):
            inner.update(id(value) for value in node.values)
            said = "".join(str(value.value) if isinstance(value, ast.Constant) else "`x`" for value in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented | inner:
            said = node.value
        else:
            continue
        if len(said.split()) >= _SHORTEST_MESSAGE and not said.startswith(("{", "<", "import ")):
            yield from ((node.lineno, paragraph) for paragraph in said.split("\n"))


def _comments(text: str) -> Iterator[tuple[int, str]]:
    block: list[str] = []
    start = last = column = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        row, at = token.start
        if block and (row, at) != (last + 1, column):
            yield start, " ".join(block)
            block = []
        start = start if block else row
        block.append(token.string.lstrip("#: "))
        last, column = row, at
    if block:
        yield start, " ".join(block)
