"""What to say about a wrong key or value: the message is read off the JSON schema of a
pydantic class."""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Iterable
from typing import Any, TypeAlias

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from ageray.config.nodes import Keys, Node, Problem, dotted

Schema: TypeAlias = dict[str, Any]
_TYPES = {"integer": "a whole number", "number": "a number", "string": "text", "object": "a mapping"}
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}


# --- the schema -----------------------------------------------------------------------------------


@functools.cache
def schema(model: type[BaseModel]) -> Schema:
    """The JSON schema of `model` with each `$ref` replaced by what it names. Not to be changed."""
    root = model.model_json_schema()
    return _inline(root, root.get("$defs", {}))  # type: ignore[no-any-return]


def _inline(node: Any, definitions: Schema) -> Any:
    if isinstance(node, list):
        return [_inline(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    own = {key: _inline(value, definitions) for key, value in node.items() if key not in ("$defs", "$ref")}
    if "$ref" not in node:
        return own
    return {**_inline(definitions[node["$ref"].rpartition("/")[2]], definitions), **own}


def at(root: Schema, keys: Keys) -> list[Schema]:
    """The schemas that a value at `keys` may follow; none if there is no such key."""
    schemas = [root]
    for key in keys:
        schemas = inside(schemas, key)
    return schemas


def inside(schemas: Iterable[Schema], key: str | int) -> list[Schema]:
    """The schemas of the value at one key or index."""
    fields = []
    for member in members(schemas):
        if key in member.get("properties", {}):
            fields.append(member["properties"][key])
        elif isinstance(key, int) and "prefixItems" in member:
            fields += member["prefixItems"][key : key + 1]
        elif isinstance(key, int) and member.get("type") == "array":
            fields.append(member["items"])
        elif isinstance(member.get("additionalProperties"), dict):
            fields.append(member["additionalProperties"])
    return fields


def members(schemas: Iterable[Schema]) -> list[Schema]:
    """The schemas with each `anyOf` and `oneOf` replaced by its alternatives."""
    parts = []
    for node in schemas:
        alternatives = node.get("anyOf") or node.get("oneOf")
        if alternatives:
            parts += members(alternatives)
        else:
            parts.append(node)
    return parts


def choice(schemas: Iterable[Schema]) -> tuple[str, dict[str, Schema]] | None:
    """The key whose value chooses among the schemas (`model` by `name`), and the schema of each
    value.

    None if there is no such key.
    """
    for node in schemas:
        for branch in node.get("anyOf", [node]):
            if "discriminator" in branch:
                key: str = branch["discriminator"]["propertyName"]
                return key, {member["properties"][key]["const"]: member for member in branch["oneOf"]}
    return None


def names(schemas: Iterable[Schema]) -> list[str]:
    """The keys of the mappings among the schemas."""
    keys: dict[str, None] = {}
    for member in members(schemas):
        keys |= dict.fromkeys(member.get("properties", {}))
    return list(keys)


# --- problems -------------------------------------------------------------------------------------


def explain(model: type[BaseModel], root: Node, error: ErrorDetails) -> Problem:
    """The problem that a pydantic error means, in the user's keys, at the place of the value."""
    kind, location = error["type"], error["loc"]
    if kind == "extra_forbidden":
        keys, schemas = _locate(schema(model), location[:-1])
        text = _key_of_another_choice(model, root, keys, location[-1]) or unknown_key(location[-1], schemas)
        return _problem(root, (*keys, location[-1]), text)
    keys, schemas = _locate(schema(model), location)
    if kind in ("value_error", "assertion_error") or (kind.startswith("string_") and kind != "string_type"):
        text = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        return _problem(root, keys, text)
    options = choice(schemas)
    if kind.startswith("union_tag_") and options is not None:
        keys, schemas = (*keys, options[0]), [{"enum": list(options[1])}]
    node = root.find(keys)
    if node is None:
        return _problem(root, keys, f"required (allowed: {_either(_options(schemas))})")
    return _problem(root, keys, wrong_value(node.plain(), schemas))


def _locate(root: Schema, location: Keys) -> tuple[Keys, list[Schema]]:
    """The user's keys for the location of a pydantic error, and the schemas there.

    pydantic adds the chosen member of a union to the location (`model, cluster_cnn, ages`).
    """
    keys: Keys = ()
    schemas = [root]
    for part in location:
        options = choice(schemas)
        fields = inside(schemas, part)
        if options is not None and part in options[1]:
            schemas = [options[1][str(part)]]
        elif fields:
            keys, schemas = (*keys, part), fields
    return keys, schemas


def _problem(root: Node, keys: Keys, text: str) -> Problem:
    """At the place of the value, or of the mapping that should hold it.

    If several sources wrote a mapping, the place of the last one counts.
    """
    node = root.closest_node(keys)
    last = max(node.places(), key=lambda place: place.order)
    if node is root or last.order <= node.place.order:
        return Problem(node.place, keys, text)
    return Problem(last, keys, text)


def _key_of_another_choice(model: type[BaseModel], root: Node, keys: Keys, key: str | int) -> str | None:
    """What to say about a key that exists only with another value of, say, `model.name`."""
    name, options = choice(at(schema(model), keys)) or ("", {})
    owners = [repr(value) for value, member in options.items() if key in names([member])]
    value = root.find((*keys, name))
    if not owners or value is None:
        return None
    return (
        f"no such key with {name} {value.value!r} ({value.place}), but with {' or '.join(owners)}: "
        f"take it out, "
        f"or add {dotted((*keys, key))}=null (known: {', '.join(names([options[value.value]]))})"
    )


# --- words ----------------------------------------------------------------------------------------


def unknown_key(key: str | int, schemas: Iterable[Schema]) -> str:
    """What to say about a key that does not exist."""
    keys = names(schemas)
    return f"unknown key{nearest(key, keys)} (known: {', '.join(keys)})"


def wrong_value(value: Any, schemas: Iterable[Schema]) -> str:
    """What to say about a value that is not allowed."""
    options = _options(schemas)
    hint = nearest(value, options)
    if "text" in options and isinstance(value, int | float):
        hint = f"; as text it needs quotes: '{json.dumps(value)}'"
    return f"{show(value)} is not allowed{hint} (allowed: {_either(options)})"


def show(value: Any) -> str:
    """A value on one line of at most 60 characters."""
    text = repr(value)
    if not isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def nearest(word: Any, options: list[str]) -> str:
    """The hint at the option that was probably meant; empty if none is similar."""
    for near in difflib.get_close_matches(str(word), options, n=1):
        return f"; did you mean {near!r}?"
    return ""


def _either(options: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(options[:-1]), *options[-1:]]))


def _options(schemas: Iterable[Schema]) -> list[str]:
    options: dict[str, None] = {}
    for member in members(schemas):
        options |= dict.fromkeys(_describe(member))
    return list(options)


def _describe(node: Schema) -> list[str]:
    if "enum" in node or "const" in node:
        values = node.get("enum", [node.get("const")])
        return [json.dumps(value).strip('"') for value in values]
    kind: str = node.get("type", "any value")
    if kind == "boolean":
        return ["true", "false"]
    if "prefixItems" in node:
        items = [_either(_options([item])) for item in node["prefixItems"]]
        return [f"a list of {len(items)}: {', '.join(items)}"]
    if kind == "array":
        length = f" of at least {node['minItems']}, each" if "minItems" in node else ", each"
        return [f"a list{length} {_either(_options([node['items']]))}"]
    limits = " and ".join(f"{phrase} {node[bound]:g}" for bound, phrase in _BOUNDS.items() if bound in node)
    return [", ".join(filter(None, [_TYPES.get(kind, kind), limits]))]
