"""A histogram as inline SVG in the page's colours, in the style of `ageray.report.plot`.

Matplotlib, which draws the other figures, takes 0.4 s to import and draw, a tenth of the time of
`ageray score` for one photo.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape

# Points (1/72 inch): the picture, and the place of the bars in it.
_WIDTH, _HEIGHT = 436.0, 188.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 430.0, 7.0, 151.0
_FONT = (
    "font-size: 9px; font-family: 'DejaVu Sans', Verdana, Arial, Helvetica, sans-serif; fill: currentColor"
)
_LINE = "fill: none; stroke: currentColor; stroke-width: 0.8"
_BAR = 0.86  # of a year's width
_LEAST_YEARS, _YEARS_A_LABEL, _MOST_LINES = 80, 10, 7


def histogram_svg(counts: Sequence[int], xlabel: str, ylabel: str) -> Markup:
    """Bars of `counts`, one per year from 0, up to the last that is not empty."""
    years = np.flatnonzero(counts)
    last = int(years[-1]) if len(years) else 0
    end = max(last + 1, _LEAST_YEARS)
    most = max(1, *counts)
    high = most * 1.05  # room above the highest bar

    def x(year: float) -> float:
        return _LEFT + (year + 1) / (end + 1) * (_RIGHT - _LEFT)

    def y(count: float) -> float:
        return _BOTTOM - count / high * (_BOTTOM - _TOP)

    parts = []
    for count in range(0, most + 1, _step(most)):
        parts.append(_line(_LEFT, y(count), _RIGHT, y(count), "; stroke-opacity: 0.12"))
        parts.append(_line(_LEFT - 3.5, y(count), _LEFT, y(count)))
        parts.append(_text(str(count), _LEFT - 7, y(count) + 3.4, "end"))
    for year in range(0, end + 1, _YEARS_A_LABEL):
        parts.append(_line(x(year), _BOTTOM, x(year), _BOTTOM + 3.5))
        parts.append(_text(str(year), x(year), _BOTTOM + 14, "middle"))
    for year in years.tolist():
        left, top, width = x(year - _BAR / 2), y(counts[year]), x(_BAR) - x(0)
        shape = f'x="{left:.2f}" y="{top:.2f}" width="{width:.2f}" height="{_BOTTOM - top:.2f}"'
        parts.append(f'<rect {shape} style="fill: var(--accent)"/>')
    parts += [_line(_LEFT, _TOP, _LEFT, _BOTTOM), _line(_LEFT, _BOTTOM, _RIGHT, _BOTTOM)]
    parts.append(_text(xlabel, (_LEFT + _RIGHT) / 2, _HEIGHT - 8, "middle"))
    middle = (_TOP + _BOTTOM) / 2
    parts.append(_text(ylabel, 10, middle, "middle", f' transform="rotate(-90 10 {middle:.2f})"'))
    size = f'width="{_WIDTH:g}pt" height="{_HEIGHT:g}pt" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}"'
    opening = f'<svg {size} xmlns="http://www.w3.org/2000/svg" version="1.1">'
    return Markup("\n".join([opening, *parts, "</svg>"]))


def _step(most: int) -> int:
    """Counts between two lines: 1, 2 or 5 times a power of ten, for at most _MOST_LINES lines above
    0."""
    power = 1
    while True:
        for factor in (1, 2, 5):
            if most // (factor * power) <= _MOST_LINES:
                return factor * power
        power *= 10


def _line(x0: float, y0: float, x1: float, y1: float, style: str = "") -> str:
    return f'<path d="M {x0:.2f} {y0:.2f} L {x1:.2f} {y1:.2f}" style="{_LINE}{style}"/>'


def _text(text: str, x: float, y: float, anchor: str, turn: str = "") -> str:
    return f'<text x="{x:.2f}" y="{y:.2f}" style="{_FONT}; text-anchor: {anchor}"{turn}>{escape(text)}</text>'
