"""One override, `a.b.c=value`, applied to the tree of nodes."""

from __future__ import annotations

import copy
import re

from ageray.config import messages
from ageray.config.messages import Schema
from ageray.config.nodes import Keys, Node, Place, Problem, dotted, wrap
from ageray.config.yaml_text import YamlText

_STAGES: Keys = ("train", "stages")


class OverrideError(Exception):
    """An override that is not possible: its keys as far as they exist, and the reason."""

    def __init__(self, keys: Keys, reason: str) -> None:
        super().__init__(reason)
        self.keys = keys


def parts(path: str) -> Keys:
    """The keys of a dotted path. Numbers are indices of lists."""
    return tuple(map(_key, path.split(".")))


def _key(part: str) -> str | int:
    return int(part) if re.fullmatch("[0-9]{1,9}", part) else part


def override(root: Node, word: str, order: int, schema: Schema, problems: list[Problem]) -> None:
    """Applies the argument `word`, source number `order`, to settings of the JSON schema
    `schema`."""
    place = Place(order, 0, f"argument {word!r}")
    name, equals, value = word.partition("=")
    if not equals:
        problems.append(Problem(place, (), "is not key=value"))
        return
    text = YamlText(place.source, order, False, [])
    node = text.read(value, parts(name))
    if text.problems:
        problems += text.problems
    elif node is None:
        remedy = "write null to take the key away, '' for empty text"
        problems.append(Problem(place, parts(name), f"has no value; {remedy}"))
    else:
        put(root, parts(name), node, schema, problems)


def put(root: Node, keys: Keys, node: Node, schema: Schema, problems: list[Problem]) -> None:
    """Puts `node` at `keys`; null removes what is there."""
    try:
        # null at a key that does not exist stays, so that validation reports the key
        if node.value is None and messages.at(schema, keys):
            _remove(root, keys)
        else:
            _set(root, keys, node, schema)
    except OverrideError as error:
        problems.append(Problem(node.place, error.keys, str(error)))


def _set(root: Node, keys: Keys, node: Node, schema: Schema) -> None:
    """Puts `node` at `keys` and makes what is missing on the way.

    The index after the last one of a list adds an element. A stage added to `train.stages` starts
    as a copy of the stage before it, without `shards`.
    """
    holder = root
    for depth, key in enumerate(keys):
        if holder.value is None:
            holder.value = _default(keys[:depth], node.place, schema)
        if isinstance(holder.value, dict):
            holder = holder.value.setdefault(str(key), Node(None, node.place))
        elif isinstance(holder.value, list):
            index = _index(holder.value, keys[: depth + 1], len(holder.value))
            if index == len(holder.value):
                holder.value.append(_added(holder.value, keys[:depth], node.place))
            holder = holder.value[index]
        else:
            content = f"{dotted(keys[:depth])} holds {messages.show(holder.value)}"
            raise OverrideError(keys[: depth + 1], f"no such key; {content}")
    holder.value, holder.place = node.value, node.place


def _added(elements: list[Node], keys: Keys, place: Place) -> Node:
    """A new element of the list at `keys`."""
    if keys != _STAGES or not elements or not isinstance(elements[-1].value, dict):
        return Node(None, place)
    stage = copy.deepcopy(elements[-1])
    stage.value.pop("shards", None)
    stage.place = place
    return stage


def _default(keys: Keys, place: Place, schema: Schema) -> dict[str, Node] | list[Node]:
    """What an override of an unwritten key starts from: a list's default, else an empty
    mapping."""
    schemas = messages.at(schema, keys)
    if "array" not in {member.get("type") for member in messages.members(schemas)}:
        return {}
    defaults = [field.get("default") or [] for field in schemas]
    if defaults.count(defaults[0]) < len(defaults):  # two models have different defaults
        raise OverrideError(keys, f"nothing is written there; give the whole list, {dotted(keys)}=[...]")
    return wrap(defaults[0], place).value  # type: ignore[no-any-return]


def _remove(root: Node, keys: Keys) -> None:
    holder = root.find(keys[:-1])
    if holder is not None and isinstance(holder.value, list):
        del holder.value[_index(holder.value, keys, len(holder.value) - 1)]
    elif holder is not None and isinstance(holder.value, dict):
        holder.value.pop(str(keys[-1]), None)


def _index(items: list[Node], keys: Keys, last: int) -> int:
    if isinstance(keys[-1], str) or keys[-1] > last:
        text = f"no such element; {dotted(keys[:-1])} is a list of {len(items)}, counted from 0"
        raise OverrideError(keys, text)
    return keys[-1]
