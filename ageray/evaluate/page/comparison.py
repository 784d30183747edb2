"""The pages of several models: compared on the same faces, and each on several sets.

Takes a comparison (see `ageray.evaluate.compare`) or a matrix (`cross`), writes report.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ageray import storage
from ageray.evaluate.files import EvaluationFiles
from ageray.evaluate.page import plots
from ageray.report.cells import Cell, Table, percent, probability, years
from ageray.report.page import render
from ageray.report.plot import SERIES

_STRONGEST = 45  # percent of the accent colour in a cell's ground; text stays readable on it

_FOLDER = Path(__file__).parent


def comparison_report(folder: str, comparison: dict[str, Any]) -> None:
    """Writes `report.html` into the folder of a comparison of models on the same faces.

    comparison: `data`, `protocol`, `images`, `warnings`, `models` and `pairs`.
    A model has `name`, `identity`, `report` (a link), and `mae`, `cs5`, `bias`, `coverage`,
    `width`, `cs`, `by_age` as in a report's estimates. A pair has `first` and `second` (names),
    `difference` of MAE, `permutation_p`, `wilcoxon_p` and `real`.
    """
    models, letters = [], {}
    for number, model in enumerate(comparison["models"]):
        letters[model["name"]] = letter(number)
        extra = {"letter": letter(number), "series": number % len(SERIES), "cells": _cells(model)}
        models.append({**model, **extra})
    pairs = []
    for pair in comparison["pairs"]:
        pairs.append({**pair, "letters": (letters[pair["first"]], letters[pair["second"]])})
    html = render(
        "comparison.html",
        folder=_FOLDER,
        title=f"{len(models)} models on {_name(comparison['data'])}",
        facts=[("Faces", f"{comparison['images']:,}"), ("Protocol", _name(comparison["protocol"]))],
        warnings=comparison["warnings"],
        models=models,
        verdicts=[verdict(pair) for pair in pairs],
        differences=plots.differences(pairs) if pairs else None,
        pairs=_pairs(pairs),
        settings=_settings(comparison.get("settings", []), [model["letter"] for model in models]),
        seeds=[seed_verdict(row) for row in comparison.get("seeds", [])],
        cs=plots.cs_curves(models),
        by_age=plots.maes_by_age(models),
    )
    storage.write_text(EvaluationFiles(folder).page, html)


def matrix_report(folder: str, matrix: dict[str, Any]) -> None:
    """Writes `report.html` into the folder of a model x set matrix.

    matrix: `models` and `sets` (names) and `cells`, a row per model. A cell is None or a dict of
    `mae`, `cs5`, `images`, `warnings`, `report` (a link) and `own`: whether the model was trained
    on that set. Cells are coloured by MAE within their column, since sets do not compare.
    """
    models, sets, cells = matrix["models"], matrix["sets"], matrix["cells"]
    strengths = np.stack([_strengths(column) for column in zip(*cells, strict=True)], 1)
    rows, warned, own = [], [], False
    for model, model_cells, model_strengths in zip(models, cells, strengths.tolist(), strict=True):
        row: list[dict[str, Any] | None] = []
        for name, cell, strength in zip(sets, model_cells, model_strengths, strict=True):
            row.append(_matrix_cell(cell, strength))
            if cell is not None:
                own = own or bool(cell["own"])
                if cell["warnings"]:
                    warned.append((model, name, cell["warnings"]))
        rows.append({"model": model, "cells": row})
    title = f"{len(models)} models on {len(sets)} sets"
    html = render("matrix.html", folder=_FOLDER, title=title, sets=sets, rows=rows, warned=warned, own=own)
    storage.write_text(EvaluationFiles(folder).page, html)


def letter(number: int) -> str:
    """A, B, ... Z, AA, AB, ...: the name of a model in plots, where its full name would not fit."""
    first, last = divmod(number, 26)
    if first == 0:
        return chr(ord("A") + last)
    return letter(first - 1) + chr(ord("A") + last)


def verdict(pair: dict[str, Any]) -> dict[str, Any]:
    """A pair's difference in words.

    `better`: the name of the better model, None if neither is. `names`: both, the better one first.
    `rest`: the rest of the sentence.
    """
    difference, names = pair["difference"], (pair["first"], pair["second"])
    signs, ranks = probability(pair["permutation_p"]), probability(pair["wilcoxon_p"])
    tests = f"p = {signs} by sign flips, {ranks} by Wilcoxon's ranks".replace("= <", "<")
    if not pair["real"]:
        cell = years(difference, signed=True)
        size = ", ".join([f"the difference of MAE is {cell.text} years", *_interval(cell)])
        return {"better": None, "names": names, "rest": f"{size}; {tests}"}
    if difference["value"] > 0:
        names = (pair["second"], pair["first"])
    cell = years(_size(difference))
    evidence = "; ".join([*_interval(cell), tests])
    return {"better": names[0], "names": names, "rest": f"by {cell.text} years ({evidence})"}


def _interval(cell: Cell) -> list[str]:
    """The interval in words; empty if there is none."""
    return [f"95% interval {cell.interval}"] * bool(cell.interval)


def _size(difference: dict[str, Any]) -> dict[str, Any]:
    """A difference without its sign: value and interval are turned round where it is negative."""
    value, low, high = difference["value"], difference["low"], difference["high"]
    if value >= 0:
        return difference
    if low is None or high is None:
        return {"value": -value, "low": None, "high": None}
    return {"value": -value, "low": -high, "high": -low}


def _cells(model: dict[str, Any]) -> list[Cell]:
    """MAE, CS(5), bias, coverage and width."""
    return [
        years(model["mae"]),
        percent(model["cs5"]),
        years(model["bias"], signed=True),
        percent(model["coverage"]),
        years(model["width"], digits=1),
    ]


def _pairs(pairs: Sequence[dict[str, Any]]) -> Table:
    rows: list[list[str | Cell]] = []
    for pair in pairs:
        rows.append(
            [
                " − ".join(pair["letters"]),
                years(pair["difference"], signed=True),
                probability(pair["permutation_p"]),
                probability(pair["wilcoxon_p"]),
                "yes" if pair["real"] else "no",
            ]
        )
    return Table(("Pair", "Difference", "Sign-flip p", "Wilcoxon p", "More than chance"), rows)


def _settings(rows: Sequence[dict[str, Any]], letters: Sequence[str]) -> Table | None:
    """The settings that differ, a column a model; None if there are none."""
    if not rows:
        return None
    cells: list[list[str | Cell]] = []
    for row in rows:
        cells.append([row["key"], *(setting_text(value) for value in row["values"])])
    return Table(("Setting", *letters), cells)


def setting_text(value: Any) -> str:
    """A setting's value; `-` for a setting that a model does not have."""
    if value is None:
        return "-"
    return str(value).lower() if isinstance(value, bool) else str(value)


def seed_verdict(row: dict[str, Any]) -> str:
    """A comparison of two recipes over several seeds, in words."""
    difference, deviation = row["difference"], row["deviation"]
    what = "no difference beyond noise"
    if row["p"] < 0.05:
        what = "a difference beyond noise"
    text = (
        f"{row['first']} and {row['second']}, {len(row['seeds'])} seeds each: {what}; MAE "
        f"{row['mae'][0]:.2f} and {row['mae'][1]:.2f}, difference {difference['value']:+.2f} "
        f"({difference['low']:+.2f} to {difference['high']:+.2f}), p = {probability(row['p'])}; its "
        f"standard deviation is {deviation['faces']:.2f} by the faces and {deviation['seeds']:.2f} by "
        "the seeds"
    )
    return text.replace("= <", "<")


def _strengths(column: Sequence[dict[str, Any] | None]) -> Any:
    """The strength of each cell's colour in percent: most at the smallest MAE, none at the
    largest."""
    maes = np.full(len(column), np.nan)
    for place, cell in enumerate(column):
        if cell is not None and _value(cell["mae"]) is not None:
            maes[place] = _value(cell["mae"])
    finite = maes[np.isfinite(maes)]
    if len(finite) == 0 or finite.min() == finite.max():
        return np.zeros(len(column), int)
    strengths = _STRONGEST * (finite.max() - maes) / (finite.max() - finite.min())
    return np.nan_to_num(strengths).round().astype(int)


def _matrix_cell(cell: dict[str, Any] | None, strength: int) -> dict[str, Any] | None:
    if cell is None:
        return None
    return {
        "mae": years(cell["mae"]),
        "cs5": percent(cell["cs5"]).text,
        "images": f"{cell['images']:,}",
        "strength": strength,
        "own": cell["own"],
        "report": cell.get("report"),
        "warned": bool(cell["warnings"]),
    }


def _value(figure: Any) -> Any:
    return figure["value"] if isinstance(figure, dict) else figure


def _name(section: Any) -> str:
    """The name of a set or a protocol, given as a dict or a text."""
    return str(section["name"]) if isinstance(section, dict) else str(section)
