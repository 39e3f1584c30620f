"""Tests of the layers: the allowed imports between parts, and the modules that importing the package may load."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ossia

SOURCE = Path(ossia.__file__).parent
GROUND = {"errors", "config", "events", "runs", "hardware", "files", "recipes"}
STAGES = {"data", "plan", "train", "evaluate", "export"}
LAYERS = [
    GROUND,
    {"harmony"},
    {"sequences"},
    {"kernels"},
    {"checkpoint", "adapters"},
    {"model"},
    {"generate"},
    STAGES,
    {"workflows"},
    {"serve", "studio", "cli", "__main__", "ossia"},
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
TOP = len(LAYERS) - 1

HEAVY = {"torch", "transformers", "peft", "accelerate", "huggingface_hub", "tokenizers", "numpy"}


def part_of(module: str) -> str:
    """Return the part of a module: `adapters` for `ossia.adapters.apply`, and `ossia` for the package itself."""
    names = module.split(".")
    return names[1] if len(names) > 1 else names[0]


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Yield every import of a part of Ossia in a file as (line, part). Imports inside functions are included."""
    package = ["ossia", *file.relative_to(SOURCE).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "ossia" else [module]
        else:
            continue
        yield from ((node.lineno, part_of(name)) for name in names if name.split(".")[0] == "ossia")


def is_allowed(importer: str, imported: str) -> bool:
    """Return whether a part may import another: itself, a lower one, or one of its own level if it is not a stage."""
    if importer == imported or LEVEL[imported] < LEVEL[importer]:
        return True
    return LEVEL[imported] == LEVEL[importer] and importer not in STAGES


def violations() -> list[str]:
    found = []
    for file in sorted(SOURCE.rglob("*.py")):
        place = file.relative_to(SOURCE)
        importer = place.parts[0].removesuffix(".py")
        importer = "ossia" if importer == "__init__" else importer
        for line, imported in imports(file):
            # A name of the package itself, such as its `load`, is not a part.
            if imported in LEVEL and not is_allowed(importer, imported):
                found.append(f"{place}:{line} {importer} imports {imported}")
    return found


def test_every_part_has_a_layer() -> None:
    parts = {path.name.removesuffix(".py") for path in SOURCE.iterdir() if path.suffix == ".py" or path.is_dir()}
    unknown = parts - set(LEVEL) - {"__init__", "__pycache__"}
    assert not unknown, "add them to LAYERS"


def test_nobody_imports_upwards_or_sideways() -> None:
    assert not violations()


def test_the_rule_sees_what_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check finds each way of writing a forbidden import."""
    lines = [
        "from ossia.train import steps",
        "import ossia.cli.app",
        "from ossia import studio",
        "from ..export import x",
    ]
    (tmp_path / "data").mkdir()
    for number, line in enumerate(lines):
        (tmp_path / "data" / f"m{number}.py").write_text(f"def f():\n    {line}\n")
    (tmp_path / "data" / "good.py").write_text("from ossia.model import lora\nfrom . import other\nimport json\n")
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    assert [found.split(" ", 1)[1] for found in violations()] == [
        "data imports train",
        "data imports cli",
        "data imports studio",
        "data imports export",
    ]


CLI_MAY_IMPORT = GROUND | {"cli", "workflows"}
CLI_LIBRARIES = {"typer", "rich", "click"} | set(sys.stdlib_module_names)


def cli_violations(source: Path) -> list[str]:
    """Return the forbidden imports in modules of the command line, those inside functions included.

    Allowed are workflows, the command line, the ground floor, some libraries, and any import for type checkers.
    """
    found = []
    for file in sorted((source / "cli").glob("*.py")):
        for node in _without_type_checking(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = "ossia.cli" if node.level == 1 else "ossia" if node.level else ""
                module = ".".join(filter(None, [base, node.module]))
                names = [f"{module}.{alias.name}" for alias in node.names] if module == "ossia" else [module]
            else:
                continue
            for name in names:
                top = name.split(".")[0]
                fine = part_of(name) in CLI_MAY_IMPORT if top == "ossia" else top in CLI_LIBRARIES
                if not fine:
                    found.append(f"{file.name}:{node.lineno} {name}")
    return found


def _without_type_checking(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield node
            yield from _without_type_checking(node)


def test_the_command_line_imports_workflows_and_the_ground_floor_only() -> None:
    assert not cli_violations(SOURCE)


def test_an_import_of_the_command_line_past_the_workflows_is_seen(tmp_path: Path) -> None:
    (tmp_path / "cli").mkdir()
    lines = [
        "from ossia.train import steps",
        "def f():\n    import torch, json",
        "from ossia import runs, model",
        "if TYPE_CHECKING:\n    import torch",
        "from . import output\nfrom ossia.workflows.train import train\nimport typer",
        "import ossia.generate.subject",
    ]
    for number, line in enumerate(lines):
        (tmp_path / "cli" / f"m{number}.py").write_text(line + "\n")
    assert cli_violations(tmp_path) == [
        "m0.py:1 ossia.train",
        "m1.py:2 torch",
        "m2.py:1 ossia.model",
        "m5.py:1 ossia.generate.subject",
    ]


def module_imports() -> dict[str, set[str]]:
    """Return for every module of the package the modules of the package that importing it imports."""
    files = {file.relative_to(SOURCE).with_suffix(""): file for file in SOURCE.rglob("*.py")}
    names = {".".join(["ossia", *place.parts]): file for place, file in files.items()}
    names = {name.removesuffix(".__init__"): file for name, file in names.items()}
    graph: dict[str, set[str]] = {}
    for name, file in names.items():
        graph[name] = set()
        for node in _run_at_import(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names} & names.keys()
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[name] |= {inner if inner in names else node.module for inner in found} & names.keys()
        graph[name].discard(name)
    return graph


def _run_at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that run when a module is imported, without functions and without code for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _run_at_import(node)


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Return the modules of a circle of imports, with the first one again at the end, or an empty list."""
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle(module_imports()) == []


def test_a_circle_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "a.py").write_text("from ossia import b\n")
    (tmp_path / "b.py").write_text("if True:\n    import ossia.a\n")
    (tmp_path / "c.py").write_text("def f():\n    import ossia.c\n    import ossia.a\n")
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    graph = module_imports()
    assert graph["ossia.a"] == {"ossia.b"} and graph["ossia.b"] == {"ossia.a"} and graph["ossia.c"] == set()
    assert set(circle(graph)) == {"ossia.a", "ossia.b"}


def loaded_after(statement: str) -> set[str]:
    """Return the names of top-level modules that a new interpreter has loaded after a statement."""
    code = f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split()[-10_000:])


@pytest.mark.parametrize(
    "statement",
    [
        "import ossia",
        "import ossia.cli.app",
        "import ossia.harmony, ossia.data, ossia.plan",
        "import ossia.workflows.train, ossia.workflows.export, ossia.workflows.models, ossia.workflows.evaluate",
        "import ossia; ossia.train, ossia.evaluate, ossia.export, ossia.fetch, ossia.chat",
        "import ossia.config, ossia.errors, ossia.events, ossia.hardware, ossia.recipes, ossia.runs",
    ],
)
def test_importing_loads_nothing_heavy(statement: str) -> None:
    allowed = {"tokenizers", "huggingface_hub"} if "harmony" in statement else set()
    assert not loaded_after(statement) & (HEAVY - allowed)


def test_importing_ossia_loads_no_pydantic() -> None:
    assert not loaded_after("import ossia") & {"pydantic", "yaml", "typer", "rich"}


def test_help_loads_nothing_heavy() -> None:
    lines = [
        "sys.argv = ['ossia', '--help']",
        "try:",
        " import ossia.__main__ as m; m.main()",
        "except SystemExit: pass",
    ]
    loaded = loaded_after("\n".join(lines))
    assert "typer" in loaded
    assert not loaded & (HEAVY | {"pydantic", "rich", "yaml"})


def test_help_of_every_command_loads_nothing_heavy() -> None:
    modules = sorted(f"ossia.cli.{path.stem}" for path in (SOURCE / "cli").glob("*_.py"))
    assert len(modules) > 5
    assert not loaded_after(f"import {', '.join(modules)}") & HEAVY
