"""The probability that a person has reached an age limit.

It is the posterior's share at and above the limit, calibrated by Platt's method (1999), a logistic
regression on the logit of the share. On the calibration sets nine in ten of the faces with
probability 0.9 have reached the limit. Shape letters: N faces, K age bins, L limits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

LIMITS = (18, 25)
"""The limits, in completed years: columns `over_18`, `over_25`."""
_LEAST = 1e-4  # lower bound on a share, so that its logit is finite


@dataclass(frozen=True)
class AgeChecks:
    """A slope and an intercept for each of LIMITS:
    probability = sigmoid((slope * logit(share) + intercept) / widening)."""

    slopes: tuple[float, ...] = (1.0,) * len(LIMITS)
    intercepts: tuple[float, ...] = (0.0,) * len(LIMITS)

    def apply(self, share_NL: Floats, widening_N: Floats) -> Floats:
        """Probabilities (N, L) from the posterior's shares (N, L) and the factor of `Difficulty`
        (N,).

        A hard face gets probabilities closer to 0.5.
        """
        logit_NL = np.asarray(self.slopes) * _logit(share_NL) + np.asarray(self.intercepts)
        probability_NL = _sigmoid(logit_NL / widening_N[:, None])
        # Each limit is calibrated on its own, but P(25 or older) must not exceed P(18 or older).
        return np.asarray(np.minimum.accumulate(probability_NL, axis=-1), np.float64)

    def to_card(self) -> dict[str, Any]:
        """For a bundle's card."""
        card = {}
        for limit, slope, intercept in zip(LIMITS, self.slopes, self.intercepts, strict=True):
            card[str(limit)] = {"slope": round(slope, 4), "intercept": round(intercept, 4)}
        return card

    @classmethod
    def from_card(cls, card: dict[str, Any] | None) -> AgeChecks:
        """From a bundle's card. Without an entry there, shares are the probabilities."""
        if not card:
            return cls()
        slopes, intercepts = [], []
        for limit in LIMITS:
            slopes.append(float(card[str(limit)]["slope"]))
            intercepts.append(float(card[str(limit)]["intercept"]))
        return cls(tuple(slopes), tuple(intercepts))


def shares_above(posterior_NK: NDArray[Any], bins_K: NDArray[Any], scale: float, shift: float) -> Floats:
    """Share of each posterior at and above LIMITS: (N, L). Bins are corrected by the line
    scale * bin + shift.

    A person of 18 completed years has the label 18, whose bin is 17.5 to 18.5. The share therefore
    starts at 17.5. A bin's probability is spread evenly over its year.
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

    from scipy.optimize import minimize  # imported here, because loading a bundle must be fast

    fitted = minimize(
        loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(0.2, 5.0), (-5.0, 5.0)]
    )
    return float(fitted.x[0]), float(fitted.x[1])


def _logit(share: Floats) -> Floats:
    bounded = np.clip(share, _LEAST, 1 - _LEAST)
    return np.log(bounded) - np.log1p(-bounded)


def _sigmoid(score: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -score))
