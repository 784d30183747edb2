"""The difficulty of a face: its expected error relative to that of an ordinary face.

It depends on the quality of the picture and on the distance from the training faces. It is fitted
on faces with known ages from several sets, with degraded copies of their pictures. Shape letters:
N faces, M measures (`ageray.faces.quality.MEASURES`), H hinges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

UNUSUAL_SHARE = 0.99
"""`unusual` is 1 at this quantile of the distances of ordinary calibration faces."""

SIDES = {
    "resolution": -1.0,
    "sharpness": -1.0,
    "grain_low": -1.0,
    "grain": 1.0,
    "turn": 1.0,
    "nod": 1.0,
    "misfit": 1.0,
    "contrast": -1.0,
    "brightness": 1.0,
    "colour": -1.0,
}
"""The direction in which each measure gets harder: 1 upwards, -1 downwards. `grain` has both: noisy
and blurred pictures."""

_KNOT_SHARE = 0.75
"""A hinge starts at this quantile of the ordinary faces' measure."""
_SHRINK = 2e-3  # penalty on the squared weights, so that an uninformative measure gets no weight
LARGEST = 3.0
"""Upper bound on `Difficulty.largest`."""
_MEASURED_SHARE, _BEYOND, _LEAST_LARGEST = 0.995, 1.05, 1.5
# `largest` is 1.05 times the 0.995 quantile of the calibration faces' difficulty, at least 1.5


@dataclass(frozen=True)
class Hinge:
    """A term of the logarithm of the expected error: weight * max(0, side * (measure - knot))."""

    measure: str
    side: float
    knot: float
    weight: float


@dataclass(frozen=True)
class Difficulty:
    """Expected error of a face over that of an ordinary one: photo * strangeness, each at least 1.

    photo         exp(sum of `hinges`), from the measures of the picture
    strangeness   exp(slope * max(0, unusual - knot)), where unusual is the distance in feature
                  space over `reference`

    A face above `largest` is refused.
    """

    hinges: tuple[Hinge, ...]
    reference: float
    knot: float
    slope: float
    largest: float = LARGEST

    def quality(self, measures_NM: Floats, names: Sequence[str]) -> Floats:
        """1 / photo, (N,): 1 for an ordinary picture or a better one, 0.5 for a picture that
        doubles the expected error."""
        logarithm_N = np.zeros(len(measures_NM))
        for hinge in self.hinges:
            column_N = measures_NM[:, names.index(hinge.measure)]
            logarithm_N += hinge.weight * np.maximum(0, hinge.side * (column_N - hinge.knot))
        return np.asarray(np.exp(-logarithm_N), np.float64)

    def unusual(self, distance_N: Floats) -> Floats:
        """Distance from the training faces over the 99 % quantile of ordinary faces, (N,). Above 1
        is unusual."""
        return np.asarray(distance_N / self.reference, np.float64)

    def widening(self, quality_N: Floats, unusual_N: Floats) -> Floats:
        """The factor that widens intervals, 1 to `largest`: (N,)."""
        return np.clip(self.expected(quality_N, unusual_N), 1, self.largest)

    def expected(self, quality_N: Floats, unusual_N: Floats) -> Floats:
        """Expected error over that of an ordinary face, without the bound `largest`: (N,)."""
        strangeness_N = np.exp(np.minimum(self.slope * np.maximum(0, unusual_N - self.knot), 50))
        return np.asarray(strangeness_N / np.maximum(quality_N, 1e-9), np.float64)

    def to_card(self) -> dict[str, Any]:
        """For a bundle's card."""
        return {
            "quality": [[hinge.measure, hinge.side, hinge.knot, hinge.weight] for hinge in self.hinges],
            "unusual": {"reference": self.reference, "knot": self.knot, "slope": self.slope},
            "largest": self.largest,
        }

    @classmethod
    def from_card(cls, card: dict[str, Any] | None) -> Difficulty | None:
        """From a bundle's card; None if it has no entry."""
        if not card:
            return None
        hinges = []
        for name, side, knot, weight in card["quality"]:
            hinges.append(Hinge(str(name), float(side), float(knot), float(weight)))
        unusual = card["unusual"]
        return cls(
            tuple(hinges),
            float(unusual["reference"]),
            float(unusual["knot"]),
            float(unusual["slope"]),
            float(card["largest"]),
        )


def fit_difficulty(
    errors_N: Floats,
    measures_NM: Floats,
    names: Sequence[str],
    distance_N: Floats,
    weight_N: Floats,
    ordinary_N: NDArray[np.bool_],
) -> Difficulty:
    """Fits the weights of the hinges and the slope, all at least 0, by an exponential
    quasi-likelihood of the errors.

    errors_N: |error| over the posterior's half width. measures_NM: columns `names`. ordinary_N:
    faces whose picture is not degraded; they give the knots and the reference distance. weight_N:
    weight of each face, with which sets and degradations count equally. Hinges without weight are
    left out. `largest` is 5 % above the difficulty that one face in 200 exceeds, because there are
    no data beyond it.
    """
    reference = max(float(quantile(distance_N[ordinary_N], weight_N[ordinary_N], UNUSUAL_SHARE)), 1e-9)
    unusual_N = distance_N / reference
    columns, knots = [], []
    for key, side in SIDES.items():
        name = key.removesuffix("_low")
        column_N = side * measures_NM[:, names.index(name)]
        knot = quantile(column_N[ordinary_N], weight_N[ordinary_N], _KNOT_SHARE)
        columns.append(np.maximum(0, column_N - knot))
        knots.append((name, side, side * knot))
    knot = float(quantile(unusual_N[ordinary_N], weight_N[ordinary_N], 0.5))
    columns.append(np.maximum(0, unusual_N - knot))
    slopes_NH = np.stack(columns, -1)
    scale_H = np.sqrt((weight_N[:, None] * slopes_NH**2).sum(0) / weight_N.sum())
    used_H = scale_H > 1e-6
    scaled_NH = slopes_NH / np.where(used_H, scale_H, 1) * used_H
    weights_H = _exponential_fit(errors_N, scaled_NH, weight_N / weight_N.sum())
    weights_H = np.where(used_H, weights_H / np.where(used_H, scale_H, 1), 0)
    hinges = []
    for (name, side, start), weight in zip(knots, weights_H[:-1], strict=True):
        if weight > 1e-3:
            hinges.append(Hinge(name, side, start, round(float(weight), 4)))
    fitted = Difficulty(tuple(hinges), reference, knot, round(float(weights_H[-1]), 4))
    expected_N = fitted.expected(fitted.quality(measures_NM, names), unusual_N)
    largest = _BEYOND * quantile(expected_N, weight_N, _MEASURED_SHARE)
    return replace(fitted, largest=round(float(np.clip(largest, _LEAST_LARGEST, LARGEST)), 4))


def _exponential_fit(errors_N: Floats, slopes_NH: Floats, weight_N: Floats) -> Floats:
    """The weights w >= 0, (H,), that minimise mean(e / m + log m) + shrinkage with
    m = exp(intercept + slopes w).

    This is the maximum likelihood of exponential errors e with mean m. It is consistent for any
    distribution with that mean.
    """

    def loss(parameters: Floats) -> tuple[float, Floats]:
        logarithm_N = parameters[0] + slopes_NH @ parameters[1:]
        ratio_N = errors_N * np.exp(-logarithm_N)
        slope_N = weight_N * (1 - ratio_N)
        value = float((weight_N * (ratio_N + logarithm_N)).sum())
        value += _SHRINK * float((parameters[1:] ** 2).sum())
        gradient = np.concatenate([[slope_N.sum()], slopes_NH.T @ slope_N + 2 * _SHRINK * parameters[1:]])
        return value, gradient

    from scipy.optimize import minimize  # imported here, because loading a bundle must be fast

    start = np.zeros(slopes_NH.shape[1] + 1)
    start[0] = np.log(max(float((weight_N * errors_N).sum()), 1e-6))
    bounds = [(None, None)] + [(0.0, 3.0)] * slopes_NH.shape[1]
    return np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x[1:], np.float64)


def quantile(values_N: Floats, weight_N: Floats, share: float) -> float:
    """Weighted quantile: the smallest value with at least this share of the weight up to it."""
    order = np.argsort(values_N, kind="stable")
    cumulative = np.cumsum(weight_N[order])
    index = int(np.searchsorted(cumulative, share * cumulative[-1] - 1e-12))
    return float(values_N[order][min(index, len(values_N) - 1)])
