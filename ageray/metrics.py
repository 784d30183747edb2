"""Measures of age estimation. Ages in years, predictions not rounded. Needs neither torch nor Ray."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ages = NDArray[np.float64]


def _pair(true: ArrayLike, predicted: ArrayLike) -> tuple[Ages, Ages]:
    true_N, predicted_N = np.asarray(true, np.float64), np.asarray(predicted, np.float64)
    if true_N.shape != predicted_N.shape or true_N.ndim != 1 or len(true_N) == 0:
        raise ValueError(f"need as many predictions as ages, at least one; got {predicted_N.shape} for {true_N.shape}")
    return true_N, predicted_N


def mean_absolute_error(true: ArrayLike, predicted: ArrayLike) -> float:
    """MAE = mean |p - y| in years."""
    true_N, predicted_N = _pair(true, predicted)
    return float(np.abs(predicted_N - true_N).mean())


def cumulative_score(true: ArrayLike, predicted: ArrayLike, years: float) -> float:
    """CS(T): share of faces with |p - y| <= T, inclusive."""
    true_N, predicted_N = _pair(true, predicted)
    return float((np.abs(predicted_N - true_N) <= years).mean())


def bias(true: ArrayLike, predicted: ArrayLike) -> float:
    """Mean of p - y in years; positive is too old."""
    true_N, predicted_N = _pair(true, predicted)
    return float((predicted_N - true_N).mean())


def coverage(true: ArrayLike, low: ArrayLike, high: ArrayLike) -> float:
    """Share of faces whose age lies within their interval, ends included."""
    true_N, low_N = _pair(true, low)
    return float(((true_N >= low_N) & (true_N <= np.asarray(high, np.float64))).mean())


def by_decade(true: ArrayLike, predicted: ArrayLike) -> list[dict[str, Any]]:
    """Images, MAE and bias of each decade of true age that occurs, youngest first."""
    true_N, predicted_N = _pair(true, predicted)
    decades = np.floor(true_N / 10).astype(int)
    rows = []
    for decade in np.unique(decades):
        here = decades == decade
        rows.append(
            {
                "ages": f"{decade * 10}-{decade * 10 + 9}",
                "images": int(here.sum()),
                "mae": mean_absolute_error(true_N[here], predicted_N[here]),
                "bias": bias(true_N[here], predicted_N[here]),
            }
        )
    return rows


def summary(true: ArrayLike, predicted: ArrayLike, low: ArrayLike, high: ArrayLike, training_median: float | None) -> dict[str, Any]:
    """All of the above, beside the floors: the MAE of always saying one age, the training set's median (what a model that looks at nothing
    would say; null where it is not known) and this set's own median (the best that any one age can do here)."""
    true_N, predicted_N = _pair(true, predicted)

    def floor(age: float | None) -> dict[str, float] | None:
        return None if age is None else {"age": age, "mae": mean_absolute_error(true_N, np.full_like(true_N, age))}

    return {
        "images": len(true_N),
        "mae": mean_absolute_error(true_N, predicted_N),
        "cs3": cumulative_score(true_N, predicted_N, 3),
        "cs5": cumulative_score(true_N, predicted_N, 5),
        "bias": bias(true_N, predicted_N),
        "constant": {"training_median": floor(training_median), "own_median": floor(float(np.median(true_N)))},
        "interval": {
            "level": 0.9,
            "coverage": coverage(true_N, low, high),
            "mean_width": float((np.asarray(high, np.float64) - np.asarray(low, np.float64)).mean()),
        },
        "by_decade": by_decade(true_N, predicted_N),
    }
