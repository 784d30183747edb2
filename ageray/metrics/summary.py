"""All figures of a tested model: the few that everybody reads, and all of them with bootstrap intervals. Shape letters: N faces, Q quantiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ageray.metrics.accuracy import (
    CS_LIMITS,
    Ages,
    Labels,
    bias,
    cumulative_score,
    epsilon_errors,
    mean_absolute_error,
    pair,
    subject_weights,
)
from ageray.metrics.bootstrap import Bootstrap, estimate, with_intervals
from ageray.metrics.breakdown import bands, by_decade, decades, labelled
from ageray.metrics.challenge import RULES, Rule, challenge_means
from ageray.metrics.interval import calibration_means, coverage, covered, mean_width
from ageray.metrics.mean import Mean, Tree
from ageray.metrics.risk_coverage import ApiError, refusal_figures


def summary(
    true: ArrayLike, predicted: ArrayLike, low: ArrayLike, high: ArrayLike, training_median: float | None
) -> dict[str, Any]:
    """The figures that everybody reads, beside the floors: the MAE of always saying one age, the training set's median (what a model that
    looks at nothing would say; null where it is not known) and this set's own median (the best that any one age can do here)."""
    true_N, predicted_N = pair(true, predicted)

    def floor(age: float | None) -> dict[str, float] | None:
        return (
            None
            if age is None
            else {"age": age, "mae": mean_absolute_error(true_N, np.full_like(true_N, age))}
        )

    return {
        "images": len(true_N),
        "mae": mean_absolute_error(true_N, predicted_N),
        "cs3": cumulative_score(true_N, predicted_N, 3),
        "cs5": cumulative_score(true_N, predicted_N, 5),
        "bias": bias(true_N, predicted_N),
        "constant": {
            "training_median": floor(training_median),
            "own_median": floor(float(np.median(true_N))),
        },
        "interval": {
            "level": 0.9,
            "coverage": coverage(true_N, low, high),
            "mean_width": mean_width(low, high),
        },
        "by_decade": by_decade(true_N, predicted_N),
    }


@dataclass(frozen=True, eq=False)
class Tested:
    """A model's answers beside the truth, one entry a face; ages in years.

    `predicted` is NaN where the model gave none. `low` and `high` are the ends of its 90 % interval. `age_std` is the annotators' standard
    deviation (NaN where unknown). `quantiles` (N, Q) are the posterior's at `levels` (Q,). Raises ValueError if the lengths differ.
    """

    true: ArrayLike
    predicted: ArrayLike
    low: ArrayLike
    high: ArrayLike
    subject: Labels | None = None
    gender: Labels | None = None
    group: Labels | None = None
    age_std: ArrayLike | None = None
    quantiles: ArrayLike | None = None
    levels: Sequence[float] = ()

    def __post_init__(self) -> None:
        for name in ("predicted", "low", "high", "age_std"):
            if (column := getattr(self, name)) is not None:
                pair(self.true, column)
        for name in ("subject", "gender", "group", "quantiles"):
            if (column := getattr(self, name)) is not None and len(column) != len(np.asarray(self.true)):
                raise ValueError(f"{len(column)} entries of {name} for {len(np.asarray(self.true))} faces")

    def only(self, chosen_N: NDArray[np.bool_]) -> Tested:
        """The chosen faces alone."""
        columns: dict[str, Any] = {"levels": self.levels}
        for name in ("true", "predicted", "low", "high", "age_std", "quantiles"):
            column = getattr(self, name)
            columns[name] = None if column is None else np.asarray(column, np.float64)[chosen_N]
        for name in ("subject", "gender", "group"):
            column = getattr(self, name)
            columns[name] = None if column is None else [column[row] for row in np.flatnonzero(chosen_N)]
        return Tested(**columns)


def full_report(
    tested: Tested,
    training_median: float | None = None,
    *,
    rules: Sequence[Rule] = RULES,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """`summary`'s figures and, under `estimates`, all of them with bootstrap intervals as {"value", "low", "high"}; `bootstrap` says how.

    `estimates` holds `overall` (MAE, bias, CS curve, epsilon-error, interval coverage and width; the first and the epsilon-error over
    subjects too), `constant` (the floors), `by_age` (decades), `by_gender`, `by_group`, `challenge` (see `challenge_table`), `calibration` (where
    quantiles are given) and `risk_coverage`. What the faces do not tell (no subject, no deviations) is null. `missing` counts faces
    without a prediction: only the epsilon-error counts them. Raises ValueError if no face has a prediction.
    """
    given_N = np.isfinite(np.asarray(tested.predicted, np.float64))
    if not given_N.any():
        raise ValueError("no face has a prediction")
    fine = tested.only(given_N)

    def drawn(faces: Tested) -> Bootstrap:
        return Bootstrap(len(np.asarray(faces.true)), faces.subject, resamples, level, seed)

    bootstrap = drawn(fine)
    estimates = with_intervals(_tree(fine, training_median, rules), bootstrap)
    estimates["overall"] |= with_intervals(_epsilon(tested), drawn(tested))
    estimates["risk_coverage"] = _refusal(fine, bootstrap)
    return {
        **summary(fine.true, fine.predicted, fine.low, fine.high, training_median),
        "missing": int((~given_N).sum()),
        "bootstrap": bootstrap.to_dict(),
        "estimates": estimates,
    }


def _tree(fine: Tested, training_median: float | None, rules: Sequence[Rule]) -> dict[str, Tree]:
    true_N, predicted_N = pair(fine.true, fine.predicted)
    labels = {name: of for name in ("gender", "group") if (of := getattr(fine, name)) is not None}
    error_N, everybody_N = np.abs(predicted_N - true_N), np.ones(len(true_N), bool)
    subjects = _subject_weights(fine)
    overall = {
        **_part(fine, everybody_N),
        "mae_over_subjects": None if subjects is None else Mean.over(error_N, None, subjects),
        "cs": [{"years": limit, "share": Mean.over(error_N <= limit)} for limit in CS_LIMITS],
    }
    return {
        "overall": overall,
        "constant": {
            "training_median": _floor(true_N, training_median),
            "own_median": _floor(true_N, float(np.median(true_N))),
        },
        "by_age": [{"ages": name, **_part(fine, here_N)} for name, here_N in bands(true_N, decades(true_N))],
        **{
            f"by_{name}": [{name: part, **_part(fine, here_N)} for part, here_N in labelled(of, len(true_N))]
            for name, of in labels.items()
        },
        "challenge": challenge_means(true_N, predicted_N, labels, rules),
        "calibration": None
        if fine.quantiles is None
        else calibration_means(true_N, fine.quantiles, fine.levels),
    }


def _part(fine: Tested, here_N: NDArray[np.bool_]) -> dict[str, Tree]:
    true_N, predicted_N = pair(fine.true, fine.predicted)
    low_N, high_N = pair(fine.low, fine.high)
    difference_N = predicted_N - true_N
    return {
        "images": int(here_N.sum()),
        "mae": Mean.over(np.abs(difference_N), here_N),
        "bias": Mean.over(difference_N, here_N),
        "cs5": Mean.over(np.abs(difference_N) <= 5, here_N),
        "coverage": Mean.over(covered(true_N, low_N, high_N), here_N),
        "width": Mean.over(high_N - low_N, here_N),
    }


def _floor(true_N: Ages, age: float | None) -> dict[str, Tree] | None:
    return None if age is None else {"age": age, "mae": Mean.over(np.abs(true_N - age))}


def _subject_weights(tested: Tested) -> Ages | None:
    subjects = tested.subject
    known = subjects is not None and any(subject is not None for subject in subjects)
    return subject_weights(subjects, len(subjects)) if known and subjects is not None else None


def _epsilon(tested: Tested) -> dict[str, Tree]:
    names = ("epsilon_error", "epsilon_error_over_subjects")
    deviation_N = np.full(1, np.nan) if tested.age_std is None else np.asarray(tested.age_std, np.float64)
    known_N = np.isfinite(deviation_N)
    if not known_N.any():
        return dict.fromkeys(names)
    error_N = np.zeros(len(known_N))
    true_N, predicted_N = pair(tested.true, tested.predicted)
    error_N[known_N] = epsilon_errors(true_N[known_N], deviation_N[known_N], predicted_N[known_N])
    known = tested.only(known_N)
    found: dict[str, Tree] = {names[0]: Mean.over(error_N, known_N), names[1]: None}
    if (weights := _subject_weights(known)) is not None:
        found[names[1]] = Mean(error_N[known_N], np.flatnonzero(known_N), weights)
    return found


def _refusal(fine: Tested, bootstrap: Bootstrap) -> dict[str, Any]:
    true_N, predicted_N = pair(fine.true, fine.predicted)
    low_N, high_N = pair(fine.low, fine.high)
    error_N = np.abs(predicted_N - true_N)
    refusal, best = ApiError(error_N, high_N - low_N), ApiError(error_N, error_N)

    def statistic(counts_rN: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([best.figures(counts_rN, ()), refusal.figures(counts_rN)], 1)

    aurc_best, aurc, *risks = bootstrap.percentiles(statistic)
    figures = refusal_figures(error_N, high_N - low_N)
    curve = [
        {"answered": row["answered"], "mae": estimate(row["mae"], ends)}
        for row, ends in zip(figures["curve"], risks, strict=True)
    ]
    return {
        **figures,
        "curve": curve,
        "aurc": estimate(figures["aurc"], aurc),
        "aurc_best": estimate(figures["aurc_best"], aurc_best),
    }
