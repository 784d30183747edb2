"""Age checks: whoever is predicted younger than a threshold T is asked for a document.

The rules of NIST's FATE Age Estimation and Verification. Takes true and predicted ages in years,
one per face; gives a table with one dict per rule. Shape letters: N faces.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ageray.metrics.accuracy import Ages, Labels, pair
from ageray.metrics.breakdown import bands, labelled
from ageray.metrics.mean import Mean, values

Rule = tuple[float, float]
"""Legal limit and threshold T, in years."""

RULES: tuple[Rule, ...] = ((13, 13), (16, 16), (18, 18), (21, 21), (25, 25), (18, 21), (18, 25), (21, 25))
"""Plain limits, then 'challenge 21' and 'challenge 25' for a limit of 18, 'challenge 25' for 21."""


def challenge_means(
    true_N: Ages, predicted_N: Ages, labels: dict[str, Labels], rules: Sequence[Rule] = RULES
) -> list[dict[str, Any]]:
    """`challenge_table` with a `Mean` in place of each share."""
    edges = _edges(true_N, rules)
    everybody_N = np.ones(len(true_N), bool)
    table = []
    for limit, threshold in rules:
        if threshold < limit:
            raise ValueError(
                f"a threshold below the legal limit lets everybody in between pass: "
                f"limit {limit:g}, threshold {threshold:g}"
            )
        row: dict[str, Any] = {"limit": float(limit), "threshold": float(threshold)}
        row |= _rates(true_N, predicted_N, everybody_N, limit, threshold, edges)
        for name, label_per_face in labels.items():
            row[f"by_{name}"] = [
                {name: label, **_rates(true_N, predicted_N, part_N, limit, threshold, edges)}
                for label, part_N in labelled(label_per_face, len(true_N))
            ]
        table.append(row)
    return table


def challenge_table(
    true: ArrayLike,
    predicted: ArrayLike,
    labels: dict[str, Labels] | None = None,
    rules: Sequence[Rule] = RULES,
) -> list[dict[str, Any]]:
    """Error rates of each rule (limit L, threshold T >= L), by predicted age p and true age y.

    false_accept   share of the faces with y < L that have p >= T: under age, and let in. NIST's
                   false-positive rate of 'challenge T'.
    false_reject   share of the faces with y >= L that have p < T: of age, and asked for a document.

    Both are given for all faces (`under_age` and `of_age` count them), by band of true age, and by
    each of `labels` (for example `{"gender": [...], "group": [...]}`), there by band too. The edges
    of the bands are the rules' limits and thresholds: each band lies on one side of each limit, so
    one of the two rates is null in it. A rate over no face is null. Raises ValueError if T < L.
    """
    true_N, predicted_N = pair(true, predicted)
    table: list[dict[str, Any]] = values(challenge_means(true_N, predicted_N, labels or {}, rules))
    return table


def _edges(true_N: Ages, rules: Sequence[Rule]) -> tuple[float, ...]:
    """Edges of the bands: the rules' limits and thresholds, from the youngest age to infinity."""
    inner = sorted({float(edge) for rule in rules for edge in rule})
    return (min(0.0, math.floor(true_N.min())), *inner, math.inf)


def _rates(
    true_N: Ages,
    predicted_N: Ages,
    part_N: NDArray[np.bool_],
    limit: float,
    threshold: float,
    edges: Sequence[float],
) -> dict[str, Any]:
    """Counts and rates of the faces of a part, and the same by band of true age."""
    accepted_N, under_N = predicted_N >= threshold, true_N < limit

    def rates(chosen_N: NDArray[np.bool_]) -> dict[str, Any]:
        return {
            "under_age": int((chosen_N & under_N).sum()),
            "of_age": int((chosen_N & ~under_N).sum()),
            "false_accept": Mean.over(accepted_N, chosen_N & under_N),
            "false_reject": Mean.over(~accepted_N, chosen_N & ~under_N),
        }

    by_age = []
    for name, band_N in bands(true_N, edges):
        if (band_N & part_N).any():
            by_age.append({"ages": name, **rates(band_N & part_N)})
    return {**rates(part_N), "by_age": by_age}
