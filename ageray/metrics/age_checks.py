"""Age checks by a probability, and the mean absolute error of young adults as NIST reports it.

NIST's Face Analysis Technology Evaluation, Age Estimation and Verification (FATE AEV, NIST IR 8525
and its web page) calls a minor who passes a false positive; so do we, as a false adult. Shape
letters: N faces, L limits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ageray.metrics.accuracy import Ages, Labels, pair
from ageray.metrics.breakdown import labelled
from ageray.metrics.mean import Mean, values

THRESHOLDS = (0.5, 0.8, 0.9, 0.95, 0.99)
"""Probabilities from which a face passes as of age."""

YOUNG = (18, 30)
"""Ages, both included, over which NIST averages its mean absolute error."""


def age_check_means(
    true_N: Ages,
    over: Mapping[int, ArrayLike],
    labels: Mapping[str, Labels],
    thresholds: Sequence[float] = THRESHOLDS,
) -> list[dict[str, Any]]:
    """`age_check_table` with means in place of the shares."""
    table = []
    for limit, probability in over.items():
        _, probability_N = pair(true_N, probability)
        of_age_N = true_N >= limit
        brier = Mean.over((probability_N - of_age_N) ** 2)
        row: dict[str, Any] = {
            "limit": int(limit),
            "brier": brier,
            "mean_probability": Mean.over(probability_N),
        }
        row["share_of_age"] = Mean.over(of_age_N)
        row["thresholds"] = []
        for threshold in thresholds:
            passed_N = probability_N >= threshold
            everybody_N = np.ones(len(true_N), bool)
            cell: dict[str, Any] = {"threshold": float(threshold), **_rates(passed_N, of_age_N, everybody_N)}
            for name, column in labels.items():
                parts = labelled(column, len(true_N))
                cell[f"by_{name}"] = [
                    {name: part, **_rates(passed_N, of_age_N, rows_N)} for part, rows_N in parts
                ]
            row["thresholds"].append(cell)
        table.append(row)
    return table


def age_check_table(
    true: ArrayLike,
    over: Mapping[int, ArrayLike],
    labels: Mapping[str, Labels] | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
) -> list[dict[str, Any]]:
    """Of each limit and threshold t, with the probability p of being of that age or over, and the
    true age y:

    false_adult   share of the faces with y < limit that have p >= t: minors who pass
    false_minor   share of the faces with y >= limit that have p < t: adults who do not

    Both for all faces and by each of `labels`. Besides: `brier`, the mean of (p - [y >= limit])^2,
    and `mean_probability` and `share_of_age`, the means of p and of [y >= limit], equal where p is
    calibrated. over: limit to (N,). A rate over no face is null. Raises ValueError if the lengths
    differ.
    """
    true_N, _ = pair(true, true)
    table: list[dict[str, Any]] = values(age_check_means(true_N, over, labels or {}, thresholds))
    return table


def _rates(
    passed_N: NDArray[np.bool_], of_age_N: NDArray[np.bool_], rows_N: NDArray[np.bool_]
) -> dict[str, Any]:
    return {
        "under_age": int((rows_N & ~of_age_N).sum()),
        "of_age": int((rows_N & of_age_N).sum()),
        "false_adult": Mean.over(passed_N, rows_N & ~of_age_N),
        "false_minor": Mean.over(~passed_N, rows_N & of_age_N),
    }


def young_adult_mean(true_N: Ages, predicted_N: Ages, gender: Labels | None = None) -> Mean:
    """The MAE over ages 18 to 30 as NIST averages it: the mean over both sexes and the 13 ages of
    each one's MAE, where sexes are known of any face in that range; else the mean over the ages.
    Cells without a face are left out."""
    error_N, age_N = np.abs(predicted_N - true_N), np.floor(true_N).astype(int)
    rows = np.flatnonzero((age_N >= YOUNG[0]) & (age_N <= YOUNG[1]))
    names = list(gender or [None] * len(true_N))
    sexes = np.array([names[row] or "" for row in rows.tolist()], str)
    if (sexes != "").any():
        rows, sexes = rows[sexes != ""], sexes[sexes != ""]
    cells = np.unique(np.stack([age_N[rows].astype(str), sexes]), axis=1, return_inverse=True)[1].ravel()
    sizes = np.bincount(cells, minlength=1)
    return Mean(error_N[rows], rows, 1.0 / sizes[cells] if len(rows) else np.zeros(0))


def young_adult_mae(true: ArrayLike, predicted: ArrayLike, gender: Labels | None = None) -> float | None:
    """`young_adult_mean`'s value in years; None where no face is of 18 to 30."""
    true_N, predicted_N = pair(true, predicted)
    return young_adult_mean(true_N, predicted_N, gender).value
