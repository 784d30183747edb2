"""A tree of values that know where they were written, and the mistakes found in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from ageray.errors import UserError

Keys: TypeAlias = tuple[str | int, ...]
"""The path to a value: keys of mappings, indices of lists."""


class Place(NamedTuple):
    """Where a value was written. Places sort in the order in which the user gave the sources."""

    order: int
    line: int
    """Counted from 1; 0 in a source without lines (an argument)."""
    source: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line}".removesuffix(":0")


class Problem(NamedTuple):
    """One mistake of the user: its place, its keys, and the explanation."""

    place: Place
    keys: Keys
    text: str

    def __str__(self) -> str:
        return ": ".join(filter(None, [str(self.place), dotted(self.keys), self.text]))


@dataclass
class Node:
    """A value with its place. Mappings and lists hold nodes.

    An entry of a mapping has the place of its key. An element of a list has its own place.
    """

    value: Any
    place: Place

    def plain(self) -> Any:
        """The value without places, as `json.loads` would return it."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return list(map(Node.plain, self.value))
        return self.value

    def places(self) -> Iterator[Place]:
        """The places of this node and of all nodes below it."""
        yield self.place
        children = self.value
        if isinstance(self.value, dict):
            children = self.value.values()
        if isinstance(self.value, dict | list):
            for child in children:
                yield from child.places()

    def child(self, key: str | int) -> Node | None:
        """The node at a key or an index; None if there is none."""
        if isinstance(self.value, dict):
            return self.value.get(str(key))
        if isinstance(self.value, list) and isinstance(key, int) and key < len(self.value):
            return self.value[key]  # type: ignore[no-any-return]
        return None

    def closest_node(self, keys: Keys) -> Node:
        """The node at `keys`, or the last node on the way to it."""
        node = self
        for key in keys:
            child = node.child(key)
            if child is None:
                break
            node = child
        return node

    def find(self, keys: Keys) -> Node | None:
        """The node at `keys`; None if there is none."""
        node: Node | None = self
        for key in keys:
            node = node and node.child(key)
        return node


def wrap(value: Any, place: Place) -> Node:
    """A plain value as nodes that all have the same place."""
    if isinstance(value, dict):
        return Node({key: wrap(child, place) for key, child in value.items()}, place)
    if isinstance(value, list | tuple):
        return Node([wrap(child, place) for child in value], place)
    return Node(value, place)


def dotted(keys: Keys) -> str:
    """`train.stages.0.epochs`. A key that would break the line is written with escapes."""
    words = []
    for key in keys:
        words.append(str(key) if str(key).isprintable() else repr(key))
    return ".".join(words)


def mistake(problems: list[Problem]) -> UserError:
    """One error that lists every problem once, in the order of the sources."""
    lines: dict[str, None] = {}
    for problem in sorted(problems, key=lambda problem: problem.place):
        lines[str(problem)] = None
    if len(lines) == 1:
        return UserError(next(iter(lines)))
    return UserError("\n  ".join([f"{len(lines)} problems:", *lines]))
