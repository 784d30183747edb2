"""Figures as text: `Cell`, a value with its interval; `Table`, rows of cells for `parts.table`.

Takes estimates ({"value", "low", "high"}), plain numbers or None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NONE = "–"
"""The text of a figure that is not known."""


@dataclass(frozen=True)
class Cell:
    """A value as `text`, its `interval` in small print below, and `tone`, a CSS class."""

    text: str
    interval: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """`head` and `rows` of plain texts and cells; the first cell of a row names the row."""

    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    title: str = ""


def years(figure: Any, signed: bool = False, digits: int = 2, tone: str = "") -> Cell:
    """A figure in years."""
    return _cell(figure, "+" * signed + f".{digits}f", tone)


def percent(figure: Any, digits: int = 1, tone: str = "") -> Cell:
    """A share as a percentage."""
    return _cell(figure, f".{digits}%", tone)


def count(number: Any) -> str:
    """A whole number."""
    if number is None:
        return NONE
    return f"{number:,.0f}"


def counted(counts: dict[str, Any], name: str) -> str:
    """A count of an audit and its share of the test images."""
    if counts[name] is None:
        return "not known"
    return f"{counts[name]:,} ({counts['share']:.1%})"


def probability(p: float) -> str:
    """A p-value with three decimals."""
    if p < 0.001:
        return "<\u00a00.001"
    return f"{p:.3f}"


def minus(number: str) -> str:
    """The minus sign in place of the hyphen, at which a line could break."""
    return number.replace("-", "−")


def _cell(figure: Any, form: str, tone: str) -> Cell:
    if not isinstance(figure, dict):
        return Cell(_number(figure, form), tone=tone)
    value, low, high = (_number(figure[end], form) for end in ("value", "low", "high"))
    if NONE in (value, low, high):
        return Cell(value, tone=tone)
    between = "–"
    if form.startswith("+") or figure["low"] < 0:
        between = " to "  # "−1.2–0.3" would be hard to read
    return Cell(value, f"{low.removesuffix('%')}{between}{high}", tone)


def _number(value: Any, form: str) -> str:
    if value is None or not math.isfinite(value):
        return NONE
    return minus(format(value, form))
