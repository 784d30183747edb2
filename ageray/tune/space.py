"""The space of a search, checked against the experiment before anything starts. No Ray."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from ageray.config import ParsedConfig, messages
from ageray.config.nodes import Place, Problem, flat
from ageray.config.overrides import parts
from ageray.errors import UserError
from ageray.experiment import Experiment, Tune
from ageray.experiment.tune import Choice, Dimension, Int
from ageray.train.plan import check_model

_FIXED = re.compile(
    r"(align|data|protocol|scale|tune)(\..*)?|train\.(seed|calibrate|stages\.\d+\.(epochs|shards|name))"
)
_MOST_CORNERS = 1024
_DIGITS = 4  # significant ones of a number that is proposed

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Space:
    """The searched settings of an experiment: path to range, and what the recipe itself has there. `notes` say what was left out."""

    written: ParsedConfig
    ranges: dict[str, Dimension]
    defaults: dict[str, Any]
    notes: list[str]

    @property
    def tune(self) -> Tune:
        """The search's settings."""
        assert self.written.experiment.tune is not None
        return self.written.experiment.tune

    def experiment(self, values: Values) -> Experiment:
        """The experiment with these values. Raises UserError, placed at the range, for values that it cannot have."""
        return self.written.changed((path, value, self.place(path)) for path, value in values.items())

    def place(self, path: str) -> Place:
        """Where a range was written."""
        return self.written.root.nearest(("tune", "space", path)).place

    def holds(self, values: Values) -> bool:
        """Whether every value lies in its range."""
        return all(_inside(self.ranges[path], value) for path, value in values.items())


def check(written: ParsedConfig) -> Space:
    """The space that `tune` asks for. Raises UserError, with file and line, for a path that does not exist (with the nearest), is held fixed or
    is not used, a range whose end the experiment cannot have, and a metric that no epoch reports."""
    tune = written.experiment.tune
    if tune is None:
        raise UserError("no search space is given; add a file with tune, e.g. configs/tune/loss.yaml")
    leaves = flat(written.experiment.model_dump(mode="json"))
    problems, notes, kept = list[str](), list[str](), dict[str, Dimension]()
    for path, dimension in tune.space.items():
        wrong, unused = _trouble(path, leaves)
        if unused and dimension.optional:
            notes.append(f"{path} is not searched: {wrong}")
        elif wrong:
            place = written.root.nearest(("tune", "space", path)).place
            problems.append(
                str(Problem(place, (), f"{path}: {wrong}{'; or mark it optional: true' if unused else ''}"))
            )
        else:
            kept[path] = dimension
    if problems:
        raise UserError(
            problems[0] if len(problems) == 1 else "\n  ".join([f"{len(problems)} problems:", *problems])
        )
    if not kept:
        raise UserError(f"tune.space: nothing is left to search; {'; '.join(notes)}")
    space = Space(written, kept, {path: leaves[path] for path in kept}, notes)
    _check_metric(space, tune.metric)
    _check_corners(space)
    return space


def nearest(path: str, used: list[str], others: list[str]) -> str | None:
    """The path that was probably meant: the nearest with the same last key, of those in use if there is one, else the nearest of all."""
    last, known = path.rpartition(".")[2], [*used, *others]
    same = [other for other in used if other.rpartition(".")[2] == last] or [
        other for other in others if other.rpartition(".")[2] == last
    ]
    near = get_close_matches(path, same or known, n=1, cutoff=0.0 if same else 0.6)
    return near[0] if near else None


def _trouble(path: str, leaves: Values) -> tuple[str, bool]:
    """What is wrong with a path, '' if nothing is; and whether it is only not used by this experiment."""
    keys = parts(path)
    if _FIXED.fullmatch(path):
        return "is held fixed in a search; set it for all trials instead", False
    schemas = messages.at(keys)
    if path in leaves and not any(branch.get("type") == "object" for branch in messages.branches(schemas)):
        return "", False
    if inside := [leaf for leaf in leaves if leaf.startswith(path + ".")]:
        return f"is a group of settings; name one, e.g. {inside[0]}", False
    if (schemas and keys[0] in leaves) or (
        schemas and any(leaf.startswith(f"{keys[0]}.") for leaf in leaves)
    ):
        return _unused(path, leaves)
    near = nearest(path, [leaf for leaf in leaves if not _FIXED.fullmatch(leaf)], list(_loss_paths()))
    return f"no such setting{f'; did you mean {near!r}?' if near else ''}", False


def _unused(path: str, leaves: Values) -> tuple[str, bool]:
    section, name = path.split(".")[:2]
    if section == "loss":
        return f"loss.{name} is off in this experiment; turn it on (loss.{name}={{}})", True
    return (
        f"model '{leaves['model.name']}' has no such setting"
        if section == "model"
        else "this experiment has no such setting",
        True,
    )


def _loss_paths() -> Iterator[str]:
    for term in messages.names(messages.at(("loss",))):
        yield from (f"loss.{term}.{option}" for option in messages.names(messages.at(("loss", term))))


def _check_metric(space: Space, metric: str) -> None:
    experiment = space.written.experiment
    terms = [f"loss.{name}" for name, term in experiment.loss if name != "auxiliary" and term is not None]
    known = ["val_mae", "loss", *terms]
    place = space.written.root.nearest(("tune", "metric")).place
    if metric not in known:
        near = get_close_matches(metric, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(
            str(
                Problem(
                    place,
                    ("tune", "metric"),
                    f"{metric!r} is never reported{hint} (reported: {', '.join(known)})",
                )
            )
        )
    searched = next((path for path in space.ranges if path.startswith("loss.")), None)
    if metric != "val_mae" and searched:
        wrong = f"{metric} is another quantity in each trial where {searched} is searched; use val_mae"
        raise UserError(str(Problem(place, ("tune", "metric"), wrong)))


def _check_corners(space: Space) -> None:
    """Makes the experiment of every corner of the space, and binds each different combination of model and loss terms."""
    bound = set[str]()
    for corner in _corners(space):
        made = space.experiment(corner)
        terms = [name for name, term in made.loss if term is not None]
        combination = f"{made.model.model_dump_json()} {terms}"
        if combination not in bound:
            bound.add(combination)
            check_model(made)


def _corners(space: Space) -> Iterator[dict[str, Any]]:
    """Every combination of ends and choices; of a space with too many, each end beside the recipe's own values, and all lows and all highs."""
    ends = {path: list(_ends(dimension)) for path, dimension in space.ranges.items()}
    count = 1
    for values in ends.values():
        count *= len(values)
    if count <= _MOST_CORNERS:
        yield from (dict(zip(ends, corner, strict=True)) for corner in itertools.product(*ends.values()))
        return
    yield from ({path: value} for path, values in ends.items() for value in values)
    yield {path: values[0] for path, values in ends.items()}
    yield {path: values[-1] for path, values in ends.items()}


def _ends(dimension: Dimension) -> tuple[Any, ...]:
    return dimension.values if isinstance(dimension, Choice) else (dimension.low, dimension.high)


def _inside(dimension: Dimension, value: Any) -> bool:
    if isinstance(dimension, Choice):
        return value in dimension.values
    return isinstance(value, int | float) and dimension.low <= value <= dimension.high


def rounded(dimension: Dimension, value: Any) -> Any:
    """A proposed number to four significant digits, within its range; others as they are."""
    if isinstance(dimension, Int | Choice):
        return value
    return min(max(float(f"{value:.{_DIGITS}g}"), dimension.low), dimension.high)
