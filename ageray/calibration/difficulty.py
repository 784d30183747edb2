"""How much larger than usual a face's error is expected to be: by its picture, and by its distance
from the faces of training.

Learnt from faces whose ages are known, good pictures and degraded copies of them, on several sets.
Shape letters: N faces, M measures (`ageray.faces.quality.MEASURES`), H hinges.
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
"""Which side of each measure is the hard one; only there a picture can lose quality. `grain` has
two: noisy, and blurred."""

_KNOT_SHARE = 0.75
"""A hinge begins at the ordinary face that is harder than three in four by that measure."""
_SHRINK = 2e-3  # of the squared weights: a measure that tells nothing gets none
LARGEST = 3.0
"""Widest that an interval is stretched, whatever calibration faces show."""
_MEASURED_SHARE, _BEYOND, _LEAST_LARGEST = 0.995, 1.05, 1.5
# `largest` is that quantile of what calibration faces reached, a little more, and 1.5 at least


@dataclass(frozen=True)
class Hinge:
    """Adds weight * max(0, side * (measure - knot)) to the logarithm of the expected error."""

    measure: str
    side: float
    knot: float
    weight: float


@dataclass(frozen=True)
class Difficulty:
    """Expected error of a face over that of an ordinary one: photo * strangeness, each at least 1.
    Above `largest` the face is refused.

    photo         exp(sum of `hinges`), from the measures of the picture
    strangeness   exp(slope * max(0, unusual - knot)), from the distance in feature space over
                  `reference`
    """

    hinges: tuple[Hinge, ...]
    reference: float
    knot: float
    slope: float
    largest: float = LARGEST

    def quality(self, measures_NM: Floats, names: Sequence[str]) -> Floats:
        """1 / photo, (N,): 1 for an ordinary picture or a better one, 0.5 where the picture doubles
        the expected error."""
        logarithm_N = np.zeros(len(measures_NM))
        for hinge in self.hinges:
            column_N = measures_NM[:, names.index(hinge.measure)]
            logarithm_N += hinge.weight * np.maximum(0, hinge.side * (column_N - hinge.knot))
        return np.asarray(np.exp(-logarithm_N), np.float64)

    def unusual(self, distance_N: Floats) -> Floats:
        """Distance from the faces of training over that of the 99th ordinary face in a hundred,
        (N,): above 1 is unusual."""
        return np.asarray(distance_N / self.reference, np.float64)

    def widening(self, quality_N: Floats, unusual_N: Floats) -> Floats:
        """The factor by which intervals are widened, 1 to `largest`: (N,)."""
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
        """From a bundle's card; None where it has none."""
        if not card:
            return None
        hinges = tuple(
            Hinge(str(name), *(float(number) for number in rest)) for name, *rest in card["quality"]
        )
        about = card["unusual"]
        return cls(
            hinges,
            float(about["reference"]),
            float(about["knot"]),
            float(about["slope"]),
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

    errors_N: |error| over the half width that the posterior gives, at least 0. ordinary_N: pictures
    that are not degraded; knots and the reference distance are theirs. weight_N: of each face, so
    that sets and degradations count alike. Hinges without weight are left out. `largest` is what
    one face in 200 reached, and a little more: beyond it nothing was measured.
    """
    reference = max(float(quantile(distance_N[ordinary_N], weight_N[ordinary_N], UNUSUAL_SHARE)), 1e-9)
    unusual_N = distance_N / reference
    columns, places = [], []
    for key, side in SIDES.items():
        name = key.removesuffix("_low")
        column_N = side * measures_NM[:, names.index(name)]
        knot = quantile(column_N[ordinary_N], weight_N[ordinary_N], _KNOT_SHARE)
        columns.append(np.maximum(0, column_N - knot))
        places.append((name, side, side * knot))
    knot = float(quantile(unusual_N[ordinary_N], weight_N[ordinary_N], 0.5))
    columns.append(np.maximum(0, unusual_N - knot))
    slopes_NH = np.stack(columns, -1)
    scale_H = np.sqrt((weight_N[:, None] * slopes_NH**2).sum(0) / weight_N.sum())
    used_H = scale_H > 1e-6
    scaled_NH = slopes_NH / np.where(used_H, scale_H, 1) * used_H
    weights_H = _exponential_fit(errors_N, scaled_NH, weight_N / weight_N.sum())
    weights_H = np.where(used_H, weights_H / np.where(used_H, scale_H, 1), 0)
    hinges = []
    for (name, side, place), weight in zip(places, weights_H[:-1], strict=True):
        if weight > 1e-3:
            hinges.append(Hinge(name, side, place, round(float(weight), 4)))
    fitted = Difficulty(tuple(hinges), reference, knot, round(float(weights_H[-1]), 4))
    expected_N = fitted.expected(fitted.quality(measures_NM, names), unusual_N)
    most = _BEYOND * quantile(expected_N, weight_N, _MEASURED_SHARE)
    return replace(fitted, largest=round(float(np.clip(most, _LEAST_LARGEST, LARGEST)), 4))


def _exponential_fit(errors_N: Floats, slopes_NH: Floats, weight_N: Floats) -> Floats:
    """Minimises mean(e / m + log m) + shrinkage with m = exp(intercept + slopes w), w >= 0: the
    maximum likelihood of exponential errors with mean m, and consistent for any distribution with
    that mean."""

    def loss(parameters: Floats) -> tuple[float, Floats]:
        logarithm_N = parameters[0] + slopes_NH @ parameters[1:]
        ratio_N = errors_N * np.exp(-logarithm_N)
        slope_N = weight_N * (1 - ratio_N)
        value = float((weight_N * (ratio_N + logarithm_N)).sum()) + _SHRINK * float(
            (parameters[1:] ** 2).sum()
        )
        gradient = np.concatenate([[slope_N.sum()], slopes_NH.T @ slope_N + 2 * _SHRINK * parameters[1:]])
        return value, gradient

    from scipy.optimize import minimize  # here: a bundle is loaded for its settings in no time

    start = np.zeros(slopes_NH.shape[1] + 1)
    start[0] = np.log(max(float((weight_N * errors_N).sum()), 1e-6))
    bounds = [(None, None)] + [(0.0, 3.0)] * slopes_NH.shape[1]
    return np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x[1:], np.float64)


def quantile(values_N: Floats, weight_N: Floats, share: float) -> float:
    """Weighted quantile: the smallest value with at least this share of the weight up to it."""
    order = np.argsort(values_N, kind="stable")
    cumulative = np.cumsum(weight_N[order])
    place = int(np.searchsorted(cumulative, share * cumulative[-1] - 1e-12))
    return float(values_N[order][min(place, len(values_N) - 1)])
