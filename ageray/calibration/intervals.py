"""90 % intervals that differ by the decade of the predicted age and below and above it, learnt on
several sets at once.

The ends are conformalised posterior quantiles in their multiplicative form: an end lies so many
times as far from the age as the posterior's quantile does (CQR-m of Kivaranovic, Johnson and Leeb,
AISTATS 2020; compared with other forms by Sesia and Candes, Stat 2020). Multipliers are fitted by
decade of the predicted age (Mondrian conformal prediction, Vovk et al. 2005) and for each side
apart, with half of the misses allowed on each. Every calibration set has the same weight, whatever
its size: the intervals are those of the mixture of the sets. Shape letters: N faces, D decades.
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
"""Years that a posterior's quantile lies from its age at least, before multiplying."""
_FEWEST = 60  # faces of a decade, as many as count alike; with fewer it joins the next younger one
_EDGES = tuple(float(age) for age in range(10, 80, 10))


@dataclass(frozen=True)
class Intervals:
    """`low`, `high` (D,): multipliers of the distance from the age to the posterior's quantiles,
    one pair for the predicted ages below edges[0], one from each edge to the next. Between the
    middles of two decades they are interpolated."""

    edges: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def apply(
        self, age_N: Floats, low_N: Floats, high_N: Floats, widening_N: Floats
    ) -> tuple[Floats, Floats]:
        """Ends of the intervals, (N,) each, from calibrated ages and quantiles and the factor of
        `Difficulty`; never below 0 years."""
        below_N, above_N = reaches(age_N, low_N, high_N)
        middles_D = _middles(self.edges)
        start_N = age_N - widening_N * np.interp(age_N, middles_D, self.low) * below_N
        end_N = age_N + widening_N * np.interp(age_N, middles_D, self.high) * above_N
        return np.maximum(start_N, 0), end_N

    def times(self, factor: float) -> Intervals:
        """Wider by `factor` on both sides."""
        low, high = factor * np.array(self.low), factor * np.array(self.high)
        return Intervals(self.edges, tuple(low.tolist()), tuple(high.tolist()))

    def to_card(self) -> dict[str, Any]:
        """For a bundle's card."""
        low, high = np.round(self.low, 4), np.round(self.high, 4)
        return {"edges": list(self.edges), "low": low.tolist(), "high": high.tolist()}

    @classmethod
    def from_card(cls, card: dict[str, Any] | None) -> Intervals | None:
        """From a bundle's card; None where it has none."""
        if not card:
            return None
        return cls(*(tuple(map(float, card[name])) for name in ("edges", "low", "high")))


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
    """Fits the multipliers on calibrated ages and quantiles of faces whose true age is known;
    `weight_N` makes sets count alike.

    A side's multiplier is the weighted (1 + level) / 2 quantile of |true - age| / (widening *
    reach) with its sign, raised by one face more than there are, as in split conformal prediction.
    """
    below_N, above_N = reaches(age_N, low_N, high_N)
    score_low_N = (age_N - true_N) / (widening_N * below_N)
    score_high_N = (true_N - age_N) / (widening_N * above_N)
    edges = _merged(age_N, weight_N)
    decade_N = np.searchsorted(edges, age_N, side="right")
    share = (1 + level) / 2
    low, high = [], []
    for decade in range(len(edges) + 1):
        chosen_N = decade_N == decade
        low.append(_conformal(score_low_N[chosen_N], weight_N[chosen_N], share))
        high.append(_conformal(score_high_N[chosen_N], weight_N[chosen_N], share))
    return Intervals(edges, tuple(low), tuple(high))


def _merged(age_N: Floats, weight_N: Floats) -> tuple[float, ...]:
    """The edges between decades, without those that would leave too few faces on a side."""
    kept: list[float] = []
    for edge in _EDGES:
        start = kept[-1] if kept else -np.inf
        if (
            _count(weight_N[(age_N >= start) & (age_N < edge)]) >= _FEWEST
            and _count(weight_N[age_N >= edge]) >= _FEWEST
        ):
            kept.append(edge)
    return tuple(kept)


def _count(weight_N: Floats) -> float:
    """How many faces of equal weight tell as much (Kish): (sum w)^2 / sum w^2."""
    return float(weight_N.sum() ** 2 / (weight_N**2).sum()) if len(weight_N) else 0.0


def _conformal(score_N: Floats, weight_N: Floats, share: float) -> float:
    count = _count(weight_N)
    if count == 0:
        return 1.0
    return max(quantile(score_N, weight_N, min(share * (1 + 1 / count), 1.0)), 0.1)


def _middles(edges: Sequence[float]) -> Floats:
    """The middle age of each decade; the first and the last reach ten years beyond their edge."""
    if not edges:
        return np.zeros(1)
    ends = np.array([edges[0] - 10, *edges, edges[-1] + 10])
    return np.asarray((ends[:-1] + ends[1:]) / 2, np.float64)
