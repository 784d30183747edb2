"""Calibration on several sets at once, and what it is worth on a set that it has not seen: each set
is left out in turn.

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
from ageray.calibration.intervals import fit_intervals, reaches
from ageray.calibration.line import LEVEL, Calibration, fit_line
from ageray.calibration.people import CORRELATION, error_correlation
from ageray.errors import UserError

Floats = NDArray[np.floating[Any]]
_MOST = 2.0  # the factor by which intervals are widened at most for the sake of sets that were left out


@dataclass(frozen=True, eq=False)
class CalibrationSet:
    """Faces of one set whose ages are known and that were not trained on.

    `true` (N,) years; `decoded` (N, 3), age and the posterior's 5 % and 95 % quantiles before
    calibration; `posterior` (N, K). For `quality` and `unusual` also `measures` (N, M) and
    `distance` (N,). `degraded` (N,): copies whose picture was spoilt on purpose; they teach how
    much harder such a picture is, and nothing else.
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
        """Faces that were not degraded: (N,)."""
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
    """Fits everything on `sets`, each with the same weight, and says under `sets` how each fares
    when it is left out.

    bins_K: the age of each bin. names: of the measures' columns. line: slope and intercept where
    they are not to be fitted. Where sets that were left out are covered less than `level` in the
    mean, all intervals are widened by the one factor that covers it. Raises UserError where there
    is no set.
    """
    if not sets:
        raise UserError("calibration: no set is named; give one at least")
    whole = _fit(sets, bins_K, names, level, line)
    about: dict[str, Any] = {each.name: {"faces": int(each.ordinary.sum())} for each in sets}
    if len(sets) == 1 or whole.intervals is None:
        return replace(whole, sets=about, correlation=_correlation(sets, whole, names))
    parts = []
    for left_out in sets:
        rest = [each for each in sets if each is not left_out]
        parts.append((left_out, _fit(rest, bins_K, names, level, line)))
    factor = _factor(parts, names, level)
    for left_out, calibration in parts:
        assert calibration.intervals is not None
        wider = replace(calibration, intervals=calibration.intervals.times(factor))
        about[left_out.name]["left_out"] = _coverage(left_out, wider, names)
    fitted = replace(whole, intervals=whole.intervals.times(factor), sets=about)
    fitted = replace(fitted, correlation=_correlation(sets, fitted, names))
    for each in sets:
        about[each.name]["fitted"] = _coverage(each, fitted, names)
    return fitted


def _pooled(sets: Sequence[CalibrationSet], name: str) -> Floats:
    """A column of all sets, one after the other."""
    return np.concatenate([np.asarray(getattr(each, name), np.float64) for each in sets])


def _fit(
    sets: Sequence[CalibrationSet],
    bins_K: Floats,
    names: Sequence[str],
    level: float,
    line: tuple[float, float] | None,
) -> Calibration:
    true_N, decoded_N3, ordinary_N = (
        _pooled(sets, "true"),
        _pooled(sets, "decoded"),
        _pooled(sets, "ordinary") > 0,
    )
    weight_N = np.concatenate([each.ordinary / max(each.ordinary.sum(), 1) for each in sets])
    scale, shift = line or fit_line(decoded_N3[ordinary_N, 0], true_N[ordinary_N], weight_N[ordinary_N])
    age_N, low_N, high_N = Calibration(scale, shift).apply(
        decoded_N3[:, 0], decoded_N3[:, 1], decoded_N3[:, 2]
    )
    difficulty: Difficulty | None = None
    widening_N: Floats = np.ones(len(true_N))
    if all(each.measures is not None and each.distance is not None for each in sets):
        difficulty, widening_N = _difficulty(sets, names, true_N, (age_N, low_N, high_N))
    use = ordinary_N
    intervals = fit_intervals(
        true_N[use], age_N[use], low_N[use], high_N[use], widening_N[use], weight_N[use], level
    )
    shares = [shares_above(each.posterior[each.ordinary], bins_K, scale, shift) for each in sets]
    checks = fit_age_checks(true_N[use], np.concatenate(shares), widening_N[use], weight_N[use])
    return Calibration(scale, shift, 0.0, int(use.sum()), intervals, difficulty, checks)


def _difficulty(
    sets: Sequence[CalibrationSet], names: Sequence[str], true_N: Floats, ages: tuple[Floats, Floats, Floats]
) -> tuple[Difficulty, Floats]:
    """Fitted to all faces, degraded ones too: a set's good pictures count as much as its degraded
    ones together."""
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
    """True age, age, low and high of a set's good pictures."""
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
    """Of one person's errors, over all sets that know people."""
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
    """The smallest factor, 1 to _MOST, with which the sets left out are covered to `level` in the
    mean."""
    needed, weights = [], []
    for left_out, calibration in parts:
        true_N, age_N, low_N, high_N = _ends(left_out, calibration, names)
        reach_N = np.where(true_N < age_N, age_N - low_N, high_N - age_N)
        needed.append(np.abs(true_N - age_N) / np.maximum(reach_N, 1e-9))
        weights.append(np.full(len(true_N), 1 / len(true_N)))
    return float(np.clip(quantile(np.concatenate(needed), np.concatenate(weights), level), 1.0, _MOST))
