"""One value in the place of another: `a.b.c=value` on the tree of what was written. `ageray.config` builds on it."""

from __future__ import annotations

import re

from ageray.config import messages
from ageray.config.nodes import (
    Keys,
    Node,
    Place,
    Problem,
    YamlText,
    dotted,
    wrap,
)


def parts(path: str) -> Keys:
    """The keys of a dotted path; numbers are the indices of lists."""
    return tuple(int(part) if re.fullmatch("[0-9]{1,9}", part) else part for part in path.split("."))


def override(root: Node, word: str, order: int, problems: list[Problem]) -> None:
    """Applies the argument `word`, `a.b.c=value`, number `order` among the sources."""
    text = YamlText(f"argument {word!r}", order, False, [])
    name, equals, written = word.partition("=")
    keys = parts(name)
    place = Place(order, 0, text.source)
    node = text.read(written, keys) if equals else None
    if text.problems:
        problems += text.problems
    elif node is None:
        wrong = (
            "has no value; write null to take the key away, '' for empty text"
            if equals
            else "is not key=value"
        )
        problems.append(Problem(place, keys if equals else (), wrong))
    else:
        put(root, keys, node, problems)


def put(root: Node, keys: Keys, node: Node, problems: list[Problem]) -> None:
    """Puts `node` at `keys`; null takes away what is there."""
    try:
        _unset(root, keys) if node.value is None else _set(root, keys, node)
    except OverrideError as error:
        problems.append(Problem(node.place, error.keys, str(error)))


class OverrideError(Exception):
    """An override that cannot be done: the keys as far as they go, and why."""

    def __init__(self, keys: Keys, why: str) -> None:
        super().__init__(why)
        self.keys = keys


def _set(root: Node, keys: Keys, node: Node) -> None:
    """Puts `node` at `keys` and makes what is missing on the way; the index after a list's last adds an element."""
    here = root
    for depth, key in enumerate(keys):
        if here.value is None:
            here.value = _unwritten(keys[:depth], node.place)
        if isinstance(here.value, dict):
            here = here.value.setdefault(str(key), Node(None, node.place))
        elif isinstance(here.value, list):
            index = _index(here.value, keys[: depth + 1], len(here.value))
            here.value += [Node(None, node.place)] if index == len(here.value) else []
            here = here.value[index]
        else:
            holds = f"{dotted(keys[:depth])} holds {messages.show(here.value)}"
            raise OverrideError(keys[: depth + 1], f"no such key; {holds}")
    here.value, here.place = node.value, node.place


def _unwritten(keys: Keys, place: Place) -> dict[str, Node] | list[Node]:
    """What an override finds where nobody has written anything: for a list its default, else an empty mapping."""
    schemas = messages.at(keys)
    if all(branch.get("type") != "array" for branch in messages.branches(schemas)):
        return {}
    defaults = [schema.get("default") or [] for schema in schemas]
    if any(default != defaults[0] for default in defaults):  # two models that differ in it
        raise OverrideError(keys, f"nothing is written there; give the whole list, {dotted(keys)}=[...]")
    return [wrap(item, place) for item in defaults[0]]


def _unset(root: Node, keys: Keys) -> None:
    """Takes `keys` away if they were written; they must exist in any case."""
    holder = root.find(keys[:-1])
    if holder is not None and isinstance(holder.value, list):
        del holder.value[_index(holder.value, keys, len(holder.value) - 1)]
    elif holder is not None and holder.child(keys[-1]):
        del holder.value[str(keys[-1])]
    else:
        for depth, key in enumerate(keys):
            if not messages.at(keys[: depth + 1]):
                raise OverrideError(keys[: depth + 1], messages.unknown_key(key, messages.at(keys[:depth])))


def _index(items: list[Node], keys: Keys, last: int) -> int:
    if isinstance(keys[-1], str) or keys[-1] > last:
        raise OverrideError(
            keys, f"no such element; {dotted(keys[:-1])} is a list of {len(items)}, counted from 0"
        )
    return keys[-1]
