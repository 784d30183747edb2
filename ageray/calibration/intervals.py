"""90 % intervals with separate widths for each decade of the predicted age and for each side.

The ends are conformalised posterior quantiles in the multiplicative form: a factor scales the
distance from the age to the posterior's quantile (CQR-m of Kivaranovic, Johnson and Leeb, AISTATS
2020; compared with other forms by Sesia and Candes, Stat 2020). The factors are fitted by decade
of the predicted age (Mondrian conformal prediction, Vovk et al. 2005) and for each side
separately; each side may miss 5 %. Every calibration set has the same weight, whatever its size,
and within it every decade of the true age: where another set has other ages, many children for
example, the coverage changes little (label shift; conformal prediction with weights, Tibshirani et
al., NeurIPS 2019). No side is shorter than the posterior's quantile. Shape letters: N faces, D
decades.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ageray.calibration.difficulty import quantile

Floats = NDArray[np.floating[Any]]

LEAST_REACH = 1.0
"""Lower bound on the distance from the age to a posterior's quantile, in years."""
_FEWEST = 60  # effective number of faces of a decade; with fewer it joins the next younger one
_EDGES = tuple(float(age) for age in range(10, 80, 10))
_NARROWEST = 1.0  # lower bound on a factor
_RARE = 10  # a decade of the true age with fewer faces weighs less than the others


@dataclass(frozen=True)
class Intervals:
    """`low`, `high` (D,): factors of the distance from the age to the posterior's quantiles.

    One pair is for predicted ages below edges[0], one for each range between two edges, one for
    ages above the last edge. Between the middles of two decades they are interpolated.
    """

    edges: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def apply(
        self, age_N: Floats, low_N: Floats, high_N: Floats, widening_N: Floats
    ) -> tuple[Floats, Floats]:
        """The ends of the intervals in years, (N,) each, at least 0.

        age, low, high: calibrated ages and quantiles. widening: the factor of `Difficulty`.
        """
        below_N, above_N = self.lengths(age_N, low_N, high_N, widening_N)
        return np.maximum(age_N - below_N, 0), age_N + above_N

    def lengths(
        self, age_N: Floats, low_N: Floats, high_N: Floats, widening_N: Floats
    ) -> tuple[Floats, Floats]:
        """Years from the age down and up to the ends of its interval, (N,) each.

        The arguments are those of `apply`.
        """
        below_N, above_N = reaches(age_N, low_N, high_N)
        middles_D = middles(self.edges)
        low_factor_N = np.interp(age_N, middles_D, self.low)
        high_factor_N = np.interp(age_N, middles_D, self.high)
        return widening_N * low_factor_N * below_N, widening_N * high_factor_N * above_N

    def times(self, low_factor: float, high_factor: float) -> Intervals:
        """Intervals whose younger and older sides are longer by these factors."""
        low, high = low_factor * np.array(self.low), high_factor * np.array(self.high)
        return Intervals(self.edges, tuple(low.tolist()), tuple(high.tolist()))

    def to_card(self) -> dict[str, Any]:
        """For a bundle's card."""
        low, high = np.round(self.low, 4), np.round(self.high, 4)
        return {"edges": list(self.edges), "low": low.tolist(), "high": high.tolist()}

    @classmethod
    def from_card(cls, card: dict[str, Any] | None) -> Intervals | None:
        """From a bundle's card; None if it has no entry."""
        if not card:
            return None
        edges, low, high = card["edges"], card["low"], card["high"]
        return cls(tuple(map(float, edges)), tuple(map(float, low)), tuple(map(float, high)))


def reaches(age_N: Floats, low_N: Floats, high_N: Floats) -> tuple[Floats, Floats]:
    """Years from the age to the posterior's quantiles, at least LEAST_REACH each: (N,), (N,)."""
    return np.maximum(age_N - low_N, LEAST_REACH), np.maximum(high_N - age_N, LEAST_REACH)


def fit_intervals(
    true_N: Floats,
    age_N: Floats,
    low_N: Floats,
    high_N: Floats,
    widening_N: Floats,
    weight_N: Floats,
    level: float,
) -> Intervals:
    """Fits the factors on calibrated ages and quantiles of faces whose true age is known.

    A side's factor is the weighted (1 + level) / 2 quantile of the signed error over
    widening * reach, where the count N of faces is raised to N + 1, as in split conformal
    prediction. It is at least 1. weight_N: weight of each face, see `even_decades`.
    """
    below_N, above_N = reaches(age_N, low_N, high_N)
    scores_2N = ((age_N - true_N) / (widening_N * below_N), (true_N - age_N) / (widening_N * above_N))
    edges = _merged(age_N, weight_N)
    decade_N = np.searchsorted(edges, age_N, side="right")
    share = (1 + level) / 2
    sides: list[list[float]] = [[], []]
    for decade in range(len(edges) + 1):
        rows_N = decade_N == decade
        for side, score_N in zip(sides, scores_2N, strict=True):
            side.append(max(_conformal(score_N[rows_N], weight_N[rows_N], share), _NARROWEST))
    return Intervals(edges, tuple(sides[0]), tuple(sides[1]))


def even_decades(true_N: Floats) -> Floats:
    """Weights of the faces of a set, (N,), which sum to 1 and with which each decade of the true
    age has the same weight. The last decade is 70 and older."""
    decade_N = np.clip(true_N // 10, 0, 7).astype(np.int64)
    count_N = np.bincount(decade_N, minlength=8)[decade_N]
    weight_N = 1 / np.maximum(count_N, _RARE)
    return np.asarray(weight_N / weight_N.sum(), np.float64)


def _merged(age_N: Floats, weight_N: Floats) -> tuple[float, ...]:
    """The edges between decades, without those that would leave too few faces on a side."""
    edges: list[float] = []
    start = -np.inf
    for edge in _EDGES:
        younger = _count(weight_N[(age_N >= start) & (age_N < edge)])
        older = _count(weight_N[age_N >= edge])
        if younger >= _FEWEST and older >= _FEWEST:
            edges.append(edge)
            start = edge
    return tuple(edges)


def _count(weight_N: Floats) -> float:
    """Kish's effective number of faces: (sum w)^2 / sum w^2."""
    if len(weight_N) == 0:
        return 0.0
    return float(weight_N.sum() ** 2 / (weight_N**2).sum())


def _conformal(score_N: Floats, weight_N: Floats, share: float) -> float:
    count = _count(weight_N)
    if count == 0:
        return 1.0
    return quantile(score_N, weight_N, min(share * (1 + 1 / count), 1.0))


def middles(edges: Sequence[float]) -> Floats:
    """The middle age of each decade. The first and the last extend ten years beyond their edge."""
    if not edges:
        return np.zeros(1)
    ends = np.array([edges[0] - 10, *edges, edges[-1] + 10])
    return np.asarray((ends[:-1] + ends[1:]) / 2, np.float64)
