"""Reading, writing and naming an `Experiment`."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ageray.config.load import parse, parse_text, validate
from ageray.config.messages import Schema, schema
from ageray.config.nodes import Keys, Node, Place, Problem, mistake, wrap
from ageray.config.overrides import parts, put
from ageray.config.yaml_text import write
from ageray.experiment import Experiment

_RENAMED: dict[Keys, str] = {("scale", "fold_workers"): "parallel_trainings"}
"""Keys in the files of runs and bundles of earlier versions."""

_ADDED: dict[tuple[str, ...], Any] = {
    ("data", "filters", "max_second_score"): None,
    ("data", "sets", "*", "protocol", "tests"): "test",
    ("data", "sets"): [],
    ("loss", "crps"): None,
    ("loss", "distillation"): None,
    ("loss", "dldl_v2", "label_std"): False,
    ("loss", "neighborhood", "label_std"): False,
    ("loss", "neighborhood", "reduction"): "mean",
    ("model", "auxiliary"): False,
    ("model", "members", "*", "model", "auxiliary"): False,
    ("model", "decode", "levels"): [],
    ("model", "decode", "views"): [{"zoom": 1.0, "size": 0}],
    ("model", "hidden"): 0,
    ("model", "weights_head"): True,
    ("protocol", "tests"): "test",
    ("train", "balance_count"): 5000,
    ("train", "balance_power"): 1.0,
    ("train", "name"): None,
    ("train", "select"): "mae",
    ("train", "shuffle_all"): False,
    ("train", "sizes"): [],
    ("train", "stages", "*", "optimizer", "frozen_blocks"): 0,
    ("train", "stages", "*", "optimizer", "nesterov"): True,
    ("train", "stages", "*", "optimizer", "rho"): 0.9,
    ("train", "stages", "*", "steps"): None,
    ("train", "teacher"): None,
    ("train", "teacher_faces"): "augmented",
    ("train", "thinned_ages"): [20, 60],
    ("train", "wise_ft"): [],
}
"""Settings that are newer than the first run folders, with their defaults; `*` is any element of a
list. At its default such a setting does not count in the digest, so a run keeps its name."""


@dataclass(frozen=True)
class ParsedConfig:
    """An experiment, and the tree of what was written, each value with its place."""

    experiment: Experiment
    root: Node

    def changed(self, values: Iterable[tuple[str, Any, Place]]) -> Experiment:
        """The experiment without `tune` and with other values, each with its path and its place.

        Raises UserError as `load` does.
        """
        root = copy.deepcopy(self.root)
        root.value.pop("tune", None)
        problems: list[Problem] = []
        for path, value, place in values:
            put(root, parts(path), wrap(value, place), schema(Experiment), problems)
        return validate(Experiment, root, problems)


def load(paths: Sequence[str], overrides: Sequence[str] = (), base: Experiment | None = None) -> Experiment:
    """The experiment in configuration files with disjoint top-level keys and overrides
    `a.b.c=value`.

    An element of a list goes by its index (`train.stages.0.epochs=3`). `a.b=null` removes the
    key, so that its default holds. A top-level key that no file has comes from `base`: a bundle's
    experiment, to evaluate it on other data.

    Raises UserError with every problem, one a line, with file and line or with the argument. A
    `tune` is a problem here; `read` takes it.
    """
    config = read(paths, overrides, base)
    if config.experiment.tune is not None:
        place = config.root.closest_node(("tune",)).place
        raise mistake([Problem(place, ("tune",), "is for ageray tune alone; leave it out here")])
    return config.experiment


def read(paths: Sequence[str], overrides: Sequence[str] = (), base: Experiment | None = None) -> ParsedConfig:
    """What `load` reads, with the places of all values. `tune` is allowed."""
    content = base.model_dump(mode="json") if base else None
    if content and any(word.startswith("data.shards=") for word in overrides):
        content["data"]["sets"] = []  # shards of the command line replace the sets of the training
    return ParsedConfig(*parse(Experiment, paths, overrides, content, "the given experiment"))


def loads(text: str, name: str) -> Experiment:
    """The experiment in the YAML `text` that `dump` wrote; messages call it `name`.

    Raises as `load`.
    """
    return parse_text(Experiment, text, name, _RENAMED)


def dump(experiment: Experiment) -> str:
    """The whole experiment as YAML, fields in the order of ageray.experiment. `loads` reads it
    back."""
    return write(experiment.model_dump(mode="json"))


def digest(experiment: Experiment) -> str:
    """The identity of an experiment in 8 hex digits: SHA-256 of its fields as canonical JSON.

    `scale` and `storage` are left out: the machine and the location of the files do not change
    what an experiment is. `data` counts with its paths, because nothing else tells two sets
    apart. A newer setting counts only if it is not at its default (`_ADDED`).
    """
    content = experiment.model_dump(mode="json", exclude={"scale", "storage"})
    for path, default in _ADDED.items():
        _drop_default(content, path, default)
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:8]


def _drop_default(content: Any, path: tuple[str, ...], default: Any) -> None:
    """Removes the value at `path` from nested dictionaries and lists if it equals `default`."""
    key, *rest = path
    if key == "*":
        for element in content:
            _drop_default(element, tuple(rest), default)
    elif isinstance(content, dict) and key in content:
        if rest:
            _drop_default(content[key], tuple(rest), default)
        elif content[key] == default:
            del content[key]


def with_absolute_paths(experiment: Experiment) -> Experiment:
    """The experiment with `model.weights` and `train.teacher` as absolute paths or urls, for
    processes in other folders.

    Only these two are read in workers. Names (`none`, `imagenet`, `start`, `zoo:NAME`) stay.
    """
    from ageray import storage  # imports numpy, which reading settings does not need

    model, train = experiment.model, experiment.train
    if model.weights not in ("none", "imagenet") and not model.weights.startswith("zoo:"):
        model = model.model_copy(update={"weights": storage.absolute(model.weights)})
    if train.teacher is not None and train.teacher != "start" and not train.teacher.startswith("zoo:"):
        train = train.model_copy(update={"teacher": storage.absolute(train.teacher)})
    return experiment.model_copy(update={"model": model, "train": train})


def json_schema() -> Schema:
    """The JSON schema of the configuration files: keys, defaults, ranges and descriptions.

    The line breaks of docstrings are not part of it.
    """
    content = _join_lines(Experiment.model_json_schema())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **content}


def _join_lines(node: Any) -> Any:
    if isinstance(node, dict):
        for key, value in node.items():
            node[key] = _join_lines(value)
        if isinstance(node.get("description"), str):
            node["description"] = " ".join(node["description"].split())
    elif isinstance(node, list):
        node[:] = map(_join_lines, node)
    return node
