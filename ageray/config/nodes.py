"""YAML text as nodes that know their place, and the same types back to text. `ageray.config` builds on it.

YAML here means YAML 1.2's core types: `1e-3` is a number, only `true` and `false` are booleans (`no`, `off` and `none`
are text), and a key given twice, a value left empty, an anchor, an alias or a tag is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import yaml
from yaml.composer import ComposerError
from yaml.reader import ReaderError

Keys: TypeAlias = tuple[str | int, ...]
"""The way to a value: keys of mappings, indices of lists."""

_TYPES = {
    "null": r"(~|null|Null|NULL|)",
    "bool": r"(true|True|TRUE|false|False|FALSE)",
    "int": r"[-+]?[0-9]{1,4000}",  # Python converts no longer ones; they become an infinite float, which no key allows
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?",
}
_CONSTRUCT: dict[str, Callable[[str], Any]] = {
    "null": lambda _: None,
    "bool": lambda word: word.lower() == "true",
    "int": int,
    "float": float,
}


class Place(NamedTuple):
    """Where something was written. Sorts in the order in which the user gave the sources."""

    order: int
    line: int
    """From 1; 0 in a source that has no lines (an argument)."""
    source: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


class Problem(NamedTuple):
    """One mistake of the user: where, at which keys, and what about it."""

    place: Place
    keys: Keys
    text: str

    def __str__(self) -> str:
        return ": ".join(filter(None, [str(self.place), dotted(self.keys), self.text]))


@dataclass
class Node:
    """A value and its place: that of its key in a mapping, its own in a list. Mappings and lists hold nodes."""

    value: Any
    place: Place

    def plain(self) -> Any:
        """The value without places, as `json.loads` would give it."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        return [child.plain() for child in self.value] if isinstance(self.value, list) else self.value

    def places(self) -> Iterator[Place]:
        """The places of this node and of all below."""
        yield self.place
        children = self.value.values() if isinstance(self.value, dict) else self.value
        for child in children if isinstance(self.value, dict | list) else ():
            yield from child.places()

    def child(self, key: str | int) -> Node | None:
        """The node at a key or an index, None if there is none."""
        if isinstance(self.value, dict):
            return self.value.get(str(key))
        return (
            self.value[key]
            if isinstance(self.value, list) and isinstance(key, int) and key < len(self.value)
            else None
        )

    def find(self, keys: Keys) -> Node | None:
        """The node at `keys`, None if there is none."""
        here: Node | None = self
        for key in keys:
            here = here and here.child(key)
        return here

    def nearest(self, keys: Keys) -> Node:
        """The node at `keys` or, where that ends, the last one on the way."""
        return next(node for end in range(len(keys), -1, -1) if (node := self.find(keys[:end])))


def wrap(value: Any, place: Place) -> Node:
    """Nodes for a plain value, all with the same place."""
    if isinstance(value, dict):
        return Node({key: wrap(child, place) for key, child in value.items()}, place)
    return Node([wrap(child, place) for child in value] if isinstance(value, list) else value, place)


def dotted(keys: Keys) -> str:
    """`train.stages.0.epochs`, on one line whatever the keys hold."""
    return ".".join(str(key) if str(key).isprintable() else repr(key) for key in keys)


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Dotted keys to the scalars of plain mappings and lists; an empty mapping or list counts as one."""
    if not isinstance(value, dict | list) or not value:
        return {name: value}
    leaves: dict[str, Any] = {}
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        leaves |= flat(inner, f"{name}.{key}" if name else str(key))
    return leaves


@dataclass
class YamlText:
    """One YAML text, a file or the value of an override; reading it appends what is wrong to `problems`."""

    source: str
    order: int
    has_lines: bool
    problems: list[Problem]

    def read(self, text: str, keys: Keys = ()) -> Node | None:
        """The value of `text`, which goes to `keys`; None if there is none, or if it is not YAML (a problem)."""
        try:
            raw = _Loader(text).get_single_node()
            return None if raw is None else self._node(raw, keys, self._place(raw.start_mark))
        except yaml.MarkedYAMLError as error:
            self._complain(
                error.problem_mark or error.context_mark, (), f"not valid YAML: {self._about(error)}"
            )
        except ReaderError as error:
            place = self._place(None)._replace(
                line=text.count("\n", 0, error.position) + 1 if self.has_lines else 0
            )
            character = f"U+{ord(text[error.position]):04X}"
            self.problems.append(Problem(place, (), f"not valid YAML: character {character} is not allowed"))
        except RecursionError:
            self._complain(None, (), "not valid YAML: nested too deeply")
        return None

    def _about(self, error: yaml.MarkedYAMLError) -> str:
        begun, mark = error.context_mark, error.problem_mark
        since = (
            f", begun in line {begun.line + 1}"
            if self.has_lines and begun and mark and begun.line < mark.line
            else ""
        )
        return f"{error.context}{since}: {error.problem}" if error.context else str(error.problem)

    def _node(self, raw: yaml.Node, keys: Keys, place: Place) -> Node:
        if isinstance(raw, yaml.MappingNode):
            return Node(dict(self._entries(raw, keys)), place)
        if isinstance(raw, yaml.SequenceNode):
            return Node(
                [
                    self._node(item, (*keys, i), self._place(item.start_mark))
                    for i, item in enumerate(raw.value)
                ],
                place,
            )
        if raw.tag.endswith(":null") and not raw.value:
            self.problems.append(
                Problem(
                    place,
                    keys,
                    "has no value; write null for none, {} for a mapping of defaults, '' for empty text",
                )
            )
        return Node(_CONSTRUCT.get(raw.tag.rsplit(":", 1)[1], str)(raw.value), place)

    def _entries(self, raw: yaml.MappingNode, keys: Keys) -> Iterator[tuple[str, Node]]:
        lines: dict[str, int] = {}
        for key, value in raw.value:
            if not isinstance(key, yaml.ScalarNode):
                self._complain(key.start_mark, keys, "a key must be text, not a list or a mapping")
            elif key.value in lines:
                first = f" (the first is in line {lines[key.value]})" if self.has_lines else ""
                self._complain(key.start_mark, (*keys, key.value), f"key given twice{first}")
            else:
                lines[key.value] = key.start_mark.line + 1
                yield key.value, self._node(value, (*keys, key.value), self._place(key.start_mark))

    def _place(self, mark: yaml.Mark | None) -> Place:
        return Place(self.order, mark.line + 1 if mark and self.has_lines else 0, self.source)

    def _complain(self, mark: yaml.Mark | None, keys: Keys, text: str) -> None:
        self.problems.append(Problem(self._place(mark), keys, text))


class _Loader(yaml.SafeLoader):
    """Composes nodes of the types above."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own name; here it forgets YAML 1.1)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or event.anchor or event.tag:
            raise ComposerError(None, None, "anchors, aliases and tags are not supported", event.start_mark)
        node = super().compose_node(parent, index)
        if isinstance(node, yaml.ScalarNode) and re.search("[\ud800-\udfff]", node.value):
            raise ComposerError(None, None, "half of a surrogate pair is not a character", node.start_mark)
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or the types above would read as something else, and writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write_list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.Node:
    return dumper.represent_sequence(
        "tag:yaml.org,2002:seq", items, flow_style=not any(isinstance(item, dict | list) for item in items)
    )


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    # PyYAML writes these line breaks as they are and reads them as \n, except between double quotes
    style = '"' if re.search("[\x85\u2028\u2029]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(list, _write_list)
_Dumper.add_representer(str, _write_text)
for _name, _pattern in _TYPES.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"{_pattern}\\Z"), None)


def write(value: Any) -> str:
    """YAML text of plain mappings, lists and scalars, keys in their order, lists of scalars on one line."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000_000)
    assert isinstance(text, str)
    return text
