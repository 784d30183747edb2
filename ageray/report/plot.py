"""Figures as inline SVG in the page's colours: what is drawn in `INK`, `ACCENT`, `SOFT` or one of `SERIES` follows light and dark."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray

# Colours that the page replaces by its own.
INK, ACCENT, SOFT = "#010203", "#040506", "#070809"
SERIES = tuple(f"#0a0b{number:02x}" for number in range(8))
"""Of several models in one figure; a ninth takes the first again, dashed."""

_PAGE_COLOURS = {INK: "currentColor", ACCENT: "var(--accent)", SOFT: "var(--soft)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES)
}
_DPI = 200  # of what is drawn as pixels

Estimate = dict[str, float | None]
"""A figure and its interval: `value`, `low` and `high`, null where there is none."""


def figure_svg(figure: Figure) -> Markup:
    """A matplotlib figure as inline SVG; its ids do not meet those of another figure on the page."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ageray"}):
        figure.savefig(
            buffer, format="svg", transparent=True, bbox_inches="tight", dpi=_DPI, metadata={"Date": None}
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for colour, own in _PAGE_COLOURS.items():
        text = text.replace(colour, own)
    return Markup(_with_own_ids(text))


def _with_own_ids(svg: str) -> str:
    """Ids that nothing refers to (patch_1, text_2, ...) are taken away, the others end in a digest of the figure."""
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg))
    names = {name for pair in used for name in pair if name}
    mark = hashlib.blake2b(svg.encode(), digest_size=4).hexdigest()
    svg = re.sub(r' id="([^"]+)"', lambda found: f' id="{found[1]}-{mark}"' if found[1] in names else "", svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#\1-{mark})", svg)
    return re.sub(r'href="#([^"]+)"', rf'href="#\1-{mark}"', svg)


def new_figure(width: float = 7.0, height: float = 2.6) -> tuple[Figure, Any]:
    """An empty figure, inches, and its axes in the page's style."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_subplot()
    style(axes)
    return figure, axes


def style(axes: Any) -> None:
    """The page's style for a pair of axes."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK, labelsize=9)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=INK, fontsize=9)
    axes.grid(axis="y", color=INK, alpha=0.12)
    axes.set_axisbelow(True)


def legend(axes: Any, **where: Any) -> None:
    """The legend of what has a label, in the page's style."""
    axes.legend(**{"frameon": False, "fontsize": 9, "labelcolor": INK, **where})


def histogram_svg(counts: Sequence[int], xlabel: str, ylabel: str) -> Markup:
    """Bars of `counts`, one a year from 0, up to the last that is not empty."""
    figure, axes = new_figure()
    last = max((year for year, count in enumerate(counts) if count), default=0)
    axes.bar(range(last + 1), counts[: last + 1], width=0.86, color=ACCENT)
    axes.set_xlim(-1, max(last + 1, 80))
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return figure_svg(figure)


def columns(estimates: Sequence[Estimate | None]) -> NDArray[np.float64]:
    """Values, lower and upper ends of estimates: (3, len), NaN where there is none."""
    rows = [
        [np.nan if found is None or found[end] is None else found[end] for found in estimates]
        for end in ("value", "low", "high")
    ]
    return np.asarray(rows, np.float64).reshape(3, len(estimates))


def error_bars(
    axes: Any, places: Any, estimates: Sequence[Estimate | None], upright: bool = True, **style: Any
) -> None:
    """The intervals of estimates as thin lines at `places`, values as points unless `style` takes the marker away."""
    value, low, high = columns(estimates)
    reach = np.clip(np.stack([value - low, high - value]), 0, None)
    style = {"fmt": "o", "markersize": 4, "color": INK, "elinewidth": 1.2, "capsize": 2.5} | style
    where = {"x": places, "y": value, "yerr": reach} if upright else {"x": value, "y": places, "xerr": reach}
    axes.errorbar(**where, **style)
