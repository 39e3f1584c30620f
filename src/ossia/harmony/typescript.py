"""Tool schemas in the notation of the prompt: JSON Schema as TypeScript types, as openai-harmony 0.0.8 writes them.

The model was trained on this exact notation, so its peculiarities are part of the format and kept. Comments of
properties are not re-indented. Only string enums are shown. `anyOf`, `$ref` and unknown types become `any`.
tests/harmony/test_render.py compares the tokens with those of openai-harmony on random schemas.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from ossia.harmony.conversation import ToolDescription, ToolNamespace

Schema = Mapping[str, Any]


def tools_section(namespaces: Iterable[ToolNamespace]) -> str:
    """Return the section "# Tools" of a system or developer message, with the namespaces sorted by name."""
    ordered = sorted(namespaces, key=lambda namespace: namespace.name)
    return "\n\n".join(["# Tools", *map(_namespace, ordered)])


def type_of(schema: object, indent: str = "") -> str:
    """Return the TypeScript type of a JSON Schema. `indent` precedes the lines of a multi-line type."""
    if not isinstance(schema, Mapping):
        return "any"
    if isinstance(schema.get("oneOf"), list):
        return "".join(f"\n{indent} | {_variant(variant, indent)}" for variant in schema["oneOf"])
    kind = schema.get("type")
    if isinstance(kind, list):
        names = ["number" if name == "integer" else name for name in kind if isinstance(name, str)]
        return " | ".join(names) or "any"
    if kind == "object":
        return _object(schema, indent)
    if kind == "array":
        return f"{type_of(schema['items'], indent)}[]" if "items" in schema else "Array<any>"
    if kind == "string":
        choices = schema["enum"] if _has_choices(schema) else []
        return " | ".join(f'"{choice}"' for choice in choices if isinstance(choice, str)) or "string"
    return {"number": "number", "integer": "number", "boolean": "boolean"}.get(str(kind), "any")


def _namespace(namespace: ToolNamespace) -> str:
    lines = [f"## {namespace.name}\n"]
    comment = "// " if namespace.tools else ""
    lines += [comment + line for line in lines_of(namespace.description or "")]
    if namespace.tools:
        lines.append(f"namespace {namespace.name} {{\n")
        lines += [line for tool in namespace.tools for line in _tool(tool)]
        lines.append(f"}} // namespace {namespace.name}")
    return "\n".join(lines)


def _tool(tool: ToolDescription) -> list[str]:
    argument = "" if tool.parameters is None else f"_: {type_of(tool.parameters)}"
    return [*(f"// {line}" for line in lines_of(tool.description)), f"type {tool.name} = ({argument}) => any;\n"]


def _object(schema: Schema, indent: str) -> str:
    description, properties, required = schema.get("description"), schema.get("properties"), schema.get("required")
    opening = f"{indent}// {description}\n{{\n" if isinstance(description, str) else "{\n"
    if not isinstance(properties, Mapping):
        return f"{opening}{indent}}}"
    needed = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
    body = [_property(name, value, name in needed, indent) for name, value in properties.items()]
    return f"{opening}{''.join(body)}{indent}}}"


def _property(name: str, value: object, required: bool, indent: str) -> str:
    schema: Schema = value if isinstance(value, Mapping) else {}
    label = name if required else f"{name}?"
    title, description, examples = schema.get("title"), schema.get("description"), schema.get("examples")
    text = f"{indent}// {title}\n{indent}//\n" if isinstance(title, str) else ""
    if isinstance(description, str) and "oneOf" not in schema:
        text += f"{indent}// {description}\n"
    if isinstance(examples, list) and examples:
        text += f"{indent}// Examples:\n"
        text += "".join(f'{indent}// - "{example}"\n' for example in examples if isinstance(example, str))
    if isinstance(schema.get("oneOf"), list):
        return text + _alternatives(label, schema, indent)
    default = "" if "oneOf" in schema else _default(schema)
    comment = f" // {default}" if default else ""
    return f"{text}{indent}{label}: {_nullable(schema, f'{indent}    ')},{comment}\n"


def _alternatives(label: str, schema: Schema, indent: str) -> str:
    """Return the text of a property with `oneOf`: comments above the name, then one line per variant."""
    variants, description = schema["oneOf"], schema.get("description")
    first = variants[0].get("description") if variants and isinstance(variants[0], Mapping) else None
    described = isinstance(description, str) and description != first
    text = f"{indent}// {description}\n" if described else ""
    if default := _default(schema):
        text += f"{indent}// {default}\n"
    text += f"{indent}{label}:\n"
    for number, variant in enumerate(variants):
        own = variant.get("description") if isinstance(variant, Mapping) else None
        told = isinstance(own, str) and own != description and not (number == 0 and described)
        comments = ([str(own)] if told else []) + list(filter(None, [_default(variant)]))
        comment = f" // {' '.join(comments)}" if comments else ""
        text += f"{indent} | {_nullable(variant, f'{indent}   ')}{comment}\n"
    return f"{text}{indent},\n"


def _variant(variant: object, indent: str) -> str:
    """Return the text of one variant of a `oneOf` that is not a property's."""
    description = variant.get("description") if isinstance(variant, Mapping) else None
    comments = [description] if isinstance(description, str) else []
    comments += filter(None, [_default(variant, quote_choice=True)])
    comment = f" // {' '.join(comments)}" if comments else ""
    return f"{_nullable(variant, f'{indent}   ')}{comment}"


def _nullable(schema: object, indent: str) -> str:
    text = type_of(schema, indent)
    nullable = isinstance(schema, Mapping) and schema.get("nullable") is True
    return f"{text} | null" if nullable and "null" not in text else text


def _default(schema: object, quote_choice: bool = False) -> str:
    """Return `default: …`, or "" without a default. Strings are quoted without escapes, or bare if there is an enum."""
    if not isinstance(schema, Mapping) or "default" not in schema:
        return ""
    value = schema["default"]
    if not isinstance(value, str):
        return f"default: {compact_json(value)}"
    if not _has_choices(schema):
        return f'default: "{value}"'
    return f"default: {compact_json(value) if quote_choice else value}"


def _has_choices(schema: Schema) -> bool:
    return isinstance(schema.get("enum"), list) and bool(schema["enum"])


def lines_of(text: str) -> list[str]:
    """Return the lines of a text as Rust's `str::lines` does. Only newlines end a line; a final one begins no line."""
    *ended, last = text.split("\n")
    return [line.removesuffix("\r") for line in ended] + ([last] if last else [])


def compact_json(value: object) -> str:
    """Return JSON without spaces and with numbers as Rust's serde_json writes them (1e16, not 1e+16)."""
    if isinstance(value, Mapping):
        pairs = (f"{json.dumps(str(key), ensure_ascii=False)}:{compact_json(item)}" for key, item in value.items())
        return "{" + ",".join(pairs) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(compact_json, value)) + "]"
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**64:
        if abs(value) > 10**308:
            return str(value)  # larger than every float, so serde_json's form of it is unknown
        value = float(value)  # serde_json stores such integers as floats
    if isinstance(value, float) and "e" in repr(value):
        mantissa, exponent = repr(value).split("e")
        return f"{Decimal(repr(value)):f}" if int(exponent) == -5 else f"{mantissa}e{int(exponent)}"
    return json.dumps(value, ensure_ascii=False)
