"""From a cell's predictions to its figure, and to its difference from the control's.

Takes reports and predictions of an evaluation; ages are those before calibration, as in the papers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ageray import metrics
from ageray.evaluate import results
from ageray.experiment.paper_table import Metric

Figure = dict[str, float | None]
"""{"value", "low", "high"}: a figure with its 95 % interval, as in a report."""

_NONE: Figure = {"value": None, "low": None, "high": None}


def figure(rows: pa.Table, metric: Metric, average: str, gallery: dict[str, Any] | None = None) -> Figure:
    """The figure of a column.

    rows: predictions with labels, of all folds and repeats. average: `folds` takes the mean of the
    folds' means; the interval stays that of the mean over faces, moved by the difference. gallery:
    what a report says of it, for `gender`.
    """
    if metric == "gender":
        section = results.gallery(rows, gallery, False) if gallery is not None else {}
        if "gender" not in section:
            return dict(_NONE)
        return {**_NONE, "value": section["gender"]["accuracy"]}
    plain = results.plain(_with_units(rows)).get("plain")
    if plain is None:
        return dict(_NONE)
    if metric == "epsilon_error":
        return dict(plain["epsilon_error"] or _NONE)
    if metric in ("cs3", "cs5"):
        limit = int(metric.removeprefix("cs"))
        for row in plain["cs"]:
            if row["years"] == limit:
                return dict(row["share"])
    whole = dict(plain["mae"])
    if average == "folds" and whole["value"] is not None:
        moved = _mean_of_folds(rows) - whole["value"]
        for name, value in whole.items():
            if value is not None:
                whole[name] = value + moved
    return whole


def _mean_of_folds(rows: pa.Table) -> float:
    """The mean over folds of their MAE."""
    errors = np.abs(rows.column("plain").to_numpy() - rows.column("age").to_numpy())
    folds = np.array(rows.column("fold").to_pylist())
    means = [np.nanmean(errors[folds == fold]) for fold in np.unique(folds)]
    return float(np.mean(means))


def calibrated(rows: pa.Table) -> float | None:
    """The MAE of the calibrated ages."""
    fine = rows.filter(pc.is_finite(rows.column("predicted")))
    if not fine.num_rows:
        return None
    return metrics.mean_absolute_error(fine.column("age").to_numpy(), fine.column("predicted").to_numpy())


def of_classifier(rows: pa.Table, names: list[str], name: str) -> pa.Table:
    """The rows with the ages of one classifier in place of the decoded ones."""
    place, column = names.index(name), rows.column_names.index("plain")
    ages = []
    for values in rows.column("classifiers").to_pylist():
        ages.append(float("nan") if values is None else values[place])
    return rows.set_column(column, "plain", pa.array(ages, pa.float32()))


def difference(own: pa.Table, control: pa.Table) -> dict[str, Any] | None:
    """The MAE of a cell minus that of its control, over the faces that both have tested in the same
    fold and repeat: `difference` with its interval, `p` of the sign-flip test, `faces`.

    None if they share no face.
    """
    keys = [_places(own), _places(control)]
    shared = sorted(keys[0].keys() & keys[1].keys())
    first = own.take(pa.array([keys[0][key] for key in shared], pa.int64()))
    second = control.take(pa.array([keys[1][key] for key in shared], pa.int64()))
    ages, control_ages = (each.column("plain").to_numpy() for each in (first, second))
    if not (np.isfinite(ages) & np.isfinite(control_ages)).any():
        return None
    subjects = _subjects(_with_units(first))
    tests = metrics.compare(first.column("age").to_numpy(), ages, control_ages, subjects)
    return {"difference": tests["mae"]["difference"], "p": tests["permutation_p"], "faces": len(shared)}


def _places(rows: pa.Table) -> dict[tuple[Any, ...], int]:
    """The row of each repeat, fold and key."""
    names = [rows.column(name).to_pylist() for name in ("repeat", "fold", "key")]
    return {key: place for place, key in enumerate(zip(*names, strict=True))}


def _with_units(rows: pa.Table) -> pa.Table:
    """With several repeats, a face of no known person is its own subject: the repeats that test it
    are not independent, and an interval must draw them together."""
    if len(pc.unique(rows.column("repeat"))) < 2:
        return rows
    place = rows.column_names.index("subject")
    return rows.set_column(place, "subject", pc.coalesce(rows.column("subject"), rows.column("key")))


def _subjects(rows: pa.Table) -> list[str | None] | None:
    subjects: list[str | None] = rows.column("subject").to_pylist()
    if all(subject is None for subject in subjects):
        return None
    return subjects
