"""The figures of an evaluation. Ages and errors in years. Shape letters: N faces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from ageray.report.plot import (
    ACCENT,
    INK,
    SERIES,
    SOFT,
    columns,
    error_bars,
    figure_svg,
    legend,
    new_figure,
)

Ages = NDArray[np.float64]

_WIDE, _HIGH = 5.4, 3.3  # inches: at half a page's width, and on a phone, the letters stay readable
_CLOUD = (0.23, 0.51, 0.96)  # of densities, which are pixels: stands out on both grounds
_FEW = 800  # faces up to which they are drawn one by one
_CELLS = 200  # along an axis; a cell is a year up to there
_FARTHEST = 40  # years of error up to which bars are drawn
_YEARS = matplotlib.colors.ListedColormap(
    matplotlib.colormaps["plasma"](np.linspace(0.25, 0.92, 256))
)  # both ends seen on both grounds


def age_shares(ages: dict[str, dict[str, int]]) -> Markup:
    """Share of the images in each decade, of training and of test; `ages` as in `Audit.ages`."""
    figure, axes = new_figure(_WIDE, 2.6)
    names = _decade_names([name for part in ages.values() for name in part])
    for side, (part, colour) in enumerate((("train", SOFT), ("test", ACCENT))):
        total = max(sum(ages[part].values()), 1)
        shares = [100 * ages[part].get(name, 0) / total for name in names]
        axes.bar(np.arange(len(names)) + 0.4 * (side - 0.5), shares, 0.4, color=colour, label=part)
    _decades(axes, names)
    axes.set_ylabel("images of the part (%)")
    legend(axes)
    return figure_svg(figure)


def cs_curve(curve: Sequence[dict[str, Any]], constant: Sequence[float] | None) -> Markup:
    """CS(T) with the band of its intervals; `constant` is that of always saying one age, at the same T."""
    figure, axes = new_figure(_WIDE, _HIGH)
    limits, (value, low, high) = (
        [row["years"] for row in curve],
        100 * columns([row["share"] for row in curve]),
    )
    axes.fill_between(limits, low, high, color=ACCENT, alpha=0.22, linewidth=0)
    axes.plot(limits, value, color=ACCENT, label="model", marker="o", markersize=3)
    if constant is not None:
        axes.plot(
            limits,
            [100 * share for share in constant],
            color=SOFT,
            linestyle="--",
            label="always the same age",
        )
    axes.set(
        xlabel="T (years)",
        ylabel="error of at most T (% of faces)",
        xlim=(min(limits), max(limits)),
        ylim=(0, 100),
    )
    legend(axes, loc="upper left")
    return figure_svg(figure)


def predicted_against_true(true_N: Ages, predicted_N: Ages) -> tuple[Markup, str]:
    """Where the faces lie: one by one if they are few, else counted in cells of a year; the diagonal, and the median by 5 years of true age.

    With it a sentence on how they are drawn."""
    figure, axes = new_figure(_WIDE, 4.4)
    axes.grid(visible=True, color=INK, alpha=0.12)
    first, last = _range(np.concatenate([true_N, predicted_N]))
    if len(true_N) <= _FEW:
        axes.plot(true_N, predicted_N, ".", color=ACCENT, alpha=0.45, markersize=5, rasterized=True)
    else:
        edges = np.linspace(first, last, int(min(last - first, _CELLS)) + 1)
        counts, _, _ = np.histogram2d(predicted_N, true_N, [edges, edges])
        cells = np.full((*counts.shape, 4), (*_CLOUD, 0.0))
        cells[counts > 0, 3] = 0.12 + 0.88 * np.log1p(counts[counts > 0]) / np.log1p(counts.max())
        axes.imshow(
            cells, origin="lower", extent=(first, last, first, last), interpolation="none", aspect="auto"
        )
    axes.plot([first, last], [first, last], color=INK, linewidth=1, linestyle="--", label="predicted = true")
    axes.plot(*_medians(true_N, predicted_N), color=INK, linewidth=1.8, label="median prediction")
    axes.set(xlabel="true age", ylabel="predicted age", xlim=(first, last), ylim=(first, last))
    legend(axes, loc="upper left")
    few = len(true_N) <= _FEW
    return figure_svg(
        figure
    ), "Each point is a face." if few else "The more faces in a cell, the stronger, on a logarithmic scale."


def _range(ages: Ages) -> tuple[float, float]:
    first, last = 5 * np.floor(ages.min() / 5), 5 * np.ceil(ages.max() / 5)
    return float(first), float(max(last, first + 5))


def _medians(true_N: Ages, predicted_N: Ages, fewest: int = 5) -> tuple[list[float], list[float]]:
    band_N = np.floor(true_N / 5)
    bands = [band for band in np.unique(band_N) if (band_N == band).sum() >= fewest]
    return [5 * float(band) + 2.5 for band in bands], [
        float(np.median(predicted_N[band_N == band])) for band in bands
    ]


def errors(error_N: Ages) -> Markup:
    """How many faces have which error, in steps of a year; the outermost bars hold what lies beyond."""
    figure, axes = new_figure(_WIDE, _HIGH)
    reach = int(np.clip(np.ceil(np.abs(error_N).max()), 5, _FARTHEST))
    edges = np.arange(-reach, reach + 2) - 0.5
    counts, _ = np.histogram(np.clip(error_N, -reach, reach), edges)
    axes.bar(edges[:-1] + 0.5, counts, 0.9, color=ACCENT)
    axes.axvline(0, color=INK, linewidth=1)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="predicted − true age (years)", ylabel="faces")
    return figure_svg(figure)


def mae_by_age(by_age: Sequence[dict[str, Any]]) -> Markup:
    """MAE of each band of true age."""
    figure, axes = new_figure(_WIDE, _HIGH)
    places = np.arange(len(by_age))
    axes.bar(places, columns([row["mae"] for row in by_age])[0], 0.7, color=ACCENT)
    error_bars(axes, places, [row["mae"] for row in by_age], fmt="none", ecolor=INK)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("MAE (years)")
    _decades(axes, [row["ages"] for row in by_age])
    return figure_svg(figure)


def bias_by_age(by_age: Sequence[dict[str, Any]]) -> Markup:
    """Bias of each band of true age."""
    figure, axes = new_figure(_WIDE, _HIGH)
    axes.axhline(0, color=INK, linewidth=1)
    error_bars(axes, np.arange(len(by_age)), [row["bias"] for row in by_age], color=ACCENT)
    axes.set_ylabel("bias (years)")
    _decades(axes, [row["ages"] for row in by_age])
    return figure_svg(figure)


def calibration(curve: Sequence[dict[str, Any]]) -> Markup:
    """Share of ages at or below the posterior's quantiles, by the level of the quantile."""
    figure, axes = new_figure(_WIDE, _HIGH)
    levels, (value, low, high) = (
        [100 * row["level"] for row in curve],
        100 * columns([row["observed"] for row in curve]),
    )
    axes.plot([0, 100], [0, 100], color=INK, linewidth=1, linestyle="--", label="calibrated")
    axes.fill_between(levels, low, high, color=ACCENT, alpha=0.22, linewidth=0)
    axes.plot(levels, value, color=ACCENT, marker="o", markersize=3.5, label="model")
    axes.set(
        xlabel="level of the quantile (%)",
        ylabel="true age at or below (% of faces)",
        xlim=(0, 100),
        ylim=(0, 100),
    )
    legend(axes, loc="upper left")
    return figure_svg(figure)


def coverage_by_age(by_age: Sequence[dict[str, Any]], level: float) -> Markup:
    """How often the interval holds the true age, by band of true age, and how often it should."""
    figure, axes = new_figure(_WIDE, _HIGH)
    places = np.arange(len(by_age))
    shares = [
        {end: None if value is None else 100 * value for end, value in row["coverage"].items()}
        for row in by_age
    ]
    axes.axhline(100 * level, color=INK, linewidth=1, linestyle="--", label=f"promised: {level:.0%}")
    error_bars(axes, places, shares, color=ACCENT)
    axes.set_ylim(0, 101)
    axes.set_ylabel("true age within the interval (% of faces)")
    _decades(axes, [row["ages"] for row in by_age])
    legend(axes, loc="lower left")
    return figure_svg(figure)


def refusal(curve: Sequence[dict[str, Any]], best: Sequence[dict[str, Any]]) -> Markup:
    """MAE of the faces answered when the widest intervals are refused, and when the largest errors are."""
    figure, axes = new_figure(_WIDE, _HIGH)
    answered, (value, low, high) = (
        [100 * row["answered"] for row in curve],
        columns([row["mae"] for row in curve]),
    )
    axes.fill_between(answered, low, high, color=ACCENT, alpha=0.22, linewidth=0)
    axes.plot(
        answered, value, color=ACCENT, marker="o", markersize=3.5, label="widest intervals refused first"
    )
    axes.axhline(value[-1], color=INK, linewidth=1, linestyle="--", label="no order")
    axes.plot(
        [100 * row["answered"] for row in best],
        [row["mae"] for row in best],
        color=SOFT,
        linestyle=":",
        label="largest errors refused first",
    )
    axes.set(xlabel="faces answered (%)", ylabel="MAE of these (years)", xlim=(0, 100))
    axes.set_ylim(0, 1.4 * max(float(np.nanmax([value, high])), 0.1))
    legend(axes, loc="upper left")
    return figure_svg(figure)


def classifiers(found: Sequence[dict[str, Any]]) -> Markup:
    """MAE of each classifier of a DHAA network (DHAA, Fig. 6); the last is the whole network's."""
    figure, axes = new_figure(_WIDE, max(2.2, 0.3 * len(found) + 0.8))
    axes.grid(visible=False)
    axes.grid(axis="x", color=INK, alpha=0.12)
    places = np.arange(len(found))[::-1]
    colours = [ACCENT if place == 0 else SOFT for place in places]
    axes.barh(places, columns([row["mae"] for row in found])[0], 0.66, color=colours)
    error_bars(axes, places, [row["mae"] for row in found], upright=False, fmt="none", ecolor=INK)
    axes.set_yticks(places, [str(row["name"]).replace("$", r"\$") for row in found])
    axes.set_xlim(left=0)
    axes.set_xlabel("MAE (years)")
    return figure_svg(figure)


def embedding_map(place_N2: Ages, age_N: Ages) -> Markup:
    """Faces where a projection of their embeddings puts them, coloured by true age (DHAA, Fig. 7)."""
    figure, axes = new_figure(_WIDE, 4.2)
    axes.grid(visible=False)
    cloud = axes.scatter(*place_N2.T, c=age_N, s=9, cmap=_YEARS, linewidths=0, rasterized=True)
    axes.set(xticks=[], yticks=[])
    axes.spines[["left", "bottom"]].set_visible(False)
    bar = figure.colorbar(cloud, ax=axes, shrink=0.85, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=INK, labelsize=9)
    bar.set_label("true age", color=INK, fontsize=9)
    return figure_svg(figure)


def cs_curves(models: Sequence[dict[str, Any]]) -> Markup:
    """CS(T) of several models; each has a `letter` and `cs`."""
    figure, axes = new_figure(_WIDE, _HIGH)
    for number, model in enumerate(models):
        limits, (value, low, high) = (
            [row["years"] for row in model["cs"]],
            100 * columns([row["share"] for row in model["cs"]]),
        )
        axes.fill_between(limits, low, high, color=SERIES[number % len(SERIES)], alpha=0.1, linewidth=0)
        axes.plot(limits, value, label=model["letter"], **_line(number))
        axes.set_xlim(min(limits), max(limits))
    axes.set(xlabel="T (years)", ylabel="error of at most T (% of faces)", ylim=(0, 100))
    legend(axes, loc="lower right")
    return figure_svg(figure)


def maes_by_age(models: Sequence[dict[str, Any]]) -> Markup:
    """MAE by band of true age of several models; each has a `letter` and `by_age`."""
    figure, axes = new_figure(_WIDE, _HIGH)
    names = _decade_names([row["ages"] for model in models for row in model["by_age"]])
    for number, model in enumerate(models):
        found = {row["ages"]: row["mae"] for row in model["by_age"]}
        shift = 0.3 * ((number + 0.5) / len(models) - 0.5)
        places, line = np.arange(len(names)) + shift, _line(number)
        error_bars(
            axes,
            places,
            [found.get(name) for name in names],
            marker="o",
            fmt="",
            label=model["letter"],
            linewidth=1.2,
            **line,
        )
    axes.set_ylim(bottom=0)
    axes.set_ylabel("MAE (years)")
    _decades(axes, names)
    legend(axes, ncols=4)
    return figure_svg(figure)


def differences(pairs: Sequence[dict[str, Any]]) -> Markup:
    """The difference of MAE of each pair of models with its interval; each has `letters` and `difference`."""
    figure, axes = new_figure(_WIDE, max(1.6, 0.32 * len(pairs) + 0.8))
    axes.grid(visible=False)
    axes.grid(axis="x", color=INK, alpha=0.12)
    axes.axvline(0, color=INK, linewidth=1)
    for place, pair in enumerate(reversed(pairs)):
        error_bars(axes, [place], [pair["difference"]], upright=False, color=ACCENT if pair["real"] else SOFT)
    axes.set_yticks(
        range(len(pairs)),
        [f"{one} − {other}" for one, other in (pair["letters"] for pair in reversed(pairs))],
    )
    axes.set_ylim(-0.6, len(pairs) - 0.4)
    axes.set_xlabel("difference of MAE (years)")
    return figure_svg(figure)


def _line(number: int) -> dict[str, Any]:
    return {"color": SERIES[number % len(SERIES)], "linestyle": "-" if number < len(SERIES) else "--"}


def _decade_names(names: Sequence[str]) -> list[str]:
    """Bands of ages once each, youngest first, then what is no age."""
    return sorted(
        set(names),
        key=lambda name: (not name[:1].isdigit(), int(name.split("-")[0]) if name[:1].isdigit() else 0, name),
    )


def _decades(axes: Any, names: Sequence[str]) -> None:
    axes.set_xticks(range(len(names)), names, fontsize=8, rotation=0 if len(names) <= 9 else 40)
    axes.set_xlabel("true age")
