"""The rules of prose that a machine can judge: length of sentences, width of pages, complete lists of modules."""

import re
from pathlib import Path

import pytest

from support import prose

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "ossia"
CODE = [PACKAGE, ROOT / "tests", ROOT / "benchmarks", ROOT / "examples"]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")])
GENERATED = ROOT / "docs" / "config.md"
WIDTH = 100
FOLDERS = sorted(path.parent for path in PACKAGE.rglob("__init__.py"))


MODEL_FACING = {
    PACKAGE / "harmony" / "builtin.py",
    PACKAGE / "data" / "formats" / "hermes.py",
    ROOT / "tests" / "data" / "test_formats_habits.py",
}
"""Files with texts that models were trained on, or that they are recognised by. These stay as they are."""


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("place", [*CODE, *PAGES], ids=named)
def test_sentences_have_at_most_25_words(place: Path) -> None:
    found = (one for one in prose.of_tree(place) if one.path not in MODEL_FACING)
    long = [f"{one.path}:{one.line}: {one.text}" for one in found if one.words > prose.LONGEST]
    assert not long, "\n".join(long)


@pytest.mark.parametrize("page", [page for page in PAGES if page != GENERATED], ids=named)
def test_paragraphs_of_markdown_are_wrapped(page: Path) -> None:
    wide = []
    fenced = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fenced ^= line.startswith("```")
        prose_line = not fenced and not line.startswith(("|", "    ")) and "](" not in line
        if prose_line and len(line) > WIDTH:
            wide.append(f"{page}:{number}: {len(line)} columns")
    assert not wide, "\n".join(wide)


@pytest.mark.parametrize("folder", FOLDERS, ids=named)
def test_a_folder_lists_its_modules(folder: Path) -> None:
    """Each in one line: four spaces, the name, two or more spaces, a description; a folder's name ends in a slash."""
    there = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    there |= {path.parent.name + "/" for path in folder.glob("*/__init__.py")}
    docstring = re.match(r'"""(.*?)"""', (folder / "__init__.py").read_text(), re.DOTALL)
    assert docstring, "no docstring"
    listed = re.findall(r"^    (\w+/?)  +\S", docstring[1], re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(listed) == there


def test_the_judge_of_sentences_sees_docstrings_comments_messages_and_pages(tmp_path: Path) -> None:
    long = "One " + "more " * 24 + "word."
    short = "One " + "more " * 23 + "word."
    (tmp_path / "code.py").write_text(
        f'"""{short}\n\n{long}\n\n    code {long}\n\nArgs:\n    name: {long}\n    other: {short}\n"""\n'
        f'# {short}\n# {long}\nprint("{short} {long}", f"{{1 + 1}} {long}")\n'
    )
    (tmp_path / "page.md").write_text(
        f"# Title\n\n{short}\n{long}\n\n* {short}\n* {long}\n\n    {long}\n\n| {short} | {long} |\n\n```\n{long}\n```\n"
    )
    found = [(one.path.name, one.words) for one in prose.of_tree(tmp_path)]
    assert sorted(words for name, words in found if name == "code.py" and words > 25) == [26, 26, 26, 26, 27]
    assert sorted(words for name, words in found if name == "page.md" and words > 25) == [26, 26, 26]
