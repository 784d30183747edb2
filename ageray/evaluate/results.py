"""From predictions to report.json: figures with intervals, galleries, classifiers.

`build` takes predictions with labels (the table of `with_labels`) and what is known of model, data
and protocol; it gives the report of one model. A new figure of the report is added here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ageray import metrics
from ageray.audit.leakage import MEDIAN_LINE
from ageray.calibration import LIMITS, one_age_each
from ageray.errors import UserError
from ageray.evaluate.predictions import LEVELS
from ageray.experiment import Data

LABELS = ("subject", "gender", "group", "age_std")
"""Columns of the faces table that join the predictions."""


@dataclass(frozen=True)
class Model:
    """What a report says of a model, and what its figures depend on.

    name, network, identity   as in the report; `identity` is None where each fold has its own model
    training_median           median age of the training faces, None if it is not known
    classifiers               names of the network's classifiers, empty for a single one
    gallery                   what the card says of the gallery, None without one
    correlation               of the errors of one person's photos, None where there is no bundle
    exclude_subject           whether the gallery leaves out the face's own subject
    card                      the bundle's card, None where there is no bundle
    """

    name: str
    network: str
    identity: str | None
    training_median: float | None
    classifiers: Sequence[str]
    gallery: dict[str, Any] | None
    exclude_subject: bool
    card: dict[str, Any] | None
    correlation: float | None = None


def build(
    rows: pa.Table,
    *,
    model: Model,
    data: Data,
    protocol: dict[str, Any],
    notes: list[str],
    warnings: list[str],
    audit: dict[str, Any],
) -> dict[str, Any]:
    """The report of one model: what goes into report.json.

    rows: predictions with their labels. notes: what the split leaks. warnings: what a reader of the
    figures must know. audit: see `ageray.evaluate.split_audit`.
    Raises UserError if no face has a prediction that is a number.
    """
    if not np.isfinite(rows.column("predicted").to_numpy()).any():
        raise UserError(
            f"{model.name}: no tested face has an age, because the network's outputs are not numbers: its "
            "training has diverged; lower train.stages.0.optimizer.lr, or start from model.weights"
        )
    measured = figures(rows, LEVELS, model.training_median)
    return {
        "model": {"name": model.name, "network": model.network, "identity": model.identity},
        "data": {"name": data.name, "shards": data.shards, "landmarks": data.landmarks},
        "protocol": protocol,
        "notes": notes,
        "warnings": warnings,
        "levels": list(LEVELS),
        **measured,
        **plain(rows),
        **classifiers(rows, model.classifiers),
        **gallery(rows, model.gallery, model.exclude_subject),
        **people(rows, model.correlation),
        "audit": _with_one_median(audit, measured["constant"]["training_median"]),
        "unusable": unusable(rows),
        "card": model.card,
    }


def _with_one_median(audit: dict[str, Any], floor: dict[str, Any] | None) -> dict[str, Any]:
    """The audit without a training median of its own, where the model's card has one.

    The card's is of the faces that trained; the audit's also counts those that validated, and may
    count other shards.
    """
    if floor is None:
        return audit
    lines = [line for line in audit["lines"] if not line.startswith(MEDIAN_LINE)]
    constant = {"median": floor["age"], "mae": floor["mae"]}
    return audit | {"lines": lines, "constant": constant}


def with_labels(predicted: pa.Table, faces: pa.Table) -> pa.Table:
    """`predicted` with the columns LABELS of its faces."""
    order = pc.index_in(predicted.column("key"), value_set=faces.column("key"))
    assert order.null_count == 0, "every predicted face is in the faces table"
    labels = faces.take(order)
    for name in LABELS:
        predicted = predicted.append_column(faces.schema.field(name), labels.column(name))
    return predicted


def figures(rows: pa.Table, levels: Sequence[float], training_median: float | None) -> dict[str, Any]:
    """`ageray.metrics.full_report` of predictions with their labels.

    Raises ValueError if no face has a prediction.
    """
    deviations = rows.column("age_std").cast(pa.float64()).to_numpy(zero_copy_only=False)
    if not np.isfinite(deviations).any():
        deviations = None
    tested = metrics.Tested(
        rows.column("age").to_numpy(),
        rows.column("predicted").to_numpy(),
        rows.column("low").to_numpy(),
        rows.column("high").to_numpy(),
        subject=_labels(rows, "subject"),
        gender=_labels(rows, "gender"),
        group=_labels(rows, "group"),
        age_std=deviations,
        quantiles=_quantiles(rows, len(levels)),
        levels=levels,
        over=_over(rows),
    )
    return metrics.full_report(tested, training_median)


def plain(rows: pa.Table) -> dict[str, Any]:
    """`plain`: the figures before calibration. Empty for predictions of before this column."""
    if "plain" not in rows.column_names:
        return {}
    deviations = rows.column("age_std").cast(pa.float64()).to_numpy(zero_copy_only=False)
    if not np.isfinite(deviations).any():
        deviations = None
    true = rows.column("age").to_numpy()
    ages = pc.fill_null(rows.column("plain").cast(pa.float64()), np.nan).to_numpy()
    section = metrics.plain_report(true, ages, _labels(rows, "subject"), deviations)
    return {} if section is None else {"plain": section}


def _over(rows: pa.Table) -> dict[int, NDArray[np.floating[Any]]] | None:
    """The probability of each age limit of LIMITS, (N,) each; None if the model reports none."""
    names = {limit: f"over_{limit}" for limit in LIMITS}
    if not set(names.values()) <= set(rows.column_names):
        return None
    return {limit: rows.column(name).to_numpy() for limit, name in names.items()}


def people(rows: pa.Table, correlation: float | None) -> dict[str, Any]:
    """`people`: the gain from several photos of a person, see `ageray.calibration.one_age_each`.

    Empty if no subject has two photos with a prediction, or `correlation` is None.
    """
    if correlation is None:
        return {}
    fine = rows.filter(pc.is_finite(rows.column("predicted")))
    true, age, low, high = (fine.column(name).to_numpy() for name in ("age", "predicted", "low", "high"))
    about = one_age_each(true, fine.column("subject").to_pylist(), age, low, high, correlation)
    return {"people": about} if about["people"] else {}


def unusable(rows: pa.Table) -> dict[str, str]:
    """Key and reason of every face without a prediction."""
    failed = rows.filter(pc.not_equal(rows.column("error"), ""))
    return dict(zip(failed.column("key").to_pylist(), failed.column("error").to_pylist(), strict=True))


def classifiers(rows: pa.Table, names: Sequence[str]) -> dict[str, Any]:
    """`classifiers`: the MAE of each one with its interval, before calibration (DHAA, Figure 6).

    Empty for models with a single classifier.
    """
    if not names:
        return {}
    fine = _usable(rows)
    ages = pc.list_flatten(fine.column("classifiers").combine_chunks()).to_numpy(zero_copy_only=False)
    means = metrics.mean_errors(
        fine.column("age").to_numpy(), ages.reshape(-1, len(names)), _labels(fine, "subject")
    )
    return {"classifiers": [{"name": name, "mae": mae} for name, mae in zip(names, means, strict=True)]}


def gallery(rows: pa.Table, card: dict[str, Any] | None, exclude_subject: bool) -> dict[str, Any]:
    """`gallery` and `gender` of a model that predicts from a gallery; empty for other models.

    gallery   how many faces it has, how many neighbours the ages come from, and how many of these
              show the face's own subject or were left out for that reason
    gender    how often the majority of the nearest faces has the face's gender, over the faces
              where both the gallery and the set know it; an equal vote counts as half right
    """
    if card is None:
        return {}
    fine = _usable(rows)
    neighbours, own = fine.column("neighbours").to_numpy(), fine.column("own").to_numpy()
    total, own_share, own_excluded = float(neighbours.sum()), 0.0, 0.0
    if exclude_subject:
        own_excluded = float(own.sum())
    elif total:
        own_share = float(own.sum()) / total
    section: dict[str, Any] = {
        "faces": card["faces"],
        "neighbours": total,
        "same_subject_share": own_share,
        "same_subject_excluded": own_excluded,
        "without_neighbours": int((neighbours == 0).sum()),
    }
    gender, female = fine.column("gender_number").to_numpy(), fine.column("female").to_numpy()
    both_known = (gender >= 0) & np.isfinite(female)
    if not both_known.any():
        return {"gallery": section}
    right = np.where(female == 0.5, 0.5, (female > 0.5) == (gender == 1))[both_known]
    accuracy = {"faces": int(both_known.sum()), "accuracy": float(right.mean()), "by": card["gender_by"]}
    return {"gallery": section, "gender": accuracy}


def _usable(rows: pa.Table) -> pa.Table:
    return rows.filter(pc.equal(rows.column("error"), ""))


def _labels(rows: pa.Table, name: str) -> list[str | None] | None:
    """A column of labels; None if no face has one."""
    labels: list[str | None] = rows.column(name).to_pylist()
    if all(label is None for label in labels):
        return None
    return labels


def _quantiles(rows: pa.Table, count: int) -> NDArray[np.float64] | None:
    """(N, Q), NaN where a face has none; None if no face has any."""
    column = rows.column("quantiles").combine_chunks()
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    if not valid.any():
        return None
    quantiles = np.full((len(column), count), np.nan)
    quantiles[valid] = pc.list_flatten(column).to_numpy(zero_copy_only=False).reshape(-1, count)
    return quantiles
