"""Age checks of the form 'whoever looks younger than T is asked for a document', as in NIST's FATE Age Estimation and Verification.

Shape letters: N faces.
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
"""Plain limits, then 'challenge 21' and 'challenge 25' for a limit of 18, 'challenge 25' for one of 21."""


def challenge_means(
    true_N: Ages, predicted_N: Ages, labels: dict[str, Labels], rules: Sequence[Rule] = RULES
) -> list[dict[str, Any]]:
    """`challenge_table` with means in place of the shares."""
    edges = (
        min(0.0, math.floor(true_N.min())),
        *sorted({float(edge) for rule in rules for edge in rule}),
        math.inf,
    )
    table = []
    for limit, threshold in rules:
        if threshold < limit:
            raise ValueError(
                f"a threshold below the legal limit lets everybody in between pass: limit {limit:g}, threshold {threshold:g}"
            )
        row: dict[str, Any] = {"limit": float(limit), "threshold": float(threshold)}
        everybody = np.ones(len(true_N), bool)
        row |= _rates(true_N, predicted_N, everybody, limit, threshold, edges)
        for name, of in labels.items():
            parts = labelled(of, len(true_N))
            row[f"by_{name}"] = [
                {name: part, **_rates(true_N, predicted_N, here_N, limit, threshold, edges)}
                for part, here_N in parts
            ]
        table.append(row)
    return table


def challenge_table(
    true: ArrayLike,
    predicted: ArrayLike,
    labels: dict[str, Labels] | None = None,
    rules: Sequence[Rule] = RULES,
) -> list[dict[str, Any]]:
    """Of each rule (limit L, threshold T >= L) who is let in and who is not, by the predicted age p and the true age y:

    false_accept   share of the faces with y < L that have p >= T: under age, and let in. NIST's false-positive rate of 'challenge T'.
    false_reject   share of the faces with y >= L that have p < T: of age, and asked for a document.

    Both for all faces, by band of true age (the bands' edges are the rules' limits and thresholds, so that a band lies on one side of
    each limit: one of the two rates is null there), and by each of `labels` (say `{"gender": [...], "group": [...]}`), there by band too.
    A rate over no face is null. Raises ValueError if T < L.
    """
    true_N, predicted_N = pair(true, predicted)
    table: list[dict[str, Any]] = values(challenge_means(true_N, predicted_N, labels or {}, rules))
    return table


def _rates(
    true_N: Ages,
    predicted_N: Ages,
    here_N: NDArray[np.bool_],
    limit: float,
    threshold: float,
    edges: Sequence[float],
) -> dict[str, Any]:
    accepted_N, under_N = predicted_N >= threshold, true_N < limit

    def rates(chosen_N: NDArray[np.bool_]) -> dict[str, Any]:
        return {
            "under_age": int((chosen_N & under_N).sum()),
            "of_age": int((chosen_N & ~under_N).sum()),
            "false_accept": Mean.over(accepted_N, chosen_N & under_N),
            "false_reject": Mean.over(~accepted_N, chosen_N & ~under_N),
        }

    by_age = [
        {"ages": name, **rates(band_N & here_N)}
        for name, band_N in bands(true_N, edges)
        if (band_N & here_N).any()
    ]
    return {**rates(here_N), "by_age": by_age}
