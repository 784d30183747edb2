"""Calibration on several sets at once, with its coverage on unseen sets: each set is left out in
turn.

Shape letters: N faces, M measures, K age bins, L limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ageray.calibration.age_checks import fit_age_checks, shares_above
from ageray.calibration.difficulty import Difficulty, fit_difficulty, quantile
from ageray.calibration.intervals import even_decades, fit_intervals, reaches
from ageray.calibration.line import LEVEL, Calibration, fit_line
from ageray.calibration.people import CORRELATION, error_correlation
from ageray.errors import UserError

Floats = NDArray[np.floating[Any]]
_MOST = 2.0  # upper bound on the factor that widens intervals for unseen sets
_EVEN_SHARE = 0.2
"""Share of the line's weight that every decade of the true age has alike; without it children and
old people, of whom there are few, hardly count (docs/models.md)."""


@dataclass(frozen=True, eq=False)
class CalibrationSet:
    """Faces of one set with known ages on which the model was not trained.

    `true` (N,): years. `decoded` (N, 3): age and the posterior's 5 % and 95 % quantiles before
    calibration. `posterior` (N, K). `measures` (N, M) and `distance` (N,) are needed for `quality`
    and `unusual`. `degraded` (N,): copies with a picture that was degraded on purpose; only the
    difficulty is fitted on them.
    """

    name: str
    true: Floats
    decoded: Floats
    posterior: Floats
    measures: Floats | None = None
    distance: Floats | None = None
    degraded: NDArray[np.bool_] | None = None
    subject: Sequence[str | None] | None = None

    @property
    def ordinary(self) -> NDArray[np.bool_]:
        """Whether a face is not degraded: (N,)."""
        if self.degraded is None:
            return np.ones(len(self.true), bool)
        return ~self.degraded


def fit_mixture(
    sets: Sequence[CalibrationSet],
    bins_K: Floats,
    names: Sequence[str],
    level: float = LEVEL,
    line: tuple[float, float] | None = None,
) -> Calibration:
    """Fits a calibration on `sets`, each with the same weight, and measures its coverage of each
    set when that set is left out of the fit. `Calibration.sets` has the result. For the intervals
    the decades of the true age within a set have the same weight too.

    bins_K: the age of each bin. names: of the measures' columns. line: slope and intercept; None
    fits them. If the mean coverage of the sets left out is below `level`, one factor widens all
    intervals to reach it. Raises UserError if there is no set.
    """
    if not sets:
        raise UserError("calibration: no set is named; give one at least")
    whole = _fit(sets, bins_K, names, level, line)
    rows: dict[str, Any] = {}
    for each in sets:
        rows[each.name] = {"faces": int(each.ordinary.sum())}
    if len(sets) == 1 or whole.intervals is None:
        return replace(whole, sets=rows, correlation=_correlation(sets, whole, names))
    parts = []
    for left_out in sets:
        rest = [each for each in sets if each is not left_out]
        parts.append((left_out, _fit(rest, bins_K, names, level, line)))
    factor = _factor(parts, names, level)
    for left_out, calibration in parts:
        assert calibration.intervals is not None
        wider = replace(calibration, intervals=calibration.intervals.times(factor, factor))
        rows[left_out.name]["left_out"] = _coverage(left_out, wider, names)
    fitted = replace(whole, intervals=whole.intervals.times(factor, factor), sets=rows)
    fitted = replace(fitted, correlation=_correlation(sets, fitted, names))
    for each in sets:
        rows[each.name]["fitted"] = _coverage(each, fitted, names)
    return fitted


def _pooled(sets: Sequence[CalibrationSet], name: str) -> Floats:
    """The values of one field in all sets, concatenated."""
    return np.concatenate([np.asarray(getattr(each, name), np.float64) for each in sets])


def _fit(
    sets: Sequence[CalibrationSet],
    bins_K: Floats,
    names: Sequence[str],
    level: float,
    line: tuple[float, float] | None,
) -> Calibration:
    true_N, decoded_N3 = _pooled(sets, "true"), _pooled(sets, "decoded")
    use = _pooled(sets, "ordinary") > 0
    weight_N = np.concatenate([each.ordinary / max(each.ordinary.sum(), 1) for each in sets])[use]
    even_N = np.concatenate([even_decades(each.true[each.ordinary]) for each in sets])
    line_weight_N = (1 - _EVEN_SHARE) * weight_N + _EVEN_SHARE * even_N
    scale, shift = line or fit_line(decoded_N3[use, 0], true_N[use], line_weight_N)
    age_N, low_N, high_N = Calibration(scale, shift).apply(
        decoded_N3[:, 0], decoded_N3[:, 1], decoded_N3[:, 2]
    )
    difficulty: Difficulty | None = None
    widening_N: Floats = np.ones(len(true_N))
    if all(each.measures is not None and each.distance is not None for each in sets):
        difficulty, widening_N = _difficulty(sets, names, true_N, (age_N, low_N, high_N))
    intervals = fit_intervals(
        true_N[use], age_N[use], low_N[use], high_N[use], widening_N[use], even_N, level
    )
    shares = [shares_above(each.posterior[each.ordinary], bins_K, scale, shift) for each in sets]
    checks = fit_age_checks(true_N[use], np.concatenate(shares), widening_N[use], weight_N)
    return Calibration(scale, shift, 0.0, int(use.sum()), intervals, difficulty, checks)


def _difficulty(
    sets: Sequence[CalibrationSet], names: Sequence[str], true_N: Floats, ages: tuple[Floats, Floats, Floats]
) -> tuple[Difficulty, Floats]:
    """The difficulty, fitted on all faces including degraded ones, and each face's widening (N,).

    A set's good pictures together have the same weight as its degraded ones together.
    """
    age_N, low_N, high_N = ages
    below_N, above_N = reaches(age_N, low_N, high_N)
    error_N = np.abs(true_N - age_N) / np.where(true_N < age_N, below_N, above_N)
    measures_NM, distance_N = _pooled(sets, "measures"), _pooled(sets, "distance")
    ordinary_N = _pooled(sets, "ordinary") > 0
    weights = []
    for each in sets:
        good, bad = int(each.ordinary.sum()), int((~each.ordinary).sum())
        weights.append(np.where(each.ordinary, 1 / max(good, 1), 1 / max(bad, 1)))
    difficulty = fit_difficulty(error_N, measures_NM, names, distance_N, np.concatenate(weights), ordinary_N)
    quality_N, unusual_N = difficulty.quality(measures_NM, names), difficulty.unusual(distance_N)
    return difficulty, difficulty.widening(quality_N, unusual_N)


def _ends(each: CalibrationSet, calibration: Calibration, names: Sequence[str]) -> tuple[Floats, ...]:
    """True age, age, low and high of the set's faces that are not degraded."""
    use = each.ordinary
    widening_N: Floats = np.ones(int(use.sum()))
    if calibration.difficulty is not None and each.measures is not None and each.distance is not None:
        quality_N = calibration.difficulty.quality(each.measures[use], names)
        widening_N = calibration.difficulty.widening(
            quality_N, calibration.difficulty.unusual(each.distance[use])
        )
    decoded_N3 = each.decoded[use]
    ends = calibration.apply(decoded_N3[:, 0], decoded_N3[:, 1], decoded_N3[:, 2], widening_N)
    return each.true[use], *ends


def _correlation(sets: Sequence[CalibrationSet], calibration: Calibration, names: Sequence[str]) -> float:
    """The correlation between the errors of one person's photos, over all sets with subjects."""
    subjects: list[str | None] = []
    errors, widths = [], []
    for each in sets:
        if each.subject is None:
            continue
        true_N, age_N, low_N, high_N = _ends(each, calibration, names)
        for name, usable in zip(each.subject, each.ordinary.tolist(), strict=True):
            if usable:
                subjects.append(name and f"{each.name} {name}")
        errors.append(age_N - true_N)
        widths.append(high_N - low_N)
    if not subjects:
        return CORRELATION
    return error_correlation(subjects, np.concatenate(errors), np.concatenate(widths))


def _coverage(each: CalibrationSet, calibration: Calibration, names: Sequence[str]) -> dict[str, float]:
    true_N, age_N, low_N, high_N = _ends(each, calibration, names)
    return {
        "coverage": round(float(((true_N >= low_N) & (true_N <= high_N)).mean()), 4),
        "width": round(float((high_N - low_N).mean()), 2),
        "mae": round(float(np.abs(true_N - age_N).mean()), 3),
    }


def _factor(parts: Sequence[tuple[CalibrationSet, Calibration]], names: Sequence[str], level: float) -> float:
    """The smallest factor, 1 to _MOST, that gives the sets left out a mean coverage of `level`."""
    ratios, weights = [], []
    for left_out, calibration in parts:
        true_N, age_N, low_N, high_N = _ends(left_out, calibration, names)
        reach_N = np.where(true_N < age_N, age_N - low_N, high_N - age_N)
        ratios.append(np.abs(true_N - age_N) / np.maximum(reach_N, 1e-9))
        weights.append(np.full(len(true_N), 1 / len(true_N)))
    return float(np.clip(quantile(np.concatenate(ratios), np.concatenate(weights), level), 1.0, _MOST))
