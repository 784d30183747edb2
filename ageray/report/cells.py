"""Figures as text: values with their intervals, and tables of them for `parts.table`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NONE = "–"
"""Stands where there is no figure."""


@dataclass(frozen=True)
class Cell:
    """`text` and below it, small, what it is known to: an interval. `tone` is a CSS class."""

    text: str
    interval: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """`head` and `rows` of plain texts and cells; the first of each row names it."""

    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    title: str = ""


def years(found: Any, signed: bool = False, digits: int = 2, tone: str = "") -> Cell:
    """A figure in years: an estimate, a plain number, or nothing."""
    return _cell(found, f"{'+' if signed else ''}.{digits}f", tone)


def percent(found: Any, digits: int = 1, tone: str = "") -> Cell:
    """A share as percents: an estimate, a plain number, or nothing."""
    return _cell(found, f".{digits}%", tone)


def count(number: Any) -> str:
    """A whole number."""
    return NONE if number is None else f"{number:,.0f}"


def counted(found: dict[str, Any], name: str) -> str:
    """A count of an audit and its share of the test images."""
    if found[name] is None:
        return "not known"
    return f"{found[name]:,} ({found['share']:.1%})"


def probability(p: float) -> str:
    """A p-value, no more exact than it matters."""
    return "<\u00a00.001" if p < 0.001 else f"{p:.3f}"


def minus(number: str) -> str:
    """The sign, not a hyphen, at which a line could break."""
    return number.replace("-", "−")


def _cell(found: Any, form: str, tone: str) -> Cell:
    if not isinstance(found, dict):
        found = {"value": found, "low": None, "high": None}
    value, low, high = (_number(found[end], form) for end in ("value", "low", "high"))
    if NONE in (low, high) or value == NONE:
        return Cell(value, tone=tone)
    # "-1.2–0.3" would be hard to read
    between = " to " if form.startswith("+") or found["low"] < 0 else "–"
    return Cell(value, f"{low.removesuffix('%')}{between}{high}", tone)


def _number(value: Any, form: str) -> str:
    return NONE if value is None or not math.isfinite(value) else minus(format(value, form))
