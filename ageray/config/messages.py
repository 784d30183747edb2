"""The keys and values that configuration allows, read off Experiment's JSON schema, and what to say about others."""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Iterable
from typing import Any, TypeAlias

from pydantic_core import ErrorDetails

from ageray.config.nodes import Keys, Node, Problem, dotted
from ageray.experiment import Experiment

Schema: TypeAlias = dict[str, Any]
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}


@functools.cache
def schema() -> Schema:
    """JSON schema of a whole experiment; not to be changed."""
    return Experiment.model_json_schema()


def at(keys: Keys) -> list[Schema]:
    """The schemas that a value at `keys` may follow, none if there is no such key."""
    here = [schema()]
    for key in keys:
        here = inside(here, key)
    return here


def inside(schemas: Iterable[Schema], key: str | int) -> list[Schema]:
    """The schemas of the value at one key or index."""
    found = []
    for branch in members(schemas):
        if key in branch.get("properties", {}):
            found.append(branch["properties"][key])
        elif isinstance(key, int) and branch.get("type") == "array":
            found += branch["prefixItems"][key : key + 1] if "prefixItems" in branch else [branch["items"]]
        elif isinstance(branch.get("additionalProperties"), dict):
            found.append(branch["additionalProperties"])
    return found


def branches(schemas: Iterable[Schema]) -> list[Schema]:
    """References followed and `anyOf` taken apart; a choice by a key's value (`model` by `name`) stays whole."""
    found = []
    for node in schemas:
        if "anyOf" in node:
            found += branches(node["anyOf"])
        else:
            found.append(schema()["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node)
    return found


def members(schemas: Iterable[Schema]) -> list[Schema]:
    """`branches`, with each choice by a key's value taken apart too."""
    return [member for branch in branches(schemas) for member in branches(branch.get("oneOf", [branch]))]


def choice(schemas: Iterable[Schema]) -> tuple[str, dict[str, Schema]] | None:
    """The key that chooses among these schemas, and the schema for each of its values; None if nothing is to choose."""
    for branch in branches(schemas):
        if "discriminator" in branch:
            mapping = branch["discriminator"]["mapping"]
            key: str = branch["discriminator"]["propertyName"]
            return key, {value: {"$ref": target} for value, target in mapping.items()}
    return None


def locate(location: Keys) -> tuple[Keys, list[Schema]]:
    """The user's keys for a pydantic error's location, and the schemas there.

    pydantic names the chosen member of a union in its locations (`model, cluster_cnn, ages`), users do not. For a key
    that does not exist, give the location of the mapping that it stands in.
    """
    keys: Keys = ()
    here = [schema()]
    for part in location:
        chosen = choice(here)
        if chosen is not None and part in chosen[1]:
            here = [chosen[1][str(part)]]
        elif found := inside(here, part):
            keys, here = (*keys, part), found
    return keys, here


def names(schemas: Iterable[Schema]) -> list[str]:
    """The keys of the mappings among these schemas."""
    return list(dict.fromkeys(name for member in members(schemas) for name in member.get("properties", {})))


def explain(root: Node, error: ErrorDetails) -> Problem:
    """The problem that one pydantic error means, in the user's keys and with the place of what was written there."""
    kind, location = error["type"], error["loc"]
    if kind == "extra_forbidden":
        keys, known = locate(location[:-1])
        key = location[-1]
        return _problem(root, (*keys, key), _of_another_choice(root, keys, key) or unknown_key(key, known))
    keys, known = locate(location)
    if kind in ("value_error", "assertion_error") or (kind.startswith("string_") and kind != "string_type"):
        return _problem(
            root, keys, error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        )
    chosen = choice(known) if kind.startswith("union_tag_") else None
    if chosen is not None:
        keys, known = (*keys, chosen[0]), [{"enum": list(chosen[1])}]
    written = root.find(keys)
    return _problem(
        root, keys, missing_value(known) if written is None else wrong_value(written.plain(), known)
    )


def _problem(root: Node, keys: Keys, text: str) -> Problem:
    """Placed at the value, else at what should hold it; a mapping that several sources wrote is the last one's."""
    node = root.nearest(keys)
    last = max(node.places(), key=lambda place: place.order)
    return Problem(last if last.order > node.place.order and node is not root else node.place, keys, text)


def _of_another_choice(root: Node, keys: Keys, key: str | int) -> str | None:
    """What to say about a key that the mapping would have if, say, its `name` were another one."""
    name, options = choice(at(keys)) or ("", {})
    owners = [value for value, member in options.items() if key in names([member])]
    chosen = root.find((*keys, name))
    if not owners or chosen is None:
        return None
    return (
        f"no such key with {name} {chosen.value!r} ({chosen.place}), but with {' or '.join(map(repr, owners))}: "
        f"take it out, or add {dotted((*keys, key))}=null (known: {', '.join(names([options[chosen.value]]))})"
    )


def unknown_key(key: str | int, schemas: Iterable[Schema]) -> str:
    """What to say about a key that does not exist."""
    known = names(schemas)
    return f"unknown key{_nearest(key, known)} (known: {', '.join(known)})"


def wrong_value(value: Any, schemas: Iterable[Schema]) -> str:
    """What to say about a value that is not allowed."""
    options = _options(schemas)
    hint = _nearest(value, options)
    if "text" in options and isinstance(value, int | float):
        hint = f"; as text it needs quotes: '{json.dumps(value)}'"
    return f"{show(value)} is not allowed{hint} (allowed: {_either(options)})"


def missing_value(schemas: Iterable[Schema]) -> str:
    """What to say where a value is required."""
    return f"required (allowed: {_either(_options(schemas))})"


def show(value: Any) -> str:
    """A value in a message: short, on one line."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _nearest(word: Any, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1) if isinstance(word, str) else []
    return f"; did you mean {near[0]!r}?" if near else ""


def _either(options: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(options[:-1]), *options[-1:]]))


def _options(schemas: Iterable[Schema]) -> list[str]:
    return list(dict.fromkeys(option for member in members(schemas) for option in _described(member)))


def _described(node: Schema) -> list[str]:
    if "enum" in node or "const" in node:
        values = node.get("enum", [node.get("const")])
        return [value if isinstance(value, str) else json.dumps(value) for value in values]
    kind: str = node.get("type", "any value")
    if kind == "boolean":
        return ["true", "false"]
    if kind == "array":
        return [_described_list(node)]
    words = {"integer": "a whole number", "number": "a number", "string": "text", "object": "a mapping"}.get(
        kind, kind
    )
    limits = " and ".join(f"{phrase} {node[bound]:g}" for bound, phrase in _BOUNDS.items() if bound in node)
    return [f"{words}, {limits}" if limits else words]


def _described_list(node: Schema) -> str:
    if "prefixItems" in node:
        items = [_either(_options([item])) for item in node["prefixItems"]]
        return f"a list of {len(items)}: {', '.join(items)}"
    least = f" of at least {node['minItems']}" if "minItems" in node else ""
    return f"a list{least}, each {_either(_options([node['items']]))}"
