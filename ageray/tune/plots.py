"""The figures of a search. A trial is a record of the report: `values`, `score`, `curve`, `state`, `epochs`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ageray.report.plot import (
    ACCENT,
    INK,
    SERIES,
    SOFT,
    error_bars,
    legend,
    new_figure,
)

_WIDE, _HIGH = 5.4, 3.3
_SHADES = matplotlib.colormaps["plasma"](np.linspace(0.2, 0.9, 256))  # both ends seen on both grounds
_BEST, _RECIPE = SERIES[1], SERIES[2]

Record = dict[str, Any]


def short(path: str) -> str:
    """A setting's path without what goes without saying."""
    for prefix in ("loss.", "train.stages.0.", "train."):
        path = path.removeprefix(prefix)
    return path


def parallel(report: Record) -> Figure:
    """A line a trial through its values, to its score; the better, the darker. Winner and recipe stand out."""
    paths, trials = list(report["space"]), _scored(report)
    figure, axes = new_figure(11, 3.9)
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    scores = [trial["score"] for trial in trials]
    low, high = min(scores), max(scores)
    order = np.argsort(np.argsort(scores))
    for trial, rank in sorted(zip(trials, order, strict=True), key=lambda pair: -pair[1]):
        heights = [
            *(place(report["space"][path], trial["values"][path]) for path in paths),
            _share(trial["score"], low, high),
        ]
        shade = _SHADES[int(255 * rank / max(1, len(trials) - 1))]
        done = trial["state"] == "finished"
        axes.plot(
            range(len(heights)),
            heights,
            color=shade,
            linewidth=1.4 if done else 0.9,
            alpha=0.95 if done else 0.5,
        )
    _marked(axes, report, paths, low, high)
    for column, path in enumerate(paths):
        for height, text in ticks(report["space"][path]):
            axes.text(column - 0.03, height, text, ha="right", va="center", fontsize=8, color=INK)
    for height in (0.0, 0.5, 1.0):
        axes.text(
            len(paths) + 0.03,
            height,
            f"{low + height * (high - low):.2f}",
            ha="left",
            va="center",
            fontsize=8,
            color=INK,
        )
    for column in range(len(paths) + 1):
        axes.axvline(column, color=INK, linewidth=0.8)
    axes.set(xlim=(-0.35, len(paths) + 0.3), ylim=(-0.06, 1.06), yticks=[])
    axes.set_xticks(range(len(paths) + 1), [*map(short, paths), report["tune"]["metric"]])
    axes.tick_params(length=0)
    legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


def _marked(axes: Any, report: Record, paths: Sequence[str], low: float, high: float) -> None:
    known = {repr(trial["values"]): trial["score"] for trial in _scored(report)}
    for name, values, style in (
        ("recipe", report["recipe"], {"color": _RECIPE, "linestyle": "--"}),
        (f"winner: {report['winner']['name']}", report["winner"]["values"], {"color": _BEST}),
    ):
        if report["winner"]["name"] == "recipe" and name != "recipe":
            continue
        heights = [place(report["space"][path], values[path]) for path in paths]
        if repr(values) in known:
            heights.append(_share(known[repr(values)], low, high))
        axes.plot(range(len(heights)), heights, linewidth=2.6, label=name, **style)


def scatter(report: Record, path: str) -> Figure:
    """The score of every trial by its value of one setting."""
    figure, axes = new_figure(_WIDE, _HIGH)
    dimension, trials = report["space"][path], _scored(report)
    names = [_text(value) for value in dimension["values"]] if dimension["kind"] == "choice" else None
    for states, label, style in (
        (("stopped",), "stopped early", {"color": SOFT, "fillstyle": "none", "alpha": 0.8}),
        (("finished",), "all epochs", {"color": ACCENT, "alpha": 0.9}),
    ):
        chosen = [trial for trial in trials if trial["state"] in states]
        axes.plot(
            [_x(dimension, trial["values"][path]) for trial in chosen],
            [trial["score"] for trial in chosen],
            "o",
            label=label,
            **style,
        )
    axes.axvline(
        _x(dimension, report["recipe"][path]), color=_RECIPE, linestyle="--", linewidth=1.4, label="recipe"
    )
    if report["winner"]["name"] != "recipe":
        axes.axvline(
            _x(dimension, report["winner"]["values"][path]), color=_BEST, linewidth=1.4, label="winner"
        )
    if names:
        axes.set_xticks(range(len(names)), names)
    elif logarithmic(dimension):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    finished = [trial["score"] for trial in trials if trial["state"] == "finished"] or [
        trial["score"] for trial in trials
    ]
    _zoom(axes, finished, [trial["score"] for trial in trials])
    axes.set(xlabel=short(path), ylabel=label_of(report))
    legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, fontsize=8)
    return figure


def curves(report: Record) -> Figure:
    """The best so far of every trial, epoch by epoch."""
    figure, axes = new_figure(_WIDE, _HIGH)
    trials = _scored(report)
    best = min(trials, key=lambda trial: (trial["state"] != "finished", trial["score"]))
    for trial in trials:
        style = {"color": SOFT, "alpha": 0.6, "linewidth": 0.9}
        if trial is best:
            style = {"color": _BEST, "linewidth": 2.2, "label": f"best: trial {trial['number']}"}
        elif trial["values"] == report["recipe"]:
            style = {"color": _RECIPE, "linewidth": 2, "linestyle": "--", "label": "recipe"}
        epochs = [record["epoch"] for record in trial["epochs"]]
        axes.plot(epochs, trial["curve"], marker="." if len(epochs) == 1 else "", **style)
        if trial["state"] == "stopped":
            axes.plot(epochs[-1:], trial["curve"][-1:], "x", color=SOFT, markersize=4)
    every = [value for trial in trials for value in trial["curve"]]
    _zoom(axes, [trial["score"] for trial in trials if trial["state"] == "finished"] or every, every, 2.5)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="epoch", ylabel=label_of(report))
    legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


def importance(report: Record) -> Figure:
    """How much of the scores' variance each setting explains."""
    paths, stages = list(report["space"]), report["importance"]
    figure, axes = new_figure(_WIDE, max(1.8, 0.55 * len(paths) + 0.9))
    axes.grid(visible=False)
    axes.grid(axis="x", color=INK, alpha=0.12)
    thick = 0.8 / len(stages)
    order = sorted(paths, key=lambda path: stages[-1]["shares"][path])
    for number, (stage, colour) in enumerate(zip(stages, (SOFT, ACCENT)[-len(stages) :], strict=True)):
        places = np.arange(len(paths)) + thick * ((len(stages) - 1) / 2 - number)
        label = f"{stage['when']}, {stage['trials']} trials"
        axes.barh(places, [100 * stage["shares"][path] for path in order], thick, color=colour, label=label)
    axes.set_yticks(range(len(order)), [short(path) for path in order])
    axes.set(xlabel="share of the variance explained (%)", xlim=(0, 100))
    legend(axes, loc="lower right")
    return figure


def _in_rows(count: int) -> tuple[Figure, Any]:
    """Axes as high as so many named rows, to be read across."""
    figure, axes = new_figure(_WIDE, 0.42 * count + 1.0)
    axes.grid(visible=False)
    axes.grid(axis="x", color=INK, alpha=0.12)
    return figure, axes


def finalists(report: Record) -> Figure:
    """MAE on the test faces: a point a seed, a line at the mean."""
    rows = report["finalists"][::-1]
    figure, axes = _in_rows(len(rows))
    for number, row in enumerate(rows):
        colour = (
            _RECIPE
            if row["name"] == "recipe"
            else _BEST
            if row["name"] == report["winner"]["name"]
            else ACCENT
        )
        axes.plot(
            [run["test_mae"] for run in row["runs"]],
            [number] * len(row["runs"]),
            "o",
            color=colour,
            alpha=0.75,
        )
        axes.plot([row["test_mae"]] * 2, [number - 0.28, number + 0.28], color=INK, linewidth=2)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("MAE on the test faces (years); a point a seed")
    return figure


def differences(report: Record) -> Figure:
    """Each finalist minus the recipe, with its interval."""
    rows = report["comparisons"][::-1]
    figure, axes = _in_rows(len(rows))
    axes.axvline(0, color=INK, linewidth=1)
    for number, row in enumerate(rows):
        error_bars(axes, [number], [row["difference"]], upright=False, color=ACCENT if row["real"] else SOFT)
    axes.set_yticks(range(len(rows)), [row["first"] for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("MAE minus the recipe's (years)")
    return figure


def label_of(report: Record) -> str:
    """What a score is, for an axis."""
    return (
        "MAE on the validation faces (years)"
        if report["tune"]["metric"] == "val_mae"
        else report["tune"]["metric"]
    )


def logarithmic(dimension: Record) -> bool:
    """Whether a range's logarithm is evenly spread."""
    return dimension["kind"] == "loguniform" or bool(dimension.get("log"))


def place(dimension: Record, value: Any) -> float:
    """Where a value lies in its range, 0 to 1."""
    if dimension["kind"] == "choice":
        return (
            dimension["values"].index(value) / (len(dimension["values"]) - 1)
            if value in dimension["values"]
            else math.nan
        )
    if not isinstance(value, int | float):
        return math.nan  # the recipe has none
    scale = math.log if logarithmic(dimension) else float
    return (
        _share(scale(value), scale(dimension["low"]), scale(dimension["high"]))
        if not logarithmic(dimension) or value > 0
        else math.nan
    )


def ticks(dimension: Record) -> list[tuple[float, str]]:
    """Heights and texts along a range."""
    if dimension["kind"] == "choice":
        return [(place(dimension, value), _text(value)) for value in dimension["values"]]
    low, high = dimension["low"], dimension["high"]
    middle = math.sqrt(low * high) if logarithmic(dimension) else (low + high) / 2
    return [(0.0, f"{low:g}"), (0.5, f"{middle:.2g}"), (1.0, f"{high:g}")]


def _x(dimension: Record, value: Any) -> float:
    if dimension["kind"] != "choice":
        return float(value) if isinstance(value, int | float) else math.nan
    return float(dimension["values"].index(value)) if value in dimension["values"] else math.nan


def _text(value: Any) -> str:
    return str(value).replace("$", r"\$")


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _zoom(axes: Any, shown: Sequence[float], every: Sequence[float], reach: float = 1.2) -> None:
    """Leaves out how very bad the worst are where that would flatten all others."""
    low, high = min(every), max(every)
    spread = max(max(shown) - min(shown), 0.05 * low)
    top = min(high, max(shown) + reach * spread)
    axes.set_ylim(low - 0.06 * (top - low), top + 0.06 * (top - low))


def _scored(report: Record) -> list[Record]:
    return [trial for trial in report["trials"] if trial["score"] is not None]
