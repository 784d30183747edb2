"""The figures of a search. A trial is a record of the report: `values`, `score`, `curve`, `state`,
`epochs`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ageray.report.plot import ACCENT, INK, SERIES, SOFT, error_bars, legend, new_figure

_WIDE, _HIGH = 5.4, 3.3
_SHADES = matplotlib.colormaps["plasma"](np.linspace(0.2, 0.9, 256))  # visible on light and dark pages
_BEST, _RECIPE = SERIES[1], SERIES[2]

Record = dict[str, Any]


def short(path: str) -> str:
    """A setting's path without its most common prefixes."""
    for prefix in ("loss.", "train.stages.0.", "train."):
        path = path.removeprefix(prefix)
    return path


def parallel(report: Record) -> Figure:
    """One line per trial through its values to its score, the better the darker; winner and recipe
    are marked.
    """
    paths, trials = list(report["space"]), _scored(report)
    scores = _scores(trials)
    low, high = min(scores), max(scores)
    figure, axes = new_figure(11, 3.9)
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    worst_first = np.argsort(scores, kind="stable")[::-1]
    for position, index in enumerate(worst_first):
        trial = trials[index]
        order = len(trials) - 1 - position  # 0 for the best
        shade = _SHADES[int(255 * order / max(1, len(trials) - 1))]
        style = {"linewidth": 0.9, "alpha": 0.5}
        if trial["state"] == "finished":
            style = {"linewidth": 1.4, "alpha": 0.95}
        heights = [*_heights(report, trial["values"]), _share(trial["score"], low, high)]
        axes.plot(range(len(heights)), heights, color=shade, **style)
    _mark_winner_and_recipe(axes, report, low, high)
    _label_axes_of_parallel(axes, report, low, high)
    axes.set(xlim=(-0.35, len(paths) + 0.3), ylim=(-0.06, 1.06), yticks=[])
    axes.set_xticks(range(len(paths) + 1), [*map(short, paths), report["tune"]["metric"]])
    axes.tick_params(length=0)
    legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


def _label_axes_of_parallel(axes: Any, report: Record, low: float, high: float) -> None:
    """A vertical line per setting with its ends and middle, and one for the score."""
    paths = list(report["space"])
    text = {"va": "center", "fontsize": 8, "color": INK}
    for column, path in enumerate(paths):
        for height, label in ticks(report["space"][path]):
            axes.text(column - 0.03, height, label, ha="right", **text)
    for height in (0.0, 0.5, 1.0):
        axes.text(len(paths) + 0.03, height, f"{low + height * (high - low):.2f}", ha="left", **text)
    for column in range(len(paths) + 1):
        axes.axvline(column, color=INK, linewidth=0.8)


def _mark_winner_and_recipe(axes: Any, report: Record, low: float, high: float) -> None:
    score_of = {}
    for trial in _scored(report):
        score_of[repr(trial["values"])] = trial["score"]
    winner = report["winner"]
    marked = [("recipe", report["recipe"], {"color": _RECIPE, "linestyle": "--"})]
    if winner["name"] != "recipe":
        marked.append((f"winner: {winner['name']}", winner["values"], {"color": _BEST}))
    for name, values, style in marked:
        heights = _heights(report, values)
        if repr(values) in score_of:
            heights.append(_share(score_of[repr(values)], low, high))
        axes.plot(range(len(heights)), heights, linewidth=2.6, label=name, **style)


def _heights(report: Record, values: Record) -> list[float]:
    """The place of each value in its range."""
    return [place(dimension, values[path]) for path, dimension in report["space"].items()]


def scatter(report: Record, path: str) -> Figure:
    """The score of every trial by its value of one setting."""
    figure, axes = new_figure(_WIDE, _HIGH)
    dimension, trials = report["space"][path], _scored(report)
    stopped, finished = _in_state(trials, "stopped"), _in_state(trials, "finished")
    soft = {"color": SOFT, "fillstyle": "none", "alpha": 0.8}
    _points(axes, path, dimension, stopped, "stopped early", soft)
    _points(axes, path, dimension, finished, "all epochs", {"color": ACCENT, "alpha": 0.9})
    recipe = _x(dimension, report["recipe"][path])
    axes.axvline(recipe, color=_RECIPE, linestyle="--", linewidth=1.4, label="recipe")
    if report["winner"]["name"] != "recipe":
        winner = _x(dimension, report["winner"]["values"][path])
        axes.axvline(winner, color=_BEST, linewidth=1.4, label="winner")
    if dimension["kind"] == "choice":
        names = list(map(_text, dimension["values"]))
        axes.set_xticks(range(len(names)), names)
    elif logarithmic(dimension):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    _zoom(axes, _scores(finished or trials), _scores(trials))
    axes.set(xlabel=short(path), ylabel=label_of(report))
    legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, fontsize=8)
    return figure


def _points(axes: Any, path: str, dimension: Record, trials: list[Record], label: str, style: Record) -> None:
    values = [_x(dimension, trial["values"][path]) for trial in trials]
    axes.plot(values, _scores(trials), "o", label=label, **style)


def curves(report: Record) -> Figure:
    """The best score so far of every trial, epoch by epoch."""
    figure, axes = new_figure(_WIDE, _HIGH)
    trials = _scored(report)
    best = min(trials, key=lambda trial: (trial["state"] != "finished", trial["score"]))
    every = list[float]()
    for trial in trials:
        style = {"color": SOFT, "alpha": 0.6, "linewidth": 0.9}
        if trial is best:
            style = {"color": _BEST, "linewidth": 2.2, "label": f"best: trial {trial['number']}"}
        elif trial["values"] == report["recipe"]:
            style = {"color": _RECIPE, "linewidth": 2, "linestyle": "--", "label": "recipe"}
        epochs = [record["epoch"] for record in trial["epochs"]]
        marker = ""
        if len(epochs) == 1:
            marker = "."
        axes.plot(epochs, trial["curve"], marker=marker, **style)
        if trial["state"] == "stopped":
            axes.plot(epochs[-1:], trial["curve"][-1:], "x", color=SOFT, markersize=4)
        every += trial["curve"]
    _zoom(axes, _scores(_in_state(trials, "finished")) or every, every, 2.5)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="epoch", ylabel=label_of(report))
    legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


def importance(report: Record) -> Figure:
    """The share of the scores' variance that each setting explains."""
    paths, stages = list(report["space"]), report["importance"]
    figure, axes = new_figure(_WIDE, max(1.8, 0.55 * len(paths) + 0.9))
    axes.grid(visible=False)
    axes.grid(axis="x", color=INK, alpha=0.12)
    thick = 0.8 / len(stages)
    order = sorted(paths, key=lambda path: stages[-1]["shares"][path])
    for number, (stage, colour) in enumerate(zip(stages, (SOFT, ACCENT)[-len(stages) :], strict=True)):
        positions = np.arange(len(paths)) + thick * ((len(stages) - 1) / 2 - number)
        label = f"{stage['when']}, {stage['trials']} trials"
        percent = [100 * stage["shares"][path] for path in order]
        axes.barh(positions, percent, thick, color=colour, label=label)
    axes.set_yticks(range(len(order)), list(map(short, order)))
    axes.set(xlabel="share of the variance explained (%)", xlim=(0, 100))
    legend(axes, loc="lower right")
    return figure


def _in_rows(rows: list[Record], key: str) -> tuple[Figure, Any]:
    """Axes with one line per row, named by `key`."""
    figure, axes = new_figure(_WIDE, 0.42 * len(rows) + 1.0)
    axes.grid(visible=False)
    axes.grid(axis="x", color=INK, alpha=0.12)
    axes.set_yticks(range(len(rows)), [row[key] for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    return figure, axes


def finalists(report: Record) -> Figure:
    """MAE on the test faces: a point for each seed, a line at the mean."""
    rows = report["finalists"][::-1]
    figure, axes = _in_rows(rows, "name")
    for number, row in enumerate(rows):
        colour = ACCENT
        if row["name"] == "recipe":
            colour = _RECIPE
        elif row["name"] == report["winner"]["name"]:
            colour = _BEST
        maes = [run["test_mae"] for run in row["runs"]]
        axes.plot(maes, [number] * len(maes), "o", color=colour, alpha=0.75)
        axes.plot([row["test_mae"]] * 2, [number - 0.28, number + 0.28], color=INK, linewidth=2)
    axes.set_xlabel("MAE on the test faces (years); a point a seed")
    return figure


def differences(report: Record) -> Figure:
    """Each finalist minus the recipe, with its interval."""
    rows = report["comparisons"][::-1]
    figure, axes = _in_rows(rows, "first")
    axes.axvline(0, color=INK, linewidth=1)
    for number, row in enumerate(rows):
        error_bars(axes, [number], [row["difference"]], upright=False, color=ACCENT if row["real"] else SOFT)
    axes.set_xlabel("MAE minus the recipe's (years)")
    return figure


def label_of(report: Record) -> str:
    """The label of an axis of scores."""
    metric = str(report["tune"]["metric"])
    return "MAE on the validation faces (years)" if metric == "val_mae" else metric


def logarithmic(dimension: Record) -> bool:
    """Whether a range is searched on a logarithmic scale."""
    return dimension["kind"] == "loguniform" or bool(dimension.get("log"))


def place(dimension: Record, value: Any) -> float:
    """The place of a value in its range, 0 to 1; NaN if it has none."""
    if dimension["kind"] == "choice":
        if value not in dimension["values"]:
            return math.nan
        return float(dimension["values"].index(value) / (len(dimension["values"]) - 1))
    if not isinstance(value, int | float):
        return math.nan  # the recipe does not set it
    if not logarithmic(dimension):
        return _share(value, dimension["low"], dimension["high"])
    if value <= 0:
        return math.nan
    return _share(math.log(value), math.log(dimension["low"]), math.log(dimension["high"]))


def ticks(dimension: Record) -> list[tuple[float, str]]:
    """Heights and labels along a range."""
    if dimension["kind"] == "choice":
        return [(place(dimension, value), _text(value)) for value in dimension["values"]]
    low, high = dimension["low"], dimension["high"]
    middle = math.sqrt(low * high) if logarithmic(dimension) else (low + high) / 2
    return [(0.0, f"{low:g}"), (0.5, f"{middle:.2g}"), (1.0, f"{high:g}")]


def _x(dimension: Record, value: Any) -> float:
    """The coordinate of a value; of a choice its number; NaN if the recipe does not set it."""
    if dimension["kind"] == "choice":
        choices = dimension["values"]
        return float(choices.index(value)) if value in choices else math.nan
    if isinstance(value, int | float):
        return float(value)
    return math.nan


def _text(value: Any) -> str:
    return str(value).replace("$", r"\$")


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _zoom(axes: Any, focus: Sequence[float], every: Sequence[float], reach: float = 1.2) -> None:
    """Cuts the axis above the worst score of `focus` if far worse ones would flatten the others."""
    low, high = min(every), max(every)
    spread = max(max(focus) - min(focus), 0.05 * low)
    top = min(high, max(focus) + reach * spread)
    axes.set_ylim(low - 0.06 * (top - low), top + 0.06 * (top - low))


def _scored(report: Record) -> list[Record]:
    return [trial for trial in report["trials"] if trial["score"] is not None]


def _in_state(trials: list[Record], state: str) -> list[Record]:
    return [trial for trial in trials if trial["state"] == state]


def _scores(trials: list[Record]) -> list[float]:
    return [trial["score"] for trial in trials]
