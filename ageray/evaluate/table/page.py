"""The page of a table: for each cell the paper's figure, ours, the difference to the control."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ageray import storage
from ageray.report.cells import NONE, minus, percent, probability, years
from ageray.report.page import render

_FOLDER = Path(__file__).parent
_METRICS = {
    "mae": "MAE in years",
    "cs3": "CS(3)",
    "cs5": "CS(5)",
    "epsilon_error": "epsilon-error",
    "gender": "share of right genders",
}


def table_report(uri: str, table: dict[str, Any]) -> None:
    """Writes the page. table: what `ageray.evaluate.table.run` writes as JSON."""
    heads = []
    for name, metric in zip(table["columns"], table["metrics"], strict=True):
        heads.append((name, _METRICS[metric]))
    rows = []
    for row in table["rows"]:
        cells = []
        for cell, metric in zip(row["cells"], table["metrics"], strict=True):
            cells.append(None if cell is None else texts(cell, metric))
        rows.append({"name": row["name"], "control": row["control"], "cells": cells})
    html = render(
        "table.html",
        folder=_FOLDER,
        title=table["title"],
        facts=[("Paper", table["paper"])],
        notes=table["notes"],
        heads=heads,
        rows=rows,
    )
    storage.write_text(uri, html)


def texts(cell: dict[str, Any], metric: str) -> dict[str, Any]:
    """A cell's texts: `paper`, `ours`, `interval`, `calibrated`, `difference`, `missing` and
    `link`."""
    form = percent if metric in ("cs3", "cs5", "gender") else years
    digits = 1 if form is percent else 3
    answer: dict[str, Any] = {
        "paper": form(cell["paper"], digits=digits).text,
        "missing": cell["missing"],
        "link": "",
        "ours": NONE,
        "interval": "",
        "calibrated": "",
        "difference": "",
    }
    if cell["ours"] is None:
        return answer
    ours = form(cell["ours"], digits=digits)
    answer |= {"ours": ours.text, "interval": ours.interval, "link": cell["reports"][0]}
    if metric == "mae" and cell["calibrated_mae"] is not None:
        answer["calibrated"] = f"{cell['calibrated_mae']:.3f}"
    against = cell.get("against_control")
    if against is not None:
        value = years(against["difference"], signed=True)
        interval = f" ({value.interval})" if value.interval else ""
        p = f"p = {probability(against['p'])}".replace("= <", "<")
        answer["difference"] = minus(f"{value.text}{interval}, {p}")
    return answer
