"""From YAML files and key=value overrides to one validated Experiment, or one message that lists every mistake.

`python -m ageray.config` prints the JSON schema of the files, for editors.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ageray.config import messages
from ageray.config.nodes import (
    Node,
    Place,
    Problem,
    YamlText,
    flat,
    wrap,
    write,
)
from ageray.config.overrides import override, parts, put
from ageray.errors import UserError
from ageray.experiment import Experiment


@dataclass(frozen=True)
class ParsedConfig:
    """An experiment beside what was written of it, every value with its place."""

    experiment: Experiment
    root: Node

    def changed(self, values: Iterable[tuple[str, Any, Place]]) -> Experiment:
        """The same experiment, not searched, with other values: each has its path, as in an override, and the place that messages name.

        Raises UserError as `load` does.
        """
        root = copy.deepcopy(
            Node({key: node for key, node in self.root.value.items() if key != "tune"}, self.root.place)
        )
        problems: list[Problem] = []
        for path, value, place in values:
            put(root, parts(path), wrap(value, place), problems)
        return _validated(root, problems)


def load(paths: Sequence[str], overrides: Sequence[str] = (), base: Experiment | None = None) -> Experiment:
    """Reads configuration files, whose top-level keys are disjoint, and applies `a.b.c=value` overrides in their order.

    A list's element goes by its index (`train.stages.0.epochs=3`); `a.b=null` takes the key away, so that its default
    holds. A top-level key that no file has comes from `base` (say a bundle's experiment, to evaluate it on other data),
    or is the default.

    Raises UserError with every problem, each on one line with file and line, or with the argument; one of them is a `tune`, which `read` takes.
    """
    written = read(paths, overrides, base)
    if written.experiment.tune is not None:
        place = written.root.nearest(("tune",)).place
        raise _mistake([Problem(place, ("tune",), "is for jobs.tune alone; leave it out here")])
    return written.experiment


def read(paths: Sequence[str], overrides: Sequence[str] = (), base: Experiment | None = None) -> ParsedConfig:
    """What `load` reads, with the places of all values; `tune` may be among it."""
    problems: list[Problem] = []
    root = Node({}, Place(-1, 0, ""))
    files = [_read_file(path, order, problems) for order, path in enumerate(paths)]
    for file in files:
        _merge(root, file, problems)
    if base is not None:
        root.value = (
            wrap(base.model_dump(mode="json"), Place(-1, 0, "the given experiment")).value | root.value
        )
    if None in files:  # what an unread file would have said is unknown: no word on overrides and validity
        raise _mistake(problems)
    for order, word in enumerate(overrides, len(paths)):
        override(root, word, order, problems)
    return ParsedConfig(_validated(root, problems), root)


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
    """What the experiment is, in 8 hex digits: SHA-256 of its fields as canonical JSON, without `scale` and `storage`.

    On which machine it runs and where the run and the photos are kept does not change what it is. `data` counts as a whole, paths
    included: nothing else here tells one set of faces from another.
    """
    content = experiment.model_dump(mode="json", exclude={"scale", "storage"})
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:8]


def json_schema() -> messages.Schema:
    """The JSON schema of the configuration files: keys, defaults, ranges and descriptions."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **messages.schema()}


# --- files ----------------------------------------------------------------------------------------------------------


def _read_file(path: str, order: int, problems: list[Problem]) -> Node | None:
    place = Place(order, 0, path)
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        problems.append(Problem(place._replace(line=line), (), "not UTF-8 text; save the file as UTF-8"))
    except FileNotFoundError:
        near = get_close_matches(
            Path(path).name, [file.name for file in Path(path).parent.glob("*.y*ml")], n=1
        )
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
        what = "is empty" if node is None else f"{messages.show(node.plain())} is not allowed"
        remedy = f"write a mapping of {', '.join(messages.names([messages.schema()]))}"
        problems.append(Problem(node.place if node else Place(order, 0, name), (), f"{what}; {remedy}"))
    return None


def _merge(root: Node, file: Node | None, problems: list[Problem]) -> None:
    for key, node in file.value.items() if file else ():
        other = root.value.setdefault(key, node)
        if other is not node:
            text = f"is already in {other.place}; a top-level key belongs in one file"
            problems.append(Problem(node.place, (key,), text))


# --- validation -----------------------------------------------------------------------------------------------------


def _validated(root: Node, problems: list[Problem]) -> Experiment:
    try:
        # through JSON, where strict means JSON's types: a list is a tuple and 3 is a number, but '3' and true are not
        experiment = Experiment.model_validate_json(json.dumps(root.plain()), strict=True)
    except ValidationError as error:
        known = {problem[:2] for problem in problems}
        details = _own(error.errors(include_url=False, include_input=False))
        explained = [messages.explain(root, item) for item in details]
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
        if error["type"] != "too_short"
        or not any(other[: len(loc)] == loc and other != loc for other in locations)
    ]


def _mistake(problems: list[Problem]) -> UserError:
    lines = list(
        dict.fromkeys(str(problem) for problem in sorted(problems, key=lambda problem: problem.place))
    )
    return UserError(lines[0] if len(lines) == 1 else "\n  ".join([f"{len(lines)} problems:", *lines]))


def difference(there: Experiment, here: Experiment) -> str | None:
    """The first setting but `scale` in which two experiments differ, with both values; None if there is none."""
    one, other = (flat(each.model_dump(mode="json", exclude={"scale"})) for each in (there, here))
    for name in [*one, *(name for name in other if name not in one)]:
        if one.get(name) != other.get(name):
            return f"{name}: {json.dumps(one.get(name))} there, {json.dumps(other.get(name))} here"
    return None
