"""The plots of an evaluation's page, as inline SVG.

Takes parts of the report, or true and predicted ages. Ages and errors in years.
Shape letters: N faces, B bands of age.
"""

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
    error_bars,
    figure_svg,
    legend,
    new_figure,
    values_and_ends,
)

Ages = NDArray[np.float64]
Rows = Sequence[dict[str, Any]]

_WIDTH, _HEIGHT = 5.4, 3.3  # inches: at half a page's width, and on a phone, the text stays readable
_CLOUD = (0.23, 0.51, 0.96)  # colour of densities: visible on light and dark ground
_FEW = 800  # up to so many faces each is drawn as a point
_CELLS = 200  # along an axis of the density; up to this, a cell is a year
_FARTHEST = 40  # years of error; bars end here
_YEARS = matplotlib.colors.ListedColormap(
    matplotlib.colormaps["plasma"](np.linspace(0.25, 0.92, 256))
)  # both ends are visible on light and dark ground


def age_shares(ages: dict[str, dict[str, int]]) -> Markup:
    """Share of the images in each decade, of training and of test; ages: as in `Audit.ages`."""
    figure, axes = new_figure(_WIDTH, 2.6)
    names = _sorted_bands({*ages["train"], *ages["test"]})
    places = np.arange(len(names))
    for part, shift, colour in (("train", -0.2, SOFT), ("test", 0.2, ACCENT)):
        counts = np.array([ages[part].get(name, 0) for name in names])
        shares = 100 * counts / max(counts.sum(), 1)
        axes.bar(places + shift, shares, 0.4, color=colour, label=part)
    _bands_axis(axes, names)
    axes.set_ylabel("images of the part (%)")
    legend(axes)
    return figure_svg(figure)


def cs_curve(curve: Rows, constant: Sequence[float] | None) -> Markup:
    """CS(T) with its interval as a band; constant: CS(T) of always answering the same age."""
    figure, axes = new_figure(_WIDTH, _HEIGHT)
    limits = _column(curve, "years")
    _curve_with_band(axes, limits, 100 * _estimates(curve, "share"), label="model", markersize=3)
    if constant is not None:
        shares = 100 * np.asarray(constant)
        axes.plot(limits, shares, color=SOFT, linestyle="--", label="always the same age")
    _cs_axes(axes, limits)
    legend(axes, loc="lower right")
    return figure_svg(figure)


def predicted_against_true(true_N: Ages, predicted_N: Ages) -> tuple[Markup, str]:
    """Predicted against true age, and a sentence on how the faces are drawn.

    Points if there are few faces, else counts in cells of a year; with the diagonal and the median
    prediction by 5 years of true age.
    """
    figure, axes = new_figure(_WIDTH, 4.4)
    axes.grid(visible=True, color=INK, alpha=0.12)
    first, last = _range(np.concatenate([true_N, predicted_N]))
    if len(true_N) <= _FEW:
        axes.plot(true_N, predicted_N, ".", color=ACCENT, alpha=0.45, markersize=5, rasterized=True)
        caption = "Each point is a face."
    else:
        _draw_density(axes, true_N, predicted_N, first, last)
        caption = "The darker a cell, the more faces are in it, on a logarithmic scale."
    axes.plot([first, last], [first, last], color=INK, linewidth=1, linestyle="--", label="predicted = true")
    axes.plot(*_medians(true_N, predicted_N), color=INK, linewidth=1.8, label="median prediction")
    axes.set(xlabel="true age", ylabel="predicted age", xlim=(first, last), ylim=(first, last))
    legend(axes, loc="upper left")
    return figure_svg(figure), caption


def _draw_density(axes: Any, true_N: Ages, predicted_N: Ages, first: float, last: float) -> None:
    edges = np.linspace(first, last, int(min(last - first, _CELLS)) + 1)
    counts, _, _ = np.histogram2d(predicted_N, true_N, [edges, edges])
    cells = np.full((*counts.shape, 4), (*_CLOUD, 0.0))
    cells[counts > 0, 3] = 0.12 + 0.88 * np.log1p(counts[counts > 0]) / np.log1p(counts.max())
    extent = (first, last, first, last)
    axes.imshow(cells, origin="lower", extent=extent, interpolation="none", aspect="auto")


def _range(ages: Ages) -> tuple[float, float]:
    first, last = 5 * np.floor(ages.min() / 5), 5 * np.ceil(ages.max() / 5)
    return float(first), float(max(last, first + 5))


def _medians(true_N: Ages, predicted_N: Ages, fewest: int = 5) -> tuple[Ages, Ages]:
    """Middle and median prediction (B,) of each band of 5 years that has `fewest` faces."""
    band_N = np.floor(true_N / 5)
    bands, counts = np.unique(band_N, return_counts=True)
    bands = bands[counts >= fewest]
    medians = []
    for band in bands:
        medians.append(np.median(predicted_N[band_N == band]))
    return 5 * bands + 2.5, np.array(medians)


def errors(error_N: Ages) -> Markup:
    """Number of faces by error, in steps of a year; the outermost bars hold all larger errors."""
    figure, axes = new_figure(_WIDTH, _HEIGHT)
    reach = int(np.clip(np.ceil(np.abs(error_N).max()), 5, _FARTHEST))
    edges = np.arange(-reach, reach + 2) - 0.5
    counts, _ = np.histogram(np.clip(error_N, -reach, reach), edges)
    axes.bar(edges[:-1] + 0.5, counts, 0.9, color=ACCENT)
    axes.axvline(0, color=INK, linewidth=1)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="predicted − true age (years)", ylabel="faces")
    return figure_svg(figure)


def mae_by_age(by_age: Rows) -> Markup:
    """MAE of each band of true age."""
    figure, axes = new_figure(_WIDTH, _HEIGHT)
    places, estimates = np.arange(len(by_age)), _column(by_age, "mae")
    axes.bar(places, values_and_ends(estimates)[0], 0.7, color=ACCENT)
    error_bars(axes, places, estimates, fmt="none", ecolor=INK)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("MAE (years)")
    _bands_axis(axes, _column(by_age, "ages"))
    return figure_svg(figure)


def bias_by_age(by_age: Rows) -> Markup:
    """Bias of each band of true age."""
    figure, axes = new_figure(_WIDTH, _HEIGHT)
    axes.axhline(0, color=INK, linewidth=1)
    error_bars(axes, np.arange(len(by_age)), _column(by_age, "bias"), color=ACCENT)
    axes.set_ylabel("bias (years)")
    _bands_axis(axes, _column(by_age, "ages"))
    return figure_svg(figure)


def calibration(curve: Rows) -> Markup:
    """Share of true ages at or below the posterior's quantiles, by the level of the quantile."""
    figure, axes = new_figure(_WIDTH, _HEIGHT)
    levels = 100 * np.array(_column(curve, "level"))
    axes.plot([0, 100], [0, 100], color=INK, linewidth=1, linestyle="--", label="calibrated")
    _curve_with_band(axes, levels, 100 * _estimates(curve, "observed"), label="model", markersize=3.5)
    axes.set(
        xlabel="level of the quantile (%)",
        ylabel="true age at or below (% of faces)",
        xlim=(0, 100),
        ylim=(0, 100),
    )
    legend(axes, loc="upper left")
    return figure_svg(figure)


def coverage_by_age(by_age: Rows, level: float) -> Markup:
    """How often the interval holds the true age, by band of true age, and how often it should."""
    figure, axes = new_figure(_WIDTH, _HEIGHT)
    axes.axhline(level, color=INK, linewidth=1, linestyle="--", label=f"promised: {level:.0%}")
    error_bars(axes, np.arange(len(by_age)), _column(by_age, "coverage"), color=ACCENT)
    axes.set_ylim(0, 1.01)
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f}")
    axes.set_ylabel("true age within the interval (% of faces)")
    _bands_axis(axes, _column(by_age, "ages"))
    legend(axes, loc="lower left")
    return figure_svg(figure)


def risk_coverage(curve: Rows, best: Rows) -> Markup:
    """MAE of the answered faces, the narrowest intervals first; best: the smallest errors first."""
    figure, axes = new_figure(_WIDTH, _HEIGHT)
    answered, estimates = 100 * np.array(_column(curve, "answered")), _estimates(curve, "mae")
    label = "narrowest intervals first"
    _curve_with_band(axes, answered, estimates, label=label, markersize=3.5)
    axes.axhline(estimates[0, -1], color=INK, linewidth=1, linestyle="--", label="no order")
    best_answered = 100 * np.array(_column(best, "answered"))
    best_label = "smallest errors first"
    axes.plot(best_answered, _column(best, "mae"), color=SOFT, linestyle=":", label=best_label)
    axes.set(xlabel="faces answered (%)", ylabel="MAE of these (years)", xlim=(0, 100))
    axes.set_ylim(0, 1.4 * max(float(np.nanmax(estimates[[0, 2]])), 0.1))
    legend(axes, loc="upper left")
    return figure_svg(figure)


def classifiers(rows: Rows) -> Markup:
    """MAE of each classifier of a DHAA network (DHAA, Fig. 6); the last is the whole network's."""
    figure, axes = new_figure(_WIDTH, max(2.2, 0.3 * len(rows) + 0.8))
    _horizontal_grid_off(axes)
    places, estimates = np.arange(len(rows))[::-1], _column(rows, "mae")
    colours = [SOFT] * (len(rows) - 1) + [ACCENT]
    axes.barh(places, values_and_ends(estimates)[0], 0.66, color=colours)
    error_bars(axes, places, estimates, upright=False, fmt="none", ecolor=INK)
    axes.set_yticks(places, [str(name).replace("$", r"\$") for name in _column(rows, "name")])
    axes.set_xlim(left=0)
    axes.set_xlabel("MAE (years)")
    return figure_svg(figure)


def embedding_map(place_N2: Ages, age_N: Ages) -> Markup:
    """Faces at the places (N, 2) of a projection of their embeddings, by true age (DHAA, Fig.
    7)."""
    figure, axes = new_figure(_WIDTH, 4.2)
    axes.grid(visible=False)
    cloud = axes.scatter(*place_N2.T, c=age_N, s=9, cmap=_YEARS, linewidths=0, rasterized=True)
    axes.set(xticks=[], yticks=[])
    axes.spines[["left", "bottom"]].set_visible(False)
    bar = figure.colorbar(cloud, ax=axes, shrink=0.85, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=INK, labelsize=9)
    bar.set_label("true age", color=INK, fontsize=9)
    return figure_svg(figure)


# --- several models -------------------------------------------------------------------------------


def cs_curves(models: Rows) -> Markup:
    """CS(T) of several models; each has a `letter` and `cs`."""
    figure, axes = new_figure(_WIDTH, _HEIGHT)
    for number, model in enumerate(models):
        limits, shares = _column(model["cs"], "years"), 100 * _estimates(model["cs"], "share")
        style = _line_style(number)
        axes.fill_between(limits, shares[1], shares[2], color=style["color"], alpha=0.1, linewidth=0)
        axes.plot(limits, shares[0], label=model["letter"], **style)
        _cs_axes(axes, limits)
    legend(axes, loc="lower right")
    return figure_svg(figure)


def maes_by_age(models: Rows) -> Markup:
    """MAE by band of true age of several models; each has a `letter` and `by_age`."""
    figure, axes = new_figure(_WIDTH, _HEIGHT)
    names: set[str] = set()
    for model in models:
        names.update(_column(model["by_age"], "ages"))
    bands = _sorted_bands(names)
    for number, model in enumerate(models):
        estimates = {row["ages"]: row["mae"] for row in model["by_age"]}
        shift = 0.3 * ((number + 0.5) / len(models) - 0.5)
        style = _line_style(number) | {"marker": "o", "fmt": "", "linewidth": 1.2, "label": model["letter"]}
        error_bars(axes, np.arange(len(bands)) + shift, list(map(estimates.get, bands)), **style)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("MAE (years)")
    _bands_axis(axes, bands)
    legend(axes, ncols=4)
    return figure_svg(figure)


def differences(pairs: Rows) -> Markup:
    """The difference of MAE of each pair of models; each has `letters`, `difference` and `real`."""
    figure, axes = new_figure(_WIDTH, max(1.6, 0.32 * len(pairs) + 0.8))
    _horizontal_grid_off(axes)
    axes.axvline(0, color=INK, linewidth=1)
    names = []
    for place, pair in enumerate(reversed(pairs)):
        colour = ACCENT if pair["real"] else SOFT
        error_bars(axes, [place], [pair["difference"]], upright=False, color=colour)
        names.append(" − ".join(pair["letters"]))
    axes.set_yticks(range(len(pairs)), names)
    axes.set_ylim(-0.6, len(pairs) - 0.4)
    axes.set_xlabel("difference of MAE (years)")
    return figure_svg(figure)


# --- axes -----------------------------------------------------------------------------------------


def _curve_with_band(axes: Any, x: Any, estimates: Ages, **options: Any) -> None:
    """A curve of values with the band between their low and high ends; estimates: (3, points)."""
    value, low, high = estimates
    axes.fill_between(x, low, high, color=ACCENT, alpha=0.22, linewidth=0)
    axes.plot(x, value, color=ACCENT, marker="o", **options)


def _cs_axes(axes: Any, limits: Sequence[float]) -> None:
    axes.set(
        xlabel="T (years)",
        ylabel="error of at most T (% of faces)",
        xlim=(min(limits), max(limits)),
        ylim=(0, 100),
    )


def _line_style(number: int) -> dict[str, Any]:
    """Colour and stroke of the model of this number: dashed from the ninth on."""
    return {"color": SERIES[number % len(SERIES)], "linestyle": "-" if number < len(SERIES) else "--"}


def _horizontal_grid_off(axes: Any) -> None:
    axes.grid(visible=False)
    axes.grid(axis="x", color=INK, alpha=0.12)


def _bands_axis(axes: Any, names: Sequence[str]) -> None:
    """The x axis of a plot by age: bands, slanted if there are many."""
    axes.set_xticks(range(len(names)), names, fontsize=8, rotation=40 * (len(names) > 9))
    axes.set_xlabel("true age")


def _sorted_bands(names: set[str]) -> list[str]:
    """Bands of ages, youngest first, then all names that are not ages."""

    def order(name: str) -> tuple[bool, int, str]:
        if not name[:1].isdigit():
            return True, 0, name
        return False, int(name.split("-")[0]), name

    return sorted(names, key=order)


def _column(rows: Rows, name: str) -> list[Any]:
    return [row[name] for row in rows]


def _estimates(rows: Rows, name: str) -> NDArray[np.float64]:
    """Value, low and high end of the estimate `name` of each row: (3, rows)."""
    return values_and_ends(_column(rows, name))
