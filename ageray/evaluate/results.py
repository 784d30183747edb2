"""From predictions to the figures of a report: metrics with intervals, galleries, classifiers. Needs neither torch nor Ray."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ageray import metrics

LABELS = ("subject", "gender", "group", "age_std")
"""Columns of the faces table that join the predictions."""


def with_labels(predicted: pa.Table, faces: pa.Table) -> pa.Table:
    """`predicted` with the columns LABELS of its faces."""
    order = pc.index_in(predicted.column("key"), value_set=faces.column("key"))
    assert order.null_count == 0, "every predicted face is in the faces table"
    known = faces.take(order)
    for name in LABELS:
        predicted = predicted.append_column(faces.schema.field(name), known.column(name))
    return predicted


def figures(predicted: pa.Table, levels: tuple[float, ...], training_median: float | None) -> dict[str, Any]:
    """`ageray.metrics.full_report` of predictions with their labels. Raises ValueError if no face has a prediction."""
    numbers = {name: predicted.column(name).to_numpy() for name in ("predicted", "low", "high")}
    labels = {name: predicted.column(name).to_pylist() for name in ("subject", "gender", "group")}
    deviation = predicted.column("age_std").cast(pa.float64()).to_numpy(zero_copy_only=False)
    columns: dict[str, Any] = {
        name: values if any(value is not None for value in values) else None
        for name, values in labels.items()
    }
    tested = metrics.Tested(
        predicted.column("age").to_numpy(),
        **numbers,
        **columns,
        age_std=deviation if np.isfinite(deviation).any() else None,
        quantiles=_quantiles(predicted, len(levels)),
        levels=levels,
    )
    return metrics.full_report(tested, training_median)


def _quantiles(predicted: pa.Table, count: int) -> Any:
    """(N, Q), NaN where a face has none."""
    column = predicted.column("quantiles").combine_chunks()
    found = np.full((len(column), count), np.nan)
    there = column.is_valid().to_numpy(zero_copy_only=False)
    found[there] = pc.list_flatten(column).to_numpy(zero_copy_only=False).reshape(-1, count)
    return found if there.any() else None


def unusable(predicted: pa.Table) -> dict[str, str]:
    """Key and reason of every face without a prediction."""
    bad = predicted.filter(pc.not_equal(predicted.column("error"), ""))
    return dict(zip(bad.column("key").to_pylist(), bad.column("error").to_pylist(), strict=True))


def classifiers(predicted: pa.Table, names: list[str]) -> dict[str, Any]:
    """`classifiers`: each one's MAE with its bootstrap interval, before calibration (Figure 6 of DHAA); nothing for models with one classifier."""
    if not names:
        return {}
    fine = predicted.filter(pc.equal(predicted.column("error"), ""))
    true = fine.column("age").to_numpy()
    said = (
        pc.list_flatten(fine.column("classifiers").combine_chunks())
        .to_numpy(zero_copy_only=False)
        .reshape(-1, len(names))
    )
    subjects = fine.column("subject").to_pylist()
    means = metrics.mean_errors(true, said, subjects if any(name is not None for name in subjects) else None)
    return {"classifiers": [{"name": name, "mae": mae} for name, mae in zip(names, means, strict=True)]}


def nearest(predicted: pa.Table, card: dict[str, Any], excluded: bool) -> dict[str, Any]:
    """Of a model with a gallery: `gallery`, whose faces the ages came from, and `gender`, how often the nearest faces tell it, where both the
    gallery and the set know genders. A share of exactly one half counts as half right."""
    fine = predicted.filter(pc.equal(predicted.column("error"), ""))
    gender, female, neighbours, own = (
        fine.column(name).to_numpy() for name in ("gender_number", "female", "neighbours", "own")
    )
    used = float(neighbours.sum())
    report: dict[str, Any] = {
        "gallery": {
            "faces": card["faces"],
            "neighbours": used,
            "same_subject_share": 0.0 if excluded or not used else float(own.sum()) / used,
            "same_subject_excluded": float(own.sum()) if excluded else 0.0,
            "without_neighbours": int((neighbours == 0).sum()),
        }
    }
    known = (gender >= 0) & np.isfinite(female)
    if known.any():
        right = np.where(female == 0.5, 0.5, (female > 0.5) == (gender == 1))[known]
        report["gender"] = {
            "faces": int(known.sum()),
            "accuracy": float(right.mean()),
            "by": card["gender_by"],
        }
    return report
