"""The reference of all settings in Markdown, made from the schema by `python -m ossia.recipes.document`.

Its output is docs/config.md.
"""

from __future__ import annotations

import json
from typing import Any

from ossia import recipes

HEAD = """# Settings of a recipe

<!-- Made from src/ossia/config.py by `python -m ossia.recipes.document > docs/config.md`. Do not edit. -->

A recipe is a YAML file. A setting that is not in the file has the default below. On the command
line, `--set section.key=value` has precedence over the file. An unknown key is an error.
`ossia recipes ls` lists the recipes that come with Ossia. `ossia recipes schema` prints the JSON
schema.
"""


def document() -> str:
    """Return the reference as a Markdown text: a section for each section of a recipe, with a table of its settings."""
    schema = recipes.recipe_schema()
    parts = [HEAD]
    top = {name: node for name, node in schema["properties"].items() if "$ref" not in node}
    parts.append(_table("Top level", "", top))
    for name, node in schema["properties"].items():
        if "$ref" in node:
            section = schema["$defs"][_named(node)]
            parts.append(_table(f"`{name}`", section.get("description", ""), section["properties"]))
            for key, inner in section["properties"].items():
                named = [option for option in inner.get("items", {}).get("anyOf", []) if "$ref" in option]
                if key == "train" and named:
                    source = schema["$defs"][_named(named[0])]
                    title = f"An entry of `{name}.train` and `{name}.validation`"
                    parts.append(_table(title, source.get("description", ""), source["properties"]))
    return "\n".join(parts)


def _named(node: dict[str, Any]) -> str:
    return str(node["$ref"]).rpartition("/")[2]


def _table(title: str, about: str, properties: dict[str, Any]) -> str:
    rows = [f"## {title}", ""]
    rows += [about, ""] if about else []
    rows += ["| key | kind | default | meaning |", "|---|---|---|---|"]
    for name, node in properties.items():
        default = node.get("default")
        shown = "not set" if default is None else f"`{json.dumps(default)}`"
        cells = (f"`{name}`", kind(node), shown, node.get("description", ""))
        rows.append("| " + " | ".join(cell.replace("\n", " ").replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def kind(node: dict[str, Any]) -> str:
    """Return the values that a JSON schema node accepts, in words: the type or choices, and the bounds."""
    if "anyOf" in node:
        return ", or ".join(kind(option) for option in node["anyOf"] if option.get("type") != "null")
    if "enum" in node or "const" in node:
        return ", ".join(str(choice) for choice in node.get("enum", [node.get("const")]))
    if "$ref" in node:
        return "an object (below)"
    if node["type"] == "object":
        return f"mapping of names to {kind(node.get('additionalProperties', {'type': 'string'}))}"
    if node["type"] == "array":
        return f"list of: {kind(node['items'])}"
    words = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}[node["type"]]
    bounds = {"minimum": "from {}", "exclusiveMinimum": "above {}", "maximum": "to {}", "exclusiveMaximum": "below {}"}
    return " ".join([words, *(text.format(node[key]) for key, text in bounds.items() if key in node)])


if __name__ == "__main__":
    print(document(), end="")
