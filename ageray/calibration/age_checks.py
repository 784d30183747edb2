"""The probability that a person is of an age or over: the posterior's share above it, calibrated by
logistic regression.

Platt's method (1999) on the logit of the share, so that of the faces with 0.9 nine in ten are of
age on the calibration sets. Shape letters: N faces, K age bins, L limits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

LIMITS = (18, 25)
"""Ages in completed years that are asked about: columns `over_18`, `over_25`."""
_LEAST = 1e-4  # of a share, before its logit is taken


@dataclass(frozen=True)
class AgeChecks:
    """Of each of LIMITS a slope and an intercept: probability = sigmoid((slope * logit(share) +
    intercept) / widening)."""

    slopes: tuple[float, ...] = (1.0,) * len(LIMITS)
    intercepts: tuple[float, ...] = (0.0,) * len(LIMITS)

    def apply(self, share_NL: Floats, widening_N: Floats) -> Floats:
        """Probabilities (N, L) from the posterior's shares (N, L) and the factor of `Difficulty`: a
        hard face is less certain."""
        logit_NL = np.asarray(self.slopes) * _logit(share_NL) + np.asarray(self.intercepts)
        probability_NL = _sigmoid(logit_NL / widening_N[:, None])
        # whoever is 25 is 18: each limit was calibrated by itself
        return np.asarray(np.minimum.accumulate(probability_NL, axis=-1), np.float64)

    def to_card(self) -> dict[str, Any]:
        """For a bundle's card."""
        pairs = zip(LIMITS, self.slopes, self.intercepts, strict=True)
        return {
            str(limit): {"slope": round(slope, 4), "intercept": round(shift, 4)}
            for limit, slope, shift in pairs
        }

    @classmethod
    def from_card(cls, card: dict[str, Any] | None) -> AgeChecks:
        """From a bundle's card; where it has none the posterior's shares stay as they are."""
        if not card:
            return cls()
        rows = [card[str(limit)] for limit in LIMITS]
        return cls(tuple(float(row["slope"]) for row in rows), tuple(float(row["intercept"]) for row in rows))


def shares_above(posterior_NK: NDArray[Any], bins_K: NDArray[Any], scale: float, shift: float) -> Floats:
    """Share of each posterior at LIMITS and above: (N, L). The posterior goes through the line
    scale * bin + shift.

    A person of 18 completed years has the label 18, whose bin reaches from 17.5 to 18.5: the share
    counts from 17.5 on. A bin's probability is spread evenly over its year.
    """
    shares = []
    for limit in LIMITS:
        edge = (limit - 0.5 - shift) / scale
        above_K = np.clip(bins_K + 0.5 - edge, 0, 1)
        shares.append(posterior_NK @ above_K / np.maximum(posterior_NK.sum(-1), 1e-12))
    return np.asarray(np.stack(shares, -1), np.float64)


def fit_age_checks(true_N: Floats, share_NL: Floats, widening_N: Floats, weight_N: Floats) -> AgeChecks:
    """Fits slope and intercept by weighted maximum likelihood; slopes are 0.2 or more."""
    slopes, intercepts = [], []
    for number, limit in enumerate(LIMITS):
        logit_N, of_age_N = _logit(share_NL[:, number]), true_N >= limit
        if of_age_N.all() or not of_age_N.any():
            slopes.append(1.0)
            intercepts.append(0.0)
            continue
        slope, intercept = _platt(logit_N, of_age_N, widening_N, weight_N / weight_N.sum())
        slopes.append(slope)
        intercepts.append(intercept)
    return AgeChecks(tuple(slopes), tuple(intercepts))


def _platt(
    logit_N: Floats, of_age_N: NDArray[np.bool_], widening_N: Floats, weight_N: Floats
) -> tuple[float, float]:
    def loss(parameters: Floats) -> tuple[float, Floats]:
        score_N = (parameters[0] * logit_N + parameters[1]) / widening_N
        value = float((weight_N * (np.logaddexp(0, score_N) - of_age_N * score_N)).sum())
        slope_N = weight_N * (_sigmoid(score_N) - of_age_N) / widening_N
        return value, np.array([(slope_N * logit_N).sum(), slope_N.sum()])

    from scipy.optimize import minimize  # here: a bundle is loaded for its settings in no time

    fitted = minimize(
        loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(0.2, 5.0), (-5.0, 5.0)]
    )
    return float(fitted.x[0]), float(fitted.x[1])


def _logit(share: Floats) -> Floats:
    bounded = np.clip(share, _LEAST, 1 - _LEAST)
    return np.log(bounded) - np.log1p(-bounded)


def _sigmoid(score: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -score))
