"""The figures of a tested model: `summary`, the few that everybody reads, and `full_report`, all.

Takes true and predicted ages with intervals and labels, one entry per face; gives a dict that JSON
can hold. `full_report` adds bootstrap intervals. Shape letters: N faces, Q quantiles, r resamples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from ageray.metrics.age_checks import YOUNG, age_check_means, young_adult_mean
from ageray.metrics.bootstrap import Bootstrap, estimate, with_intervals
from ageray.metrics.breakdown import Part, bands, by_decade, decades, labelled
from ageray.metrics.challenge import RULES, Rule, challenge_means
from ageray.metrics.interval import calibration_means, coverage, covered, mean_width
from ageray.metrics.mean import Mean, Tree, values
from ageray.metrics.risk_coverage import RiskCoverage, risk_coverage_of


def summary(
    true: ArrayLike, predicted: ArrayLike, low: ArrayLike, high: ArrayLike, training_median: float | None
) -> dict[str, Any]:
    """The figures that everybody reads, and two floors: the MAE of always answering one age.

    `constant` holds the floors. `training_median` is what a model would answer that looks at no
    face (null if it is not known). `own_median`, the median of the tested ages, is the best that
    any one age can do here.
    """
    true_N, predicted_N = pair(true, predicted)
    own_median = float(np.median(true_N))
    return {
        "images": len(true_N),
        "mae": mean_absolute_error(true_N, predicted_N),
        "cs3": cumulative_score(true_N, predicted_N, 3),
        "cs5": cumulative_score(true_N, predicted_N, 5),
        "bias": bias(true_N, predicted_N),
        "constant": {
            "training_median": values(_floor(true_N, training_median)),
            "own_median": values(_floor(true_N, own_median)),
        },
        "interval": {
            "level": 0.9,
            "coverage": coverage(true_N, low, high),
            "mean_width": mean_width(low, high),
        },
        "by_decade": by_decade(true_N, predicted_N),
    }


def plain_report(
    true: ArrayLike,
    plain: ArrayLike,
    subject: Labels | None = None,
    age_std: ArrayLike | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any] | None:
    """The figures of the decoded ages before calibration, with bootstrap intervals: what papers
    report.

    MAE, bias, CS curve and epsilon-error, as in `full_report`. plain: NaN where there is none. None
    if no face has one.
    """
    plain_N = np.asarray(plain, np.float64)
    tested = Tested(true, plain_N, plain_N, plain_N, subject=subject, age_std=age_std)
    answered_N = np.isfinite(plain_N)
    if not answered_N.any():
        return None
    fine = tested.only(answered_N)
    whole = _overall(fine)
    tree = {name: whole[name] for name in ("mae", "bias", "mae_over_subjects", "cs")}
    figures = with_intervals(tree, Bootstrap(len(fine), fine.subject, resamples, level, seed))
    epsilon = with_intervals(_epsilon(tested), Bootstrap(len(tested), subject, resamples, level, seed))
    return {**figures, "epsilon_error": epsilon["epsilon_error"]}


@dataclass(frozen=True, eq=False)
class Tested:
    """A model's answers beside the truth, one entry per face; ages in years.

    `predicted` is NaN where the model gave no age. `low` and `high` are the ends of its 90 %
    interval. `age_std` is the annotators' standard deviation (NaN where unknown). `quantiles`
    (N, Q) are the posterior's at `levels` (Q,). `over` maps an age limit to the probabilities
    (N,) of being that old. Raises ValueError if the lengths differ.
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
    over: Mapping[int, ArrayLike] | None = None

    def __post_init__(self) -> None:
        faces = len(self)
        for name in ("predicted", "low", "high", "age_std"):
            if (column := getattr(self, name)) is not None:
                pair(self.true, column)
        for probability in (self.over or {}).values():
            pair(self.true, probability)
        for name in ("subject", "gender", "group", "quantiles"):
            if (column := getattr(self, name)) is not None and len(column) != faces:
                raise ValueError(f"{len(column)} entries of {name} for {faces} faces")

    def __len__(self) -> int:
        return len(np.asarray(self.true))

    def only(self, chosen_N: NDArray[np.bool_]) -> Tested:
        """The chosen faces alone."""
        columns: dict[str, Any] = {"levels": self.levels}
        for name in ("true", "predicted", "low", "high", "age_std", "quantiles"):
            if (column := getattr(self, name)) is not None:
                columns[name] = np.asarray(column, np.float64)[chosen_N]
        for name in ("subject", "gender", "group"):
            if (column := getattr(self, name)) is not None:
                columns[name] = [column[row] for row in np.flatnonzero(chosen_N)]
        if self.over is not None:
            columns["over"] = {limit: np.asarray(of, np.float64)[chosen_N] for limit, of in self.over.items()}
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
    """`summary`, and under `estimates` all figures with bootstrap intervals.

    Each is {"value", "low", "high"}. `bootstrap` says how the intervals are computed.
    `estimates` holds:

    overall        MAE, bias, CS curve, epsilon-error, interval coverage and width; MAE and
                   epsilon-error over subjects too
    constant       the floors of `summary`
    by_age         by decade of true age; by_gender and by_group where they are given
    challenge      see `challenge_table`
    age_checks     see `age_check_table`, where `over` is given
    young_adults   see `young_adult_mae`
    calibration    see `calibration_curve`, where quantiles are given
    risk_coverage  see `ageray.metrics.risk_coverage`

    What the faces do not tell (no subject, no deviations) is null. `missing` counts the faces
    without a prediction; only the epsilon-error includes them, each as 1.
    Raises ValueError if no face has a prediction.
    """
    answered_N = np.isfinite(np.asarray(tested.predicted, np.float64))
    if not answered_N.any():
        raise ValueError("no face has a prediction")
    fine = tested.only(answered_N)

    def bootstrap_of(faces: Tested) -> Bootstrap:
        return Bootstrap(len(faces), faces.subject, resamples, level, seed)

    bootstrap = bootstrap_of(fine)
    estimates = with_intervals(_tree(fine, training_median, rules), bootstrap)
    estimates["overall"] |= with_intervals(_epsilon(tested), bootstrap_of(tested))
    estimates["risk_coverage"] = _risk_coverage(fine, bootstrap)
    return {
        **summary(fine.true, fine.predicted, fine.low, fine.high, training_median),
        "missing": int((~answered_N).sum()),
        "bootstrap": bootstrap.to_dict(),
        "estimates": estimates,
    }


def _tree(fine: Tested, training_median: float | None, rules: Sequence[Rule]) -> dict[str, Tree]:
    """`estimates` with a `Mean` in place of each figure."""
    true_N, predicted_N = pair(fine.true, fine.predicted)
    tree: dict[str, Tree] = {
        "overall": _overall(fine),
        "constant": {
            "training_median": _floor(true_N, training_median),
            "own_median": _floor(true_N, float(np.median(true_N))),
        },
        "by_age": _breakdown(fine, "ages", bands(true_N, decades(true_N))),
    }
    labels: dict[str, Labels] = {}
    for name in ("gender", "group"):
        if (label_per_face := getattr(fine, name)) is not None:
            labels[name] = label_per_face
            tree[f"by_{name}"] = _breakdown(fine, name, labelled(label_per_face, len(fine)))
    tree["challenge"] = challenge_means(true_N, predicted_N, labels, rules)
    tree["young_adults"] = {"ages": list(YOUNG), "mae": young_adult_mean(true_N, predicted_N, fine.gender)}
    tree["age_checks"] = None
    if fine.over is not None:
        tree["age_checks"] = age_check_means(true_N, fine.over, labels)
    tree["calibration"] = None
    if fine.quantiles is not None:
        tree["calibration"] = calibration_means(true_N, fine.quantiles, fine.levels)
    return tree


def _overall(fine: Tested) -> dict[str, Tree]:
    true_N, predicted_N = pair(fine.true, fine.predicted)
    error_N, weights_N = np.abs(predicted_N - true_N), _subject_weights(fine)
    return {
        **_part(fine, np.ones(len(fine), bool)),
        "mae_over_subjects": None if weights_N is None else Mean.over(error_N, None, weights_N),
        "cs": [{"years": limit, "share": Mean.over(error_N <= limit)} for limit in CS_LIMITS],
    }


def _breakdown(fine: Tested, heading: str, parts: Iterable[Part]) -> list[dict[str, Tree]]:
    return [{heading: name, **_part(fine, part_N)} for name, part_N in parts]


def _part(fine: Tested, part_N: NDArray[np.bool_]) -> dict[str, Tree]:
    """The figures of some of the faces."""
    true_N, predicted_N = pair(fine.true, fine.predicted)
    low_N, high_N = pair(fine.low, fine.high)
    difference_N = predicted_N - true_N
    return {
        "images": int(part_N.sum()),
        "mae": Mean.over(np.abs(difference_N), part_N),
        "bias": Mean.over(difference_N, part_N),
        "cs5": Mean.over(np.abs(difference_N) <= 5, part_N),
        "coverage": Mean.over(covered(true_N, low_N, high_N), part_N),
        "width": Mean.over(high_N - low_N, part_N),
    }


def _floor(true_N: Ages, age: float | None) -> dict[str, Tree] | None:
    """The MAE of always answering `age`."""
    return None if age is None else {"age": age, "mae": Mean.over(np.abs(true_N - age))}


def _subject_weights(tested: Tested) -> Ages | None:
    """See `subject_weights`; None if no subject is known."""
    subjects = tested.subject
    if subjects is None or all(subject is None for subject in subjects):
        return None
    return subject_weights(subjects, len(subjects))


def _epsilon(tested: Tested) -> dict[str, Tree]:
    """The epsilon-error over images and over subjects, of the faces whose deviation is known."""
    tree: dict[str, Tree] = {"epsilon_error": None, "epsilon_error_over_subjects": None}
    if tested.age_std is None:
        return tree
    true_N, predicted_N = pair(tested.true, tested.predicted)
    deviation_N = np.asarray(tested.age_std, np.float64)
    rows_M = np.flatnonzero(np.isfinite(deviation_N))
    if len(rows_M) == 0:
        return tree
    error_M = epsilon_errors(true_N[rows_M], deviation_N[rows_M], predicted_N[rows_M])
    tree["epsilon_error"] = Mean(error_M, rows_M)
    weights_M = _subject_weights(tested.only(np.isfinite(deviation_N)))
    if weights_M is not None:
        tree["epsilon_error_over_subjects"] = Mean(error_M, rows_M, weights_M)
    return tree


def _risk_coverage(fine: Tested, bootstrap: Bootstrap) -> dict[str, Any]:
    """`risk_coverage` with percentile intervals."""
    true_N, predicted_N = pair(fine.true, fine.predicted)
    low_N, high_N = pair(fine.low, fine.high)
    error_N, width_N = np.abs(predicted_N - true_N), high_N - low_N
    by_width, by_error = RiskCoverage(error_N, width_N), RiskCoverage(error_N, error_N)

    def statistic(counts_rN: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([by_error.figures(counts_rN, ()), by_width.figures(counts_rN)], 1)

    best_ends, aurc_ends, *curve_ends = bootstrap.percentiles(statistic)
    figures = risk_coverage_of(error_N, width_N)
    for row, ends in zip(figures["curve"], curve_ends, strict=True):
        row["mae"] = estimate(row["mae"], ends)
    figures["aurc"] = estimate(figures["aurc"], aurc_ends)
    figures["aurc_best"] = estimate(figures["aurc_best"], best_ends)
    return figures
