"""Matplotlib figures as inline SVG in the page's colours.

What is drawn in `INK`, `ACCENT`, `SOFT` or one of `SERIES` takes the page's colour of that name,
light or dark.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

# Commands import this module when they start, and draw when they end. Matplotlib takes 0.3 s.
if TYPE_CHECKING:
    from matplotlib.figure import Figure

# placeholder colours, which `figure_svg` replaces by the page's
INK, ACCENT, SOFT = "#010203", "#040506", "#070809"
SERIES = tuple(f"#0a0b{number:02x}" for number in range(8))
"""Colours of several models in one figure; a ninth model takes the first again, dashed."""

_PAGE_COLOURS = {INK: "currentColor", ACCENT: "var(--accent)", SOFT: "var(--soft)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES)
}
_DPI = 200  # of the parts that are drawn as pixels

Estimate = dict[str, float | None]
"""A figure and its interval: `value`, `low` and `high`, null where there is none."""


def figure_svg(figure: Figure) -> Markup:
    """A matplotlib figure as inline SVG; its ids differ from those of other figures of the page."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ageray"}):
        figure.savefig(
            buffer, format="svg", transparent=True, bbox_inches="tight", dpi=_DPI, metadata={"Date": None}
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for placeholder, colour in _PAGE_COLOURS.items():
        text = text.replace(placeholder, colour)
    return Markup(_with_unique_ids(text))


def _with_unique_ids(svg: str) -> str:
    """Removes ids that nothing refers to; appends a digest of the figure to the others."""
    references = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg)
    names = {name for pair in references for name in pair}
    digest = hashlib.blake2b(svg.encode(), digest_size=4).hexdigest()

    def rename(match: re.Match[str]) -> str:
        return f' id="{match[1]}-{digest}"' if match[1] in names else ""

    svg = re.sub(r' id="([^"]+)"', rename, svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#\1-{digest})", svg)
    return re.sub(r'href="#([^"]+)"', rf'href="#\1-{digest}"', svg)


def new_figure(width: float = 7.0, height: float = 2.6) -> tuple[Figure, Any]:
    """An empty figure, sizes in inches, and its axes in the page's style."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = figure.add_subplot()
    style(axes)
    return figure, axes


def style(axes: Any) -> None:
    """Gives a pair of axes the page's style."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK, labelsize=9)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=INK, fontsize=9)
    axes.grid(axis="y", color=INK, alpha=0.12)
    axes.set_axisbelow(True)


def legend(axes: Any, **options: Any) -> None:
    """Adds the legend of everything that has a label, in the page's style."""
    axes.legend(**{"frameon": False, "fontsize": 9, "labelcolor": INK, **options})


def values_and_ends(estimates: Sequence[Estimate | None]) -> NDArray[np.float64]:
    """Values, low and high ends of estimates: (3, number of estimates), NaN where there is none."""
    columns = np.full((3, len(estimates)), np.nan)
    for place, estimate in enumerate(estimates):
        if estimate is not None:
            columns[:, place] = [estimate["value"], estimate["low"], estimate["high"]]
    return columns


def error_bars(
    axes: Any, places: Any, estimates: Sequence[Estimate | None], upright: bool = True, **style: Any
) -> None:
    """Draws the intervals of estimates as thin lines at `places`, and the values as points.

    style: options of `Axes.errorbar`; `fmt="none"` leaves the points out.
    """
    value, low, high = values_and_ends(estimates)
    reach = np.clip(np.stack([value - low, high - value]), 0, None)
    options = {"fmt": "o", "markersize": 4, "color": INK, "elinewidth": 1.2, "capsize": 2.5} | style
    if upright:
        axes.errorbar(x=places, y=value, yerr=reach, **options)
    else:
        axes.errorbar(x=value, y=places, xerr=reach, **options)
