"""From YAML files and key=value overrides to one validated Experiment, or one message that lists every mistake.

`python -m ageray.config` prints the JSON schema of the files, for editors.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ageray import vocabulary
from ageray.errors import UserError
from ageray.experiment import Experiment
from ageray.yaml_nodes import Keys, Node, Place, Problem, YamlText, dotted, wrap, write


def load(paths: Sequence[str], overrides: Sequence[str] = (), base: Experiment | None = None) -> Experiment:
    """Reads configuration files, whose top-level keys are disjoint, and applies `a.b.c=value` overrides in their order.

    A list's element goes by its index (`train.stages.0.epochs=3`); `a.b=null` takes the key away, so that its default
    holds. A top-level key that no file has comes from `base` (say a bundle's experiment, to evaluate it on other data),
    or is the default.

    Raises UserError with every problem, each on one line with file and line, or with the argument.
    """
    problems: list[Problem] = []
    root = Node({}, Place(-1, 0, ""))
    files = [_read_file(path, order, problems) for order, path in enumerate(paths)]
    for file in files:
        _merge(root, file, problems)
    if base is not None:
        root.value = wrap(base.model_dump(mode="json"), Place(-1, 0, "the given experiment")).value | root.value
    if None in files:  # what an unread file would have said is unknown: no word on overrides and validity
        raise _mistake(problems)
    for order, word in enumerate(overrides, len(paths)):
        _override(root, word, order, problems)
    return _validated(root, problems)


def loads(text: str, name: str) -> Experiment:
    """The experiment in the YAML `text` of one file, which messages call `name`. Raises UserError as `load` does."""
    problems: list[Problem] = []
    root = _parse_file(text, name, 0, problems)
    if root is None:
        raise _mistake(problems)
    return _validated(root, problems)


def parse_arguments(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits a command line into (files, overrides).

    `key=value` is an override, where the key has no slash and no leading dash; other words in `.yaml` or `.yml` name
    files.

    Raises UserError that names every other word.
    """
    overrides = [word for word in words if re.match(r"[^-=/\\][^=/\\]*=", word)]
    paths = [word for word in words if word not in overrides and word.endswith((".yaml", ".yml"))]
    wrong = [repr(word) for word in words if word not in overrides and word not in paths]
    if wrong:
        raise UserError(f"{', '.join(wrong)}: neither a .yaml file nor key=value")
    return paths, overrides


def dump(experiment: Experiment) -> str:
    """The resolved experiment as YAML, every field in the order of ageray.experiment; `loads` gives back an equal one."""
    return write(experiment.model_dump(mode="json"))


def digest(experiment: Experiment) -> str:
    """What the experiment is, in 8 hex digits: SHA-256 of its fields as canonical JSON, without `scale`.

    On which machine it runs and where the run is kept does not change what it is. `data` counts as a whole, paths
    included: nothing else here tells one set of faces from another.
    """
    content = experiment.model_dump(mode="json", exclude={"scale"})
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:8]


def json_schema() -> vocabulary.Schema:
    """The JSON schema of the configuration files: keys, defaults, ranges and descriptions."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **vocabulary.schema()}


# --- files ----------------------------------------------------------------------------------------------------------


def _read_file(path: str, order: int, problems: list[Problem]) -> Node | None:
    place = Place(order, 0, path)
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        problems.append(Problem(place._replace(line=line), (), "not UTF-8 text; save the file as UTF-8"))
    except FileNotFoundError:
        near = get_close_matches(Path(path).name, [file.name for file in Path(path).parent.glob("*.y*ml")], n=1)
        problems.append(Problem(place, (), "no such file" + (f"; did you mean {near[0]!r}?" if near else "")))
    except OSError as error:
        problems.append(Problem(place, (), f"cannot be read: {error.strerror}"))
    else:
        return _parse_file(text, path, order, problems)
    return None


def _parse_file(text: str, name: str, order: int, problems: list[Problem]) -> Node | None:
    """The top-level mapping, None if there is none (a problem)."""
    before = len(problems)
    node = YamlText(name, order, True, problems).read(text)
    if node is not None and isinstance(node.value, dict):
        return node
    if len(problems) == before:
        what = "is empty" if node is None else f"{vocabulary.show(node.plain())} is not allowed"
        remedy = f"write a mapping of {', '.join(vocabulary.names([vocabulary.schema()]))}"
        problems.append(Problem(node.place if node else Place(order, 0, name), (), f"{what}; {remedy}"))
    return None


def _merge(root: Node, file: Node | None, problems: list[Problem]) -> None:
    for key, node in file.value.items() if file else ():
        other = root.value.setdefault(key, node)
        if other is not node:
            text = f"is already in {other.place}; a top-level key belongs in one file"
            problems.append(Problem(node.place, (key,), text))


# --- overrides ------------------------------------------------------------------------------------------------------


def _override(root: Node, word: str, order: int, problems: list[Problem]) -> None:
    text = YamlText(f"argument {word!r}", order, False, [])
    name, equals, written = word.partition("=")
    keys = tuple(int(part) if re.fullmatch("[0-9]{1,9}", part) else part for part in name.split("."))
    place = Place(order, 0, text.source)
    node = text.read(written, keys) if equals else None
    if text.problems:
        problems += text.problems
    elif node is None:
        wrong = "has no value; write null to take the key away, '' for empty text" if equals else "is not key=value"
        problems.append(Problem(place, keys if equals else (), wrong))
    else:
        try:
            _unset(root, keys) if node.value is None else _set(root, keys, node)
        except _Impossible as error:
            problems.append(Problem(place, error.keys, str(error)))


class _Impossible(Exception):
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
            holds = f"{dotted(keys[:depth])} holds {vocabulary.show(here.value)}"
            raise _Impossible(keys[: depth + 1], f"no such key; {holds}")
    here.value, here.place = node.value, node.place


def _unwritten(keys: Keys, place: Place) -> dict[str, Node] | list[Node]:
    """What an override finds where nobody has written anything: for a list its default, else an empty mapping."""
    schemas = vocabulary.at(keys)
    if all(branch.get("type") != "array" for branch in vocabulary.branches(schemas)):
        return {}
    defaults = [schema.get("default") or [] for schema in schemas]
    if any(default != defaults[0] for default in defaults):  # two models that differ in it
        raise _Impossible(keys, f"nothing is written there; give the whole list, {dotted(keys)}=[...]")
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
            if not vocabulary.at(keys[: depth + 1]):
                raise _Impossible(keys[: depth + 1], vocabulary.unknown_key(key, vocabulary.at(keys[:depth])))


def _index(items: list[Node], keys: Keys, last: int) -> int:
    if isinstance(keys[-1], str) or keys[-1] > last:
        raise _Impossible(keys, f"no such element; {dotted(keys[:-1])} is a list of {len(items)}, counted from 0")
    return keys[-1]


# --- validation -----------------------------------------------------------------------------------------------------


def _validated(root: Node, problems: list[Problem]) -> Experiment:
    try:
        # through JSON, where strict means JSON's types: a list is a tuple and 3 is a number, but '3' and true are not
        experiment = Experiment.model_validate_json(json.dumps(root.plain()), strict=True)
    except ValidationError as error:
        known = {problem[:2] for problem in problems}
        details = _own(error.errors(include_url=False, include_input=False))
        explained = [vocabulary.explain(root, item) for item in details]
        problems = problems + [problem for problem in explained if problem[:2] not in known]
    if problems:
        raise _mistake(problems)
    return experiment


def _own(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """Without lists that pydantic finds too short only because it does not count elements that are wrong themselves."""
    locations = [error["loc"] for error in errors]
    return [
        error
        for error, loc in zip(errors, locations, strict=True)
        if error["type"] != "too_short" or not any(other[: len(loc)] == loc and other != loc for other in locations)
    ]


def _mistake(problems: list[Problem]) -> UserError:
    lines = list(dict.fromkeys(str(problem) for problem in sorted(problems, key=lambda problem: problem.place)))
    return UserError(lines[0] if len(lines) == 1 else "\n  ".join([f"{len(lines)} problems:", *lines]))


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=2))
