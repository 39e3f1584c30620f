"""Recipes: YAML files with the settings of `ossia.config`, and the code that reads and writes them.

    examples    lookup of the example data and the tiny base model
    document    the reference of all settings in Markdown

A recipe is given by its name, such as `tiny-demo` for a YAML file in this folder, or by a path. Overrides
`--set section.key=value` have precedence. Every error is reported with its file and line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ossia.config import RENAMED, DataSource, Recipe
from ossia.errors import UserError, did_you_mean

KeyPath = tuple[str, ...]

_MOST_VALUES = 100_000


def available() -> dict[str, Path]:
    """Return the recipes that are included in Ossia, as name -> file."""
    folder = Path(str(resources.files(__name__)))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def recipe_file(source: str) -> Path:
    """Return the file of a recipe given by name or by path.

    Raises:
        UserError: neither a file nor a recipe has this name, or it is a data file.
    """
    path = Path(source)
    if path.suffix in (".jsonl", ".json", ".csv", ".parquet"):
        do = f"name a recipe, and the data in it: ossia plan gpt-oss-20b-lora --set data.train={source}"
        raise UserError("these are data, not a recipe", where=source, do=do)
    if path.is_file():
        return path
    known = available()
    if source in known:
        return known[source]
    close = did_you_mean(source, known)
    raise UserError(
        f"there is no recipe file and no recipe called {source!r}",
        why=f"recipes that come with Ossia: {', '.join(known)}",
        do=f"{close}" if close else "ossia recipes ls",
    )


def load_recipe(source: str | Path | Recipe, overrides: Iterable[str] = ()) -> Recipe:
    """Return a recipe with overrides applied.

    Args:
        source: a file, the name of a recipe that is included in Ossia, or a recipe.
        overrides: settings of the form `section.key=value`.

    Raises:
        UserError: the file cannot be read, its YAML is invalid, a key is unknown, or a value is outside its bounds.
            The error has file and line.
    """
    if isinstance(source, Recipe):
        changes = list(overrides)
        return parse_recipe(dump(source), where=f"recipe {source.name}", overrides=changes) if changes else source
    path = recipe_file(str(source))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the recipe cannot be read ({error})", where=str(path)) from None
    return parse_recipe(text, where=str(path), overrides=overrides)


def parse_recipe(text: str, *, where: str, overrides: Iterable[str] = ()) -> Recipe:
    """Return the recipe in a YAML text with overrides applied.

    Args:
        text: the YAML text.
        where: the name of the text in errors, usually its path.
        overrides: settings of the form `section.key=value`.

    Raises:
        UserError: the YAML is invalid, a key is unknown, or a value is outside its bounds.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
        _check_size(node, where)
        places = _lines(node, where)
        values = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"not valid YAML ({getattr(error, 'problem', error)})", where=f"{where}{line}") from None
    except RecursionError:
        raise UserError("not a recipe (nested too deeply, or a value contains itself)", where=where) from None
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"not a recipe ({error})", where=where) from None
    values = {} if values is None else values
    if isinstance(values, dict):  # a section in which all lines are comments has the value None
        values = {key: {} if value is None and key in _SECTIONS else value for key, value in values.items()}
    if not isinstance(values, dict):
        raise UserError("a recipe is a mapping of sections (model, data, lora, train, eval)", where=where)
    origin = {key: f"{where}:{line}" for key, line in places.items()}
    for override in overrides:
        key = _apply(values, override)
        other = _OTHER_NAMES.get(key)
        if other in places:  # the file has the setting under its other name, and the override has precedence
            values[other[0]].pop(other[1], None)
            origin.pop(other, None)
        origin |= {
            key[:n]: f"--set {override}" for n in range(1, len(key) + 1) if n == len(key) or key[:n] not in origin
        }
    for old, new in _PRESENT_NAMES.items():
        if old in origin:
            origin.setdefault(new, origin[old])
    _reject_unknown(values, Recipe, (), origin, where)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise _readable(error, origin, where) from None


def copy(source: str, to: Path, *, force: bool = False) -> Path:
    """Copy a recipe's file with its comments to a file or into a folder, and return the new file.

    Raises:
        UserError: the recipe does not exist, the new file exists and `force` is False, or it cannot be written.
    """
    path = recipe_file(source)
    target = to / path.name if to.is_dir() else to
    if target.exists() and not force:
        raise UserError("the file exists already", where=str(target), do="--force replaces it")
    try:
        target.write_bytes(path.read_bytes())
    except OSError as error:
        raise UserError(f"the recipe cannot be written ({error.strerror})", where=str(target)) from None
    return target


def dump(recipe: Recipe) -> str:
    """Return the recipe as YAML with every setting, in the form that the run folder stores."""
    values = recipe.model_dump(mode="json")
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of recipes, for editors and other programs."""
    return Recipe.model_json_schema()


def recipe_fields(section: type[BaseModel] = Recipe, prefix: KeyPath = ()) -> Iterable[tuple[str, Any, str]]:
    """Yield (dotted key, default, documentation) of every setting, in the order of the schema."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from recipe_fields(field.annotation, (*prefix, name))
        else:
            yield ".".join((*prefix, name)), field.get_default(call_default_factory=True), field.description or ""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with two changes: 1e-5 is a number, and 2026-11-20 stays text, as settings require."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
)


class _Dumper(yaml.SafeDumper):
    """YAML with quotes around text with unusual line breaks. PyYAML cannot read back its own form of these."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers  # quotes text that reads as a number
_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style='"' if re.search("[\x85\u2028\u2029]", text) else None
    ),
)

_PRESENT_NAMES: dict[Any, KeyPath] = {tuple(old.split(".")): tuple(new.split(".")) for old, new in RENAMED.items()}
_OTHER_NAMES = _PRESENT_NAMES | {new: old for old, new in _PRESENT_NAMES.items()}
_SECTIONS = {name for name, field in Recipe.model_fields.items() if isinstance(field.default, BaseModel)}


def _check_size(node: yaml.Node | None, where: str) -> None:
    """Refuse a document whose aliases stand for more values than any recipe has.

    Raises:
        UserError: a few lines can stand for 10^20 values, each an alias of the line before.
    """
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            inner = node.value if isinstance(node.value, list) else []
            parts = [part for item in inner for part in (item if isinstance(item, tuple) else (item,))]
            sizes[id(node)] = 1 + sum(map(size, parts))
        return sizes[id(node)]

    if node is not None and size(node) > _MOST_VALUES:
        raise UserError(
            f"the recipe stands for more than {_MOST_VALUES:,} values",
            where=where,
            why="its aliases (*name) repeat each other",
            do="write the values out",
        )


def _lines(node: yaml.Node | None, where: str, prefix: KeyPath = ()) -> dict[KeyPath, int]:
    """Return key path -> line of the key, counted from 1, for each key of a YAML document.

    Raises:
        UserError: a key occurs twice. YAML would silently keep the last value.
    """
    places: dict[KeyPath, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here, line = (*prefix, str(key.value)), key.start_mark.line + 1
            if here in places:
                what = f"{'.'.join(here)} is set twice, first in line {places[here]}"
                raise UserError(what, where=f"{where}:{line}", do="remove one of them")
            places[here] = line
            places |= _lines(value, where, here)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            here = (*prefix, str(index))
            places |= {here: value.start_mark.line + 1, **_lines(value, where, here)}
    return places


def _apply(values: dict[str, Any], override: str) -> KeyPath:
    """Put one `section.key=value` into `values`, with the value read as YAML, and return the key path."""
    key, equals, text = override.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        raise UserError("an override has the form section.key=value", where=f"--set {override}")
    here: Any = values
    for part in path[:-1]:
        here = here.setdefault(part, {})
        if not isinstance(here, dict):
            raise UserError(f"{part} is a value, not a section", where=f"--set {override}")
    try:
        _check_size(yaml.compose(text, Loader=_Loader), f"--set {override}")
        here[path[-1]] = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"the value {text!r} is not valid YAML", where=f"--set {override}") from None
    return path


def _reject_unknown(
    values: Mapping[str, Any], section: type[BaseModel], prefix: KeyPath, origin: Mapping[KeyPath, str], where: str
) -> None:
    known = section.model_fields
    for key, value in values.items():
        path = (*prefix, str(key))
        if key not in known and path not in _PRESENT_NAMES:
            close = did_you_mean(str(key), known)
            elsewhere = [name for name, _, _ in recipe_fields() if name.split(".")[-1] == str(key)]
            remedy = close or (elsewhere[0] if elsewhere else None)
            raise UserError(
                f"{'.'.join(path)} is not a setting",
                where=origin.get(path, where),
                why=f"known here: {', '.join(known)}",
                do=f"did you mean {remedy}?" if remedy else "ossia recipes fields  lists every setting",
            )
        annotation = known[key].annotation if key in known else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel) and isinstance(value, Mapping):
            _reject_unknown(value, annotation, path, origin, where)


def _readable(error: ValidationError, origin: Mapping[KeyPath, str], where: str) -> UserError:
    """Return pydantic's most informative error as one sentence with its place."""
    # An unknown key is often the reason for a missing one, so it has precedence. "Not a string" comes last, because an
    # entry of a mixture may be an object.
    order = {"extra_forbidden": 0, "string_type": 2}
    first = min(error.errors(), key=lambda found: order.get(found["type"], 1))
    path = tuple(str(part) for part in first["loc"] if part not in ("str", "DataSource"))
    place = next((origin[path[:n]] for n in range(len(path), 0, -1) if path[:n] in origin), where)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "model_type":  # pydantic's message contains the name of the class
        message = "a section with settings of its own is expected here"
    if first["type"] == "extra_forbidden":  # inside a list, where `_reject_unknown` does not look
        close = did_you_mean(path[-1], DataSource.model_fields)
        return UserError(
            f"{'.'.join(path)} is not a setting",
            where=place,
            why=f"known here: {', '.join(DataSource.model_fields)}",
            do=f"did you mean {close}?" if close else None,
        )
    given = "" if not path or isinstance(first.get("input"), dict) else f" (given: {first['input']!r})"
    what = f"{'.'.join(path)}: {message[0].lower()}{message[1:]}{given}" if path else message
    return UserError(what, where=place)
