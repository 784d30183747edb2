"""Coverage and width of intervals, and calibration of quantiles.

Takes true ages and predicted intervals or quantiles in years. Shape letters: N faces, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ageray.metrics.accuracy import Ages, pair
from ageray.metrics.mean import Mean, values


def covered(true: ArrayLike, low: ArrayLike, high: ArrayLike) -> NDArray[np.bool_]:
    """Whether each face's age lies within its interval (N,), ends included."""
    true_N, low_N = pair(true, low)
    _, high_N = pair(true, high)
    return (true_N >= low_N) & (true_N <= high_N)


def coverage(true: ArrayLike, low: ArrayLike, high: ArrayLike) -> float:
    """Share of faces whose age lies within their interval, ends included."""
    return float(covered(true, low, high).mean())


def mean_width(low: ArrayLike, high: ArrayLike) -> float:
    """Mean of high - low in years."""
    low_N, high_N = pair(low, high)
    return float((high_N - low_N).mean())


def calibration_means(true_N: Ages, quantiles: ArrayLike, levels: Sequence[float]) -> list[dict[str, Any]]:
    """`calibration_curve` with a `Mean` in place of each share."""
    quantiles_NQ = np.asarray(quantiles, np.float64)
    if quantiles_NQ.shape != (len(true_N), len(levels)):
        raise ValueError(
            f"need one quantile a face and level, {(len(true_N), len(levels))}; got {quantiles_NQ.shape}"
        )
    if not all(0 < level < 1 for level in levels):
        raise ValueError(f"levels of quantiles lie between 0 and 1; got {list(levels)}")
    return [
        {"level": float(level), "observed": Mean.over(true_N <= quantiles_NQ[:, q])}
        for q, level in enumerate(levels)
    ]


def calibration_curve(true: ArrayLike, quantiles: ArrayLike, levels: Sequence[float]) -> list[dict[str, Any]]:
    """For each level, the share of faces whose age is at or below their quantile of that level.

    The share equals the level if the quantiles are calibrated. quantiles: (N, Q) years; levels:
    (Q,). Ages in whole years are at or below their quantile a little too often; where a label means
    completed years, add half a year first.
    Raises ValueError if the shapes do not fit or a level is not between 0 and 1.
    """
    true_N, _ = pair(true, true)
    curve: list[dict[str, Any]] = values(calibration_means(true_N, quantiles, levels))
    return curve


def calibration_error(true: ArrayLike, quantiles: ArrayLike, levels: Sequence[float]) -> float:
    """Mean over the levels of |observed - level|.

    Departs from Kuleshov et al. (2018), who square the differences.
    """
    curve = calibration_curve(true, quantiles, levels)
    return float(np.mean([abs(row["observed"] - row["level"]) for row in curve]))
