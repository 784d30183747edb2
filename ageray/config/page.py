"""Every setting on one page, from the schema: Markdown tables for `docs/settings.md`.

python -m ageray.config --page > docs/settings.md
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ageray.config.experiments import json_schema

Node = dict[str, Any]

_HEAD = """\
# Settings

Generated from `ageray/experiment/` by `python -m ageray.config --page`. A setting is a line of a
YAML file or `key=value` on the command line: `train.batch_size=128`. An element of a list goes by its
number: `train.stages.0.epochs=3`. `key=null` brings the default back.
"""


def settings_page() -> str:
    """The page: a table for each section, and one for each kind of model."""
    schema = json_schema()
    definitions: Node = schema["$defs"]
    sections: dict[str, Node] = schema["properties"]
    parts = [_HEAD]
    for name, node in sections.items():
        # what is a section of its own is not repeated within another
        seen = {variant["title"] for other in sections.values() for variant in _variants(other, definitions)}
        parts.append(f"## `{name}`\n\n{node.get('description', '')}\n")
        parts.extend(_tables(name, _variants(node, definitions), definitions, seen))
    return "\n".join(parts)


def _tables(path: str, variants: list[Node], definitions: Node, seen: set[str]) -> Iterator[str]:
    """The table of each mapping that a key may hold, then those of what lies in it. seen: the
    titles of mappings that are not shown (again)."""
    inner: dict[str, Node] = {}
    for number, variant in enumerate(variants):
        if len(variants) > 1:
            about = str(variant.get("description", ""))
            yield f"### `{path}`: {_kind(variant, number)}\n\n{about}\n"
        rows = []
        for key, child in variant["properties"].items():
            has_table = bool(_variants(child, definitions))
            rows.append(_row(f"{path}.{key}", child, has_table))
            if has_table:
                inner.setdefault(f"{path}.{key}.0" if _is_list(child) else f"{path}.{key}", child)
        yield "| setting | default | values | |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
    for name, child in inner.items():
        new = [variant for variant in _variants(child, definitions) if variant["title"] not in seen]
        seen |= {variant["title"] for variant in new}
        if len(new) == 1:
            yield f"### `{name}`\n\n{new[0].get('description', '')}\n"
        yield from _tables(name, new, definitions, seen)


def _kind(variant: Node, number: int) -> str:
    """The name of one of several kinds, such as `baseline`."""
    name = variant["properties"].get("name", {})
    value = name.get("const", name.get("default"))
    return f"`{value}`" if value else str(variant.get("title", number))


def _is_list(node: Node) -> bool:
    return node.get("type") == "array"


def _variants(node: Node, definitions: Node) -> list[Node]:
    """The mappings that a key may hold; none for a plain value."""
    if "$ref" in node:
        target = definitions[node["$ref"].rsplit("/", 1)[-1]]
        return [target] if "properties" in target else []
    if _is_list(node):
        return _variants(node.get("items", {}), definitions)
    variants: list[Node] = []
    choices: list[Node] = node.get("oneOf") or node.get("anyOf") or []
    for choice in choices:
        variants += _variants(choice, definitions)
    return variants


def _row(path: str, node: Node, has_table: bool) -> str:
    default = ""
    if "default" in node:
        default = f"`{json.dumps(node['default'])}`"
    if has_table and node.get("default", {}) not in (None, []):
        default = "see below"
    text = str(node.get("description", "")).replace("|", "\\|")
    return f"| `{path}` | {default} | {_values(node, has_table)} | {text} |"


_KINDS = {
    "integer": "whole number",
    "number": "number",
    "boolean": "`true`, `false`",
    "null": "`null`",
    "string": "text",
    "array": "a list",
}
_LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def _values(node: Node, has_table: bool) -> str:
    """What a key takes, in short."""
    if has_table:
        return "a list" if _is_list(node) else ""
    if "const" in node:
        return f"`{node['const']}`"
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    if "anyOf" in node:
        texts = [_values(choice, False) for choice in node["anyOf"]]
        return " or ".join(dict.fromkeys(text for text in texts if text))
    limits = []
    for key, sign in _LIMITS.items():
        if key in node:
            limits.append(f"{sign} {node[key]:g}")
    return ", ".join(filter(None, [_KINDS.get(node.get("type", ""), ""), " and ".join(limits)]))
