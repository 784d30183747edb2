"""The space of a search, checked against the experiment before anything starts. No Ray."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from ageray.config import ParsedConfig, flat, messages
from ageray.config.nodes import Place, Problem
from ageray.config.overrides import parts
from ageray.errors import UserError
from ageray.experiment import Experiment, Tune
from ageray.experiment.tune import Choice, Dimension, Int
from ageray.train.plan import check_model

_FIXED = re.compile(
    r"(align|data|protocol|scale|tune)(\..*)?|train\.(seed|calibrate|stages\.\d+\.(epochs|shards|name))"
)
_MAX_CORNERS = 1024
_DIGITS = 4  # significant digits of a proposed number

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Space:
    """The searched settings of an experiment, by path: their ranges and the recipe's own values.

    notes: which settings are not searched, and why.
    """

    written: ParsedConfig
    ranges: dict[str, Dimension]
    defaults: dict[str, Any]
    notes: list[str]

    @property
    def tune(self) -> Tune:
        """The search's settings."""
        assert self.written.experiment.tune is not None
        return self.written.experiment.tune

    @property
    def epochs(self) -> int:
        """Of a trial that is not stopped early."""
        return sum(stage.epochs for stage in self.written.experiment.train.stages)

    def largest(self, path: str) -> Any:
        """The largest value that the number at this path of the settings takes in the search."""
        value: Any = self.written.experiment
        for name in path.split("."):
            value = getattr(value, name)
        dimension = self.ranges.get(path)
        return value if dimension is None else max(_ends(dimension))

    def experiment(self, values: Values) -> Experiment:
        """The experiment with these values.

        Raises UserError, with file and line of the range, for a value that is not allowed.
        """
        return self.written.changed((path, value, self.place(path)) for path, value in values.items())

    def place(self, path: str) -> Place:
        """File and line of a range."""
        return self.written.root.closest_node(("tune", "space", path)).place

    def holds(self, values: Values) -> bool:
        """Whether every value lies in its range."""
        return all(_inside(self.ranges[path], value) for path, value in values.items())


def check(written: ParsedConfig) -> Space:
    """The space that `tune` asks for.

    Raises UserError, with file and line, for a path that does not exist (with the nearest one), is
    fixed in a search or is not used; for a range whose end the experiment cannot have; and for a
    metric that no epoch reports.
    """
    tune = written.experiment.tune
    if tune is None:
        raise UserError("no search space is given; add a file with tune, e.g. configs/tune/loss.yaml")
    for number, stage in enumerate(written.experiment.train.stages):
        if stage.steps is not None:
            raise UserError(
                f"train.stages.{number}.steps={stage.steps}: a search counts epochs; set epochs instead, and "
                f"train.stages.{number}.steps=null"
            )
    leaves = flat(written.experiment.model_dump(mode="json"))
    problems, notes = list[str](), list[str]()
    ranges, defaults = dict[str, Dimension](), dict[str, Any]()
    for path, dimension in tune.space.items():
        problem, unused = _problem(path, leaves)
        if unused and dimension.optional:
            notes.append(f"{path} is not searched: {problem}")
        elif problem:
            place = written.root.closest_node(("tune", "space", path)).place
            remedy = "; or mark it optional: true" if unused else ""
            problems.append(str(Problem(place, (), f"{path}: {problem}{remedy}")))
        else:
            ranges[path], defaults[path] = dimension, leaves[path]
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        raise UserError("\n  ".join([f"{len(problems)} problems:", *problems]))
    if not ranges:
        raise UserError(f"tune.space: nothing is left to search; {'; '.join(notes)}")
    space = Space(written, ranges, defaults, notes)
    _check_metric(space, tune.metric)
    _check_corners(space)
    return space


def nearest(path: str, used: list[str], others: list[str]) -> str | None:
    """The path that was probably meant, or None.

    It is the nearest one with the same last key, among those in use if one has it; else the nearest
    of all.
    """
    last = path.rpartition(".")[2]
    for candidates in (used, others):
        same = []
        for other in candidates:
            if other.rpartition(".")[2] == last:
                same.append(other)
        if same:
            return get_close_matches(path, same, n=1, cutoff=0.0)[0]
    return next(iter(get_close_matches(path, [*used, *others], n=1, cutoff=0.6)), None)


def _problem(path: str, leaves: Values) -> tuple[str, bool]:
    """Why a path cannot be searched, '' if it can; and whether it is only unused by this
    experiment.
    """
    keys = parts(path)
    if _FIXED.fullmatch(path):
        return "is fixed in a search; set it for all trials instead", False
    schemas = messages.at(messages.schema(Experiment), keys)
    if path in leaves and not any(branch.get("type") == "object" for branch in messages.members(schemas)):
        return "", False
    if inside := _below(path, leaves):
        return f"is a group of settings; name one, e.g. {inside[0]}", False
    section = str(keys[0])
    if schemas and (section in leaves or _below(section, leaves)):
        return _unused(path, leaves), True
    used = []
    for leaf in leaves:
        if not _FIXED.fullmatch(leaf):
            used.append(leaf)
    near = nearest(path, used, list(_loss_paths()))
    hint = f"; did you mean {near!r}?" if near else ""
    return f"no such setting{hint}", False


def _below(path: str, leaves: Values) -> list[str]:
    """The settings in a group."""
    return [leaf for leaf in leaves if leaf.startswith(f"{path}.")]


def _unused(path: str, leaves: Values) -> str:
    section, name = path.split(".")[:2]
    if section == "loss":
        return f"loss.{name} is off in this experiment; turn it on (loss.{name}={{}})"
    if section == "model":
        return f"model '{leaves['model.name']}' has no such setting"
    return "this experiment has no such setting"


def _loss_paths() -> Iterator[str]:
    schema = messages.schema(Experiment)
    for term in messages.names(messages.at(schema, ("loss",))):
        for option in messages.names(messages.at(schema, ("loss", term))):
            yield f"loss.{term}.{option}"


def _check_metric(space: Space, metric: str) -> None:
    """Raises UserError for a metric that no epoch reports, or that trials cannot be compared by."""
    reported = ["val_mae", "loss"]
    for name, term in space.written.experiment.loss:
        if name != "auxiliary" and term is not None:
            reported.append(f"loss.{name}")
    place = space.written.root.closest_node(("tune", "metric")).place
    if metric not in reported:
        near = get_close_matches(metric, reported, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        text = f"{metric!r} is never reported{hint} (reported: {', '.join(reported)})"
        raise UserError(str(Problem(place, ("tune", "metric"), text)))
    for path in space.ranges:
        if metric != "val_mae" and path.startswith("loss."):
            text = f"{metric} is another quantity in each trial where {path} is searched; use val_mae"
            raise UserError(str(Problem(place, ("tune", "metric"), text)))


def _check_corners(space: Space) -> None:
    """Makes the experiment of every corner of the space; builds each combination of model and loss
    terms.

    Raises UserError for a corner that cannot be.
    """
    combinations = set[str]()
    for corner in _corners(space):
        experiment = space.experiment(corner)
        batch_size, accumulate = experiment.train.batch_size, experiment.train.accumulate
        if batch_size % accumulate:
            raise UserError(
                f"tune.space: train.batch_size={batch_size} cannot be cut into train.accumulate={accumulate} "
                "equal parts; leave out one of the two values"
            )
        terms = []
        for name, term in experiment.loss:
            if term is not None:
                terms.append(name)
        combination = f"{experiment.model.model_dump_json()} {terms}"
        if combination not in combinations:
            combinations.add(combination)
            check_model(experiment)


def _corners(space: Space) -> Iterator[dict[str, Any]]:
    """Every combination of ends and choices.

    Of a space with more than 1,024: each end alone, then all lows, then all highs.
    """
    ends = dict(zip(space.ranges, map(_ends, space.ranges.values()), strict=True))
    if math.prod(map(len, ends.values())) <= _MAX_CORNERS:
        for corner in itertools.product(*ends.values()):
            yield dict(zip(ends, corner, strict=True))
        return
    lows, highs = dict[str, Any](), dict[str, Any]()
    for path, values in ends.items():
        lows[path], highs[path] = values[0], values[-1]
        for value in values:
            yield {path: value}
    yield lows
    yield highs


def _ends(dimension: Dimension) -> tuple[Any, ...]:
    if isinstance(dimension, Choice):
        return dimension.values
    return dimension.low, dimension.high


def _inside(dimension: Dimension, value: Any) -> bool:
    if isinstance(dimension, Choice):
        return value in dimension.values
    return isinstance(value, int | float) and dimension.low <= value <= dimension.high


def rounded(dimension: Dimension, value: Any) -> Any:
    """A proposed number with four significant digits, within its range; integers and choices
    unchanged.
    """
    if isinstance(dimension, Int | Choice):
        return value
    return min(max(float(f"{value:.{_DIGITS}g}"), dimension.low), dimension.high)
