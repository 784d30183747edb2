"""The pages of several models: on the same faces, and each on several sets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ageray import storage
from ageray.evaluate.page import plots
from ageray.report.cells import Cell, Table, percent, probability, years
from ageray.report.page import PAGE, render
from ageray.report.plot import SERIES

_STRONGEST = 45  # percent of the accent in a cell's ground: text stays readable on it, light and dark


def comparison_report(folder: str, comparison: dict[str, Any]) -> None:
    """Writes `report.html` into the folder of a comparison of models on the same faces.

    comparison: `data`, `protocol`, `images`, `warnings`, `models` (each with `name`, `identity`, `report`, which is a link, and `mae`, `cs5`, `bias`,
    `coverage`, `width`, `cs` and `by_age` as in a report's estimates) and `pairs` (`first` and `second`, names; `difference` of MAE,
    `permutation_p`, `wilcoxon_p`, `real`).
    """
    models = [
        {**model, "letter": letter(number), "series": number % len(SERIES)}
        for number, model in enumerate(comparison["models"])
    ]
    letters = {model["name"]: model["letter"] for model in models}
    pairs = [
        {**pair, "letters": (letters[pair["first"]], letters[pair["second"]])} for pair in comparison["pairs"]
    ]
    html = render(
        "comparison.html",
        title=f"{len(models)} models on {_name(comparison['data'])}",
        facts=[("Faces", f"{comparison['images']:,}"), ("Protocol", _name(comparison["protocol"]))],
        warnings=comparison["warnings"],
        models=[model | {"cells": _cells(model)} for model in models],
        said=[verdict(pair) for pair in pairs],
        differences=plots.differences(pairs) if pairs else None,
        pairs=_pairs(pairs),
        cs=plots.cs_curves(models),
        by_age=plots.maes_by_age(models),
    )
    storage.write_text(storage.join(folder, PAGE), html)


def matrix_report(folder: str, matrix: dict[str, Any]) -> None:
    """Writes `report.html` into the folder of a model x set matrix.

    matrix: `models` and `sets` (names) and `cells`, a row a model, each None or a dict of `mae`, `cs5`, `images`, `warnings`, `report` (a link)
    and `own`, which says that the model was trained on that set. Cells are coloured by MAE within their column: figures of different sets do
    not compare.
    """
    columns = list(zip(*matrix["cells"], strict=True))
    strengths = [_strengths(column) for column in columns]
    rows = []
    for number, (model, cells) in enumerate(zip(matrix["models"], matrix["cells"], strict=True)):
        shown = [
            None if cell is None else _matrix_cell(cell, strengths[place][number])
            for place, cell in enumerate(cells)
        ]
        rows.append({"model": model, "cells": shown})
    warned = [
        (model, name, cell["warnings"])
        for model, cells in zip(matrix["models"], matrix["cells"], strict=True)
        for name, cell in zip(matrix["sets"], cells, strict=True)
        if cell is not None and cell["warnings"]
    ]
    title = f"{len(matrix['models'])} models on {len(matrix['sets'])} sets"
    html = render(
        "matrix.html", title=title, sets=matrix["sets"], rows=rows, warned=warned, own=any(_own(matrix))
    )
    storage.write_text(storage.join(folder, PAGE), html)


def letter(number: int) -> str:
    """A, B, ... Z, AA, AB, ...: what a model is called in figures, where its name would not fit."""
    first, last = divmod(number, 26)
    return (letter(first - 1) if first else "") + chr(ord("A") + last)


def verdict(pair: dict[str, Any]) -> dict[str, Any]:
    """What a pair's difference says: which is `better` than which (`other`), None if neither, and a sentence's `rest`."""
    found = pair["difference"]
    names = (pair["first"], pair["second"])
    tests = f"p = {probability(pair['permutation_p'])} by sign flips, {probability(pair['wilcoxon_p'])} by Wilcoxon's ranks".replace(
        "= <", "<"
    )
    if not pair["real"]:
        cell = years(found, signed=True)
        between = f", 95% interval {cell.interval}" if cell.interval else ""
        return {
            "better": None,
            "names": names,
            "rest": f"the difference of MAE is {cell.text} years{between}; {tests}",
        }
    ahead, behind = names if found["value"] < 0 else names[::-1]
    size = years({"value": abs(found["value"]), **_ends(found)})
    between = f" (95% interval {size.interval}; {tests})" if size.interval else f" ({tests})"
    return {"better": ahead, "names": (ahead, behind), "rest": f"by {size.text} years{between}"}


def _ends(found: dict[str, float | None]) -> dict[str, float | None]:
    """The interval of a difference, as that of its size: turned round where the difference is negative."""
    low, high = found["low"], found["high"]
    if low is None or high is None or (found["value"] or 0) >= 0:
        return {"low": low, "high": high}
    return {"low": -high, "high": -low}


def _cells(model: dict[str, Any]) -> list[Cell]:
    shares = [percent(model[name]) for name in ("cs5", "coverage")]
    return [
        years(model["mae"]),
        shares[0],
        years(model["bias"], signed=True),
        shares[1],
        years(model["width"], digits=1),
    ]


def _pairs(pairs: Sequence[dict[str, Any]]) -> Table:
    rows = [
        (
            Cell(" − ".join(pair["letters"])),
            years(pair["difference"], signed=True),
            probability(pair["permutation_p"]),
            probability(pair["wilcoxon_p"]),
            "yes" if pair["real"] else "no",
        )
        for pair in pairs
    ]
    return Table(("Pair", "Difference", "Sign-flip p", "Wilcoxon p", "Beyond noise"), rows)


def _strengths(column: Sequence[dict[str, Any] | None]) -> list[int]:
    """How strongly each cell is coloured, percent: most where the MAE is smallest, none where it is largest."""
    values = [
        math.nan if cell is None or _value(cell["mae"]) is None else float(_value(cell["mae"]))
        for cell in column
    ]
    known = [value for value in values if math.isfinite(value)]
    reach = max(known) - min(known) if known else 0.0
    return [
        round(_STRONGEST * (max(known) - value) / reach) if math.isfinite(value) and reach > 0 else 0
        for value in values
    ]


def _matrix_cell(cell: dict[str, Any], strength: int) -> dict[str, Any]:
    said = {
        "mae": years(cell["mae"]),
        "cs5": percent(cell["cs5"]).text,
        "images": f"{cell['images']:,}",
        "strength": strength,
    }
    return said | {"own": cell["own"], "report": cell.get("report"), "warned": bool(cell["warnings"])}


def _own(matrix: dict[str, Any]) -> list[bool]:
    return [bool(cell["own"]) for cells in matrix["cells"] for cell in cells if cell is not None]


def _value(found: Any) -> Any:
    return found["value"] if isinstance(found, dict) else found


def _name(found: Any) -> str:
    """The name of a set or a protocol, given as a dict or a text."""
    return str(found["name"]) if isinstance(found, dict) else str(found)
