"""YAML text to nodes, and plain values to YAML text.

The scalars are those of YAML 1.2's core schema. `1e-3` is a number. Only `true` and `false` are
booleans; `no`, `off` and `none` are text. A key given twice, a key without a value, an anchor, an
alias and a tag are mistakes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.reader import ReaderError

from ageray.config.nodes import Keys, Node, Place, Problem

_SCALARS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "null": (r"(~|null|Null|NULL|)", lambda _: None),
    "bool": (r"(true|True|TRUE|false|False|FALSE)", lambda word: word.lower() == "true"),
    # int() takes at most 4300 digits; a longer number becomes an infinite float, which no key
    # allows
    "int": (r"[-+]?[0-9]{1,4000}", int),
    "float": (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", float),
}
_NO_VALUE = "has no value; write null for none, {} for a mapping of defaults, '' for empty text"


@dataclass
class YamlText:
    """Reads one YAML text, a file or the value of an override, and appends mistakes to `problems`.

    `order` is the number of the source. `has_lines` is false for an argument, which has no lines.
    """

    source: str
    order: int
    has_lines: bool
    problems: list[Problem]

    def read(self, text: str, keys: Keys = ()) -> Node | None:
        """The value of `text`, which belongs at `keys`; None if it is empty or not YAML."""
        try:
            raw = _Loader(text).get_single_node()
            if raw is not None:
                return self._node(raw, keys, self._place(raw.start_mark))
        except yaml.MarkedYAMLError as error:
            self._invalid(error.problem_mark or error.context_mark, self._explain(error))
        except ReaderError as error:
            line = text.count("\n", 0, error.position)
            mark = yaml.Mark(self.source, 0, line, 0, None, 0)
            self._invalid(mark, f"character U+{ord(text[error.position]):04X} is not allowed")
        except RecursionError:
            self._invalid(None, "nested too deeply")
        return None

    def _node(self, raw: yaml.Node, keys: Keys, place: Place) -> Node:
        if isinstance(raw, yaml.MappingNode):
            return Node(dict(self._entries(raw, keys)), place)
        if isinstance(raw, yaml.SequenceNode):
            items = []
            for index, item in enumerate(raw.value):
                items.append(self._node(item, (*keys, index), self._place(item.start_mark)))
            return Node(items, place)
        kind = raw.tag.rsplit(":", 1)[1]
        if kind == "null" and not raw.value:
            self.problems.append(Problem(place, keys, _NO_VALUE))
        construct = _SCALARS.get(kind, ("", str))[1]
        return Node(construct(raw.value), place)

    def _entries(self, raw: yaml.MappingNode, keys: Keys) -> Iterator[tuple[str, Node]]:
        lines: dict[str, int] = {}
        for key, value in raw.value:
            place = self._place(key.start_mark)
            if not isinstance(key, yaml.ScalarNode):
                self.problems.append(Problem(place, keys, "a key must be text, not a list or a mapping"))
            elif key.value in lines:
                text = "key given twice"
                if self.has_lines:
                    text += f" (the first is in line {lines[key.value]})"
                self.problems.append(Problem(place, (*keys, key.value), text))
            else:
                lines[key.value] = place.line
                yield key.value, self._node(value, (*keys, key.value), place)

    def _place(self, mark: yaml.Mark | None) -> Place:
        return Place(self.order, mark.line + 1 if mark and self.has_lines else 0, self.source)

    def _invalid(self, mark: yaml.Mark | None, text: str) -> None:
        self.problems.append(Problem(self._place(mark), (), f"not valid YAML: {text}"))

    def _explain(self, error: yaml.MarkedYAMLError) -> str:
        if not error.context:
            return str(error.problem)
        first, last = error.context_mark, error.problem_mark
        begin = ""
        if self.has_lines and first and last and first.line < last.line:
            begin = f", begun in line {first.line + 1}"
        return f"{error.context}{begin}: {error.problem}"


class _Loader(yaml.SafeLoader):
    """PyYAML's composer with the scalars above and without anchors, aliases and tags."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's name; empty: no YAML 1.1)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or event.anchor or event.tag:
            raise ComposerError(None, None, "anchors, aliases and tags are not supported", event.start_mark)
        node = super().compose_node(parent, index)
        if isinstance(node, yaml.ScalarNode) and re.search("[\ud800-\udfff]", node.value):
            raise ComposerError(None, None, "half of a surrogate pair is not a character", node.start_mark)
        return node


class _Dumper(yaml.SafeDumper):
    """Writes no aliases, and quotes text that YAML 1.1 or 1.2 would read as another type."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write_list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.Node:
    flow = not any(isinstance(item, dict | list) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flow)


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    # PyYAML writes these line breaks unchanged and reads them as \n, except between double quotes
    style = None
    if re.search("[\x85\u2028\u2029]", text):
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(list, _write_list)
_Dumper.add_representer(str, _write_text)
for _name, (_pattern, _) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"{_pattern}\\Z"), None)


def write(value: Any) -> str:
    """YAML text of a plain value: keys in their order, a list of scalars on one line."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000_000)
    assert isinstance(text, str)
    return text
