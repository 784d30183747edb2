"""YAML files and key=value overrides become one validated pydantic object, or one message that
lists every mistake. The class is an argument: `Experiment`, or the settings of the service."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ageray.config import messages, shipped
from ageray.config.nodes import Keys, Node, Place, Problem, mistake, wrap
from ageray.config.overrides import override
from ageray.config.yaml_text import YamlText
from ageray.errors import UserError

Model = TypeVar("Model", bound=BaseModel)


def parse(
    model: type[Model],
    paths: Sequence[str] = (),
    overrides: Sequence[str] = (),
    base: Mapping[str, Any] | None = None,
    base_name: str = "",
) -> tuple[Model, Node]:
    """The settings of class `model`, and the tree of what was written, each value with its place.

    The files must have disjoint top-level keys. The overrides `a.b.c=value` apply in their order.
    A top-level key that no file has comes from `base`, which messages call `base_name`.

    Raises UserError with every problem, one a line, with file and line or with the argument.
    """
    problems: list[Problem] = []
    root = wrap(dict(base or {}), Place(-1, 0, base_name))
    files: dict[str, Node] = {}
    complete = True
    for order, path in enumerate(paths):
        file = _read_file(path, order, model, problems)
        if file is None:
            complete = False
            continue
        for key, node in file.value.items():
            if key in files:
                text = f"is already in {files[key].place}; a top-level key belongs in one file"
                problems.append(Problem(node.place, (key,), text))
            files.setdefault(key, node)
    if not complete:  # an unread file may hold anything: overrides and values cannot be checked
        raise mistake(problems)
    root.value |= files
    for order, word in enumerate(overrides, len(paths)):
        override(root, word, order, messages.schema(model), problems)
    return validate(model, root, problems), root


def parse_text(model: type[Model], text: str, name: str, renamed: Mapping[Keys, str] | None = None) -> Model:
    """The settings in the YAML `text` of one file, which messages call `name`. Raises as `parse`.

    `renamed` has the keys of earlier versions, each with its present name.
    """
    problems: list[Problem] = []
    root = _mapping(text, name, 0, model, problems)
    if root is None:
        raise mistake(problems)
    for keys, present in (renamed or {}).items():
        holder = root.find(keys[:-1])
        if holder is not None and holder.child(keys[-1]) is not None:
            holder.value[present] = holder.value.pop(keys[-1])
    return validate(model, root, problems)


def parse_arguments(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits a command line into files and overrides.

    `key=value` is an override, if the key has no slash and no leading dash. Another word that ends
    in `.yaml` or `.yml` is a file, and so is the name of one that ships (`recipe:baseline`). Raises
    UserError that names every other word.
    """
    paths, overrides, wrong = [], [], []
    for word in words:
        if re.match(r"[^-=/\\][^=/\\]*=", word):
            overrides.append(word)
        elif word.endswith((".yaml", ".yml")) or shipped.is_name(word):
            paths.append(word)
        else:
            wrong.append(repr(word))
    if wrong:
        forms = "neither a .yaml file, a name such as recipe:default, nor key=value"
        raise UserError(f"{', '.join(wrong)}: {forms}")
    return paths, overrides


def validate(model: type[Model], root: Node, problems: list[Problem]) -> Model:
    """The settings in a tree. Raises UserError with `problems` and with what pydantic refuses."""
    settings = None
    try:
        # strict JSON: a list is a tuple and 3 is a number, but '3' and true are not
        settings = model.model_validate_json(json.dumps(root.plain()), strict=True)
    except ValidationError as error:
        places = {problem[:2] for problem in problems}
        for item in _innermost(error.errors(include_url=False, include_input=False)):
            problem = messages.explain(model, root, item)
            if problem[:2] not in places:
                problems = [*problems, problem]
    if problems or settings is None:
        raise mistake(problems)
    return settings


def _innermost(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """Without errors of a list whose elements are wrong: pydantic does not count those elements."""
    holders = set()
    for error in errors:
        location = error["loc"]
        for length in range(len(location)):
            holders.add(location[:length])
    return [error for error in errors if error["loc"] not in holders]


def _read_file(path: str, order: int, model: type[BaseModel], problems: list[Problem]) -> Node | None:
    place = Place(order, 0, path)
    try:
        file = shipped.path_of(path)
    except FileNotFoundError as error:
        problems.append(Problem(place, (), f"no settings of this name ship; {error}"))
        return None
    try:
        text = Path(file).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        problems.append(Problem(place._replace(line=line), (), "not UTF-8 text; save the file as UTF-8"))
    except FileNotFoundError:
        files = [file.name for file in Path(path).parent.glob("*.y*ml")]
        problems.append(Problem(place, (), f"no such file{messages.nearest(Path(path).name, files)}"))
    except OSError as error:
        problems.append(Problem(place, (), f"cannot be read: {error.strerror}"))
    else:
        return _mapping(text, path, order, model, problems)
    return None


def _mapping(
    text: str, name: str, order: int, model: type[BaseModel], problems: list[Problem]
) -> Node | None:
    """The top-level mapping of a file; None, and a problem, if there is none."""
    count = len(problems)
    node = YamlText(name, order, True, problems).read(text)
    if node is not None and isinstance(node.value, dict):
        return node
    if len(problems) == count:
        wrong, place = "is empty", Place(order, 0, name)
        if node is not None:
            wrong, place = f"{messages.show(node.plain())} is not allowed", node.place
        remedy = f"write a mapping of {', '.join(model.model_fields)}"
        problems.append(Problem(place, (), f"{wrong}; {remedy}"))
    return None
