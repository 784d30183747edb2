"""Tests between two models on the same faces: is the difference of their errors more than chance?

Takes the true ages and both models' predictions; gives the difference of MAE, its interval and two
p-values. Shape letters: N faces, C units (subjects, or faces), P sign patterns, A answers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ageray.metrics.accuracy import Labels, pair
from ageray.metrics.bootstrap import Bootstrap, with_intervals
from ageray.metrics.mean import Mean

FLIPS = 9999
"""Sign patterns of the permutation test: its smallest p-value is 1 / 10,000."""

LEVEL = 0.05
"""A difference counts as real if the permutation test's p-value, times the number of pairs
(Bonferroni), is below this."""


def compare(
    true: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    subjects: Labels | None = None,
    *,
    resamples: int = 1000,
    flips: int = FLIPS,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """MAE of both models and of `first` minus `second` with bootstrap intervals, and two p-values.

    The three intervals use the same resamples, so the comparison is paired.

    permutation_p   of the sign-flip test. If the models were exchangeable, each unit's difference
                    would be as likely to have the other sign. Statistic: the mean over the images
                    of |p1 - y| - |p2 - y|, two-sided. p = (1 + hits) / (1 + flips), so never 0.
    wilcoxon_p      of Wilcoxon's signed-rank test over the units' mean differences, two-sided,
                    zeros dropped. It tests ranks, not MAE.

    A unit is a subject where subjects are known, else an image. Faces that a model gave no age
    (NaN) are left out and counted in `missing`.
    Raises ValueError if the lengths differ or no face is left.
    """
    true_N, first_N = pair(true, first)
    _, second_N = pair(true, second)
    fine_N = np.isfinite(first_N) & np.isfinite(second_N)
    if not fine_N.any():
        raise ValueError("no face has an age by both models")
    first_N = np.abs(first_N - true_N)[fine_N]
    second_N = np.abs(second_N - true_N)[fine_N]
    if subjects is not None:
        subjects = [subjects[row] for row in np.flatnonzero(fine_N).tolist()]
    bootstrap = Bootstrap(len(first_N), subjects, resamples, level, seed)
    difference_N = first_N - second_N
    means = {
        "first": Mean.over(first_N),
        "second": Mean.over(second_N),
        "difference": Mean.over(difference_N),
    }
    sum_C = np.bincount(bootstrap.unit_N, difference_N)
    return {
        "images": len(first_N),
        "missing": int((~fine_N).sum()),
        "mae": with_intervals(means, bootstrap),
        "permutation_p": sign_flip_test(sum_C, flips, seed),
        "wilcoxon_p": signed_rank_test(sum_C / np.bincount(bootstrap.unit_N)),
        "bootstrap": bootstrap.to_dict(),
    }


def mean_errors(
    true: ArrayLike,
    predicted: ArrayLike,
    subjects: Labels | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Any]:
    """The MAE of each of A answers to the same faces: {"value", "low", "high"}, 95 % intervals.

    predicted: (N, A) years.
    """
    means = []
    for answer_N in np.asarray(predicted, np.float64).T:
        true_N, answer_N = pair(true, answer_N)
        means.append(Mean.over(np.abs(answer_N - true_N)))
    faces = len(np.asarray(true))
    errors: list[Any] = with_intervals(means, Bootstrap(faces, subjects, resamples, seed=seed))
    return errors


def sign_flip_test(sums: ArrayLike, flips: int = FLIPS, seed: int = 0) -> float:
    """Two-sided p-value of sum_c s_c under random signs.

    sums: s (C,), the sum of the paired differences of each unit.
    """
    sum_C = np.asarray(sums, np.float64)
    rng, observed = np.random.default_rng(seed), abs(float(sum_C.sum()))
    least = observed - 1e-9 * float(np.abs(sum_C).sum())  # rounding may break a tie by this much
    hits, rows = 0, max(1, 2**22 // len(sum_C))
    for start in range(0, flips, rows):
        # the sum under signs +-1 is twice the sum of the units with sign +1, minus the sum of all
        plus_PC = _coins(rng, min(rows, flips - start), len(sum_C))
        hits += int((np.abs(2 * (plus_PC @ sum_C) - sum_C.sum()) >= least).sum())
    return (1 + hits) / (1 + flips)


def signed_rank_test(differences: ArrayLike) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test over differences (C,); 1 if all are zero."""
    from scipy import stats  # takes a second to load, and few comparisons are made

    difference_C = np.asarray(differences, np.float64)
    return float(stats.wilcoxon(difference_C).pvalue) if difference_C.any() else 1.0


def _coins(rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.float64]:
    """Random zeros and ones (rows, columns), eight per random byte."""
    width = -(-columns // 8)
    bits = np.frombuffer(rng.bytes(rows * width), np.uint8).reshape(rows, width)
    return np.unpackbits(bits, axis=1, count=columns).astype(np.float64)
