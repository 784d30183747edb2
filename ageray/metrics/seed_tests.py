"""Test between two recipes, each trained with several seeds and tested on the same faces.

Is the difference of MAE more than the noise of faces and seeds? Takes both recipes' predictions,
gives the difference, its interval and a p-value. Shape letters: S seeds, N faces, C units.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ageray.metrics.accuracy import Ages, Labels, units

LEVEL = 0.95


def compare_seeds(
    true: ArrayLike, first: ArrayLike, second: ArrayLike, subjects: Labels | None = None
) -> dict[str, Any]:
    """MAE of both, averaged over the seeds; of `first` minus `second` an interval and a p-value.

    true: (N,). first, second: (S, N) predicted ages; row s of both was trained with the same seed,
    S >= 2. The variance of the difference has two terms: over faces (over subjects where they are
    known) of the mean over seeds, and over seeds of the mean over faces:
    V = var_C / C + var_S / S. Student's t has the degrees of freedom of Welch and Satterthwaite,
    V^2 / ((var_C / C)^2 / (C - 1) + (var_S / S)^2 / (S - 1)).
    The interaction of seed and face is in both terms, so the interval is a little too wide rather
    than too narrow.
    Raises ValueError if the shapes do not fit or there are fewer than two seeds or units.
    """
    true_N, first_SN, second_SN = (np.asarray(ages, np.float64) for ages in (true, first, second))
    _check_shapes(true_N, first_SN, second_SN)
    error_SN, other_SN = np.abs(first_SN - true_N), np.abs(second_SN - true_N)
    difference_SN = error_SN - other_SN
    value = float(difference_SN.mean())
    unit_N = np.arange(len(true_N))
    if subjects is not None:
        unit_N = units(subjects, len(true_N))
    seeds, count = len(difference_SN), int(unit_N.max()) + 1
    if count < 2:
        raise ValueError("need two units or more to tell a difference from noise")
    # sums over a unit's faces: the linearised deviation of the mean
    deviation_C = np.bincount(unit_N, difference_SN.mean(0) - value)
    of_faces = float((deviation_C**2).sum()) * count / (count - 1) / len(true_N) ** 2
    of_seeds = float(difference_SN.mean(1).var(ddof=1)) / seeds
    reach, p, freedom = _t_test(value, of_faces, count, of_seeds, seeds)
    return {
        "first": float(error_SN.mean()),
        "second": float(other_SN.mean()),
        "difference": {"value": value, "low": value - reach, "high": value + reach},
        "p": p,
        "freedom": freedom,
        "deviation": {"faces": of_faces**0.5, "seeds": of_seeds**0.5},
        "level": LEVEL,
    }


def _check_shapes(true_N: Ages, first_SN: Ages, second_SN: Ages) -> None:
    equal = first_SN.shape == second_SN.shape
    if not equal or first_SN.ndim != 2 or first_SN.shape[1:] != true_N.shape or len(first_SN) < 2:
        raise ValueError(
            f"need predictions of two seeds or more for each face; "
            f"got {first_SN.shape} and {second_SN.shape} for {true_N.shape}"
        )


def _t_test(
    value: float, of_faces: float, count: int, of_seeds: float, seeds: int
) -> tuple[float, float, float]:
    """Half the interval's width, the p-value and the degrees of freedom."""
    from scipy import stats  # takes a second to load

    variance = of_faces + of_seeds
    if variance == 0:
        return 0.0, 1.0 if value == 0 else 0.0, float(count - 1)
    freedom = variance**2 / (of_faces**2 / (count - 1) + of_seeds**2 / (seeds - 1))
    reach = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * variance**0.5
    return reach, float(2 * stats.t.sf(abs(value) / variance**0.5, freedom)), freedom
