"""A model's card as a page: what it is for, its figures by set, errors by decade and group as
pictures.

The card is that of a bundle (`ageray.card` says what is in it). Every part may be missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from ageray.report.cells import NONE, Cell, Table
from ageray.report.page import describe_model, render
from ageray.report.plot import ACCENT, INK, figure_svg, new_figure

_PARTS = (("by_decade", "ages"), ("by_gender", "gender"), ("by_group", "group"))
"""Breakdowns of a set's figures, each with the key that names its rows."""


def card_page(name: str, identity: str, card: dict[str, Any]) -> str:
    """The HTML of the card of the model `name`."""
    figures = card.get("figures")
    sets = {}
    if isinstance(figures, dict):
        sets = {key: value for key, value in figures.items() if isinstance(value, dict)}
    pictures = []
    for set_name, values in sets.items():
        drawn = [_errors_svg(values.get(part) or [], key) for part, key in _PARTS]
        pictures.append({"name": _words(set_name), "seen": values.get("seen_in_training"), "drawn": drawn})
    return render(
        "card.html",
        title=f"{name}: model card",
        what=str(card.get("what") or ""),
        terms=str(card.get("terms") or ""),
        identity=identity,
        figures=_table(sets),
        pictures=pictures,
        model=describe_model(card),
    )


def _words(name: str) -> str:
    return name.replace("_", " ")


def _table(sets: dict[str, dict[str, Any]]) -> Table | None:
    """A row a set: faces, errors, the interval's coverage."""
    rows: list[Sequence[str | Cell]] = []
    for name, values in sets.items():
        faces = values.get("faces")
        rows.append(
            [
                _words(name),
                NONE if faces is None else f"{faces:,}",
                _cell(values, "mae", ".2f"),
                _cell(values, "bias", "+.2f"),
                _cell(values, "interval_coverage", ".0%"),
                "yes" if values.get("seen_in_training") else "no",
            ]
        )
    head = ["set", "faces", "mean absolute error", "bias", "90 % interval covers", "trained on it"]
    return Table(head, rows) if rows else None


def _cell(values: dict[str, Any], key: str, form: str) -> str | Cell:
    value, ends = values.get(key), values.get(f"{key}_95")
    if value is None:
        return NONE
    interval = ""
    if ends:
        interval = f"{format(ends[0], form)} to {format(ends[1], form)}"
    return Cell(format(value, form), interval)


def _errors_svg(rows: list[dict[str, Any]], key: str) -> Markup | None:
    """Bars of the mean absolute error of each row, with its 95 % interval, and the bias as a
    point.
    """
    rows = [row for row in rows if row.get("mae") is not None]
    if not rows:
        return None
    figure, axes = new_figure()
    places = np.arange(len(rows))
    errors = np.array([row["mae"] for row in rows])
    axes.bar(places, errors, width=0.7, color=ACCENT, alpha=0.75)
    for place, row in enumerate(rows):
        if row.get("mae_95"):
            axes.plot([place, place], row["mae_95"], color=INK, linewidth=1.2)
        if row.get("bias") is not None:
            axes.plot([place], [row["bias"]], marker="D", markersize=4, color=INK)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xticks(places, [f"{row[key]}\n{row.get('images', '')}" for row in rows], fontsize=8)
    axes.set_ylabel("years")
    return figure_svg(figure)
