"""The calibration of a model: a line that corrects ages, and 90 % intervals.

The line removes the model's bias towards the middle ages. `fit` fits both on the validation faces.
Its interval is conformalised quantile regression (Romano, Patterson and Candes, NeurIPS 2019): the
posterior's 5 % and 95 % quantiles, moved outwards (or inwards) by the margin that covers 90 % of
the validation faces. Shape letters: N faces, M measures, L limits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ageray.calibration.age_checks import AgeChecks
from ageray.calibration.difficulty import Difficulty
from ageray.calibration.intervals import Intervals
from ageray.calibration.people import CORRELATION

Ages = NDArray[np.floating[Any]]

LEVEL = 0.9
"""Nominal coverage of an interval."""
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
"""The levels of the posterior's quantiles from which the interval is made."""
_LINE = "line by least absolute deviations"
_NO_LINE = "ages as decoded"
_FEWEST = 30  # validation faces that a fit needs


class Answers(NamedTuple):
    """Calibrated answers for N faces, (N,) each except `over`.

    `age`, `low`, `high`: years. `quality`, `unusual`: see `Difficulty`, None for a model without
    one. `widening`: the factor by which they widen the interval. `over` (N, L): probabilities of
    LIMITS. `refused`: faces whose expected error is larger than an interval can express; do not
    use their ages.
    """

    age: Ages
    low: Ages
    high: Ages
    quality: Ages | None
    unusual: Ages | None
    widening: Ages
    over: Ages
    refused: NDArray[np.bool_]


@dataclass(frozen=True)
class Calibration:
    """age = scale * decoded + shift, fitted on `faces` faces.

    Without `intervals`, the interval's ends go through the same line and then move `margin` years
    outwards. With `intervals`, `Intervals` gives the ends and `difficulty` widens them. `checks`
    gives the probabilities of LIMITS.
    """

    scale: float = 1.0
    shift: float = 0.0
    margin: float = 0.0
    faces: int = 0
    intervals: Intervals | None = None
    difficulty: Difficulty | None = None
    checks: AgeChecks = field(default_factory=AgeChecks)
    correlation: float = CORRELATION
    """Correlation between the errors of two photos of one person, see
    `ageray.calibration.people`."""
    sets: dict[str, Any] = field(default_factory=dict)
    """For each calibration set its card entry: faces; coverage and width with and without the
    set."""

    def apply(
        self, decoded: Ages, low: Ages, high: Ages, widening: Ages | None = None
    ) -> tuple[Ages, Ages, Ages]:
        """Age and interval, (N,) each, from the decoded age and the posterior's quantiles.

        All are at least 0 years, and the age lies within its interval. widening: (N,), at least 1;
        it widens the interval of a model with `intervals`.
        """
        age, start, end = self.lined(decoded), self.lined(low), self.lined(high)
        if self.intervals is None:
            start, end = np.maximum(start - self.margin, 0), end + self.margin
        else:
            if widening is None:
                widening = np.ones(len(age))
            start, end = self.intervals.apply(age, start, end, widening)
        return age, np.minimum(start, age), np.maximum(end, age)

    def lined(self, years: Ages) -> Ages:
        """Years through the line, at least 0."""
        corrected: Ages = np.maximum(self.scale * years + self.shift, 0)
        return corrected

    def answers(
        self,
        decoded_N3: Ages,
        share_NL: Ages,
        measures_NM: Ages | None = None,
        names: Sequence[str] = (),
        distance_N: Ages | None = None,
    ) -> Answers:
        """The answers for N faces.

        decoded: (N, 3), age and the posterior's 5 % and 95 % quantiles. share: (N, L),
        `shares_above` of the posteriors. measures (N, M) with their `names`, and distance (N,),
        are needed by a model with `difficulty`.
        """
        quality: Ages | None = None
        unusual: Ages | None = None
        widening: Ages = np.ones(len(decoded_N3))
        refused = np.zeros(len(decoded_N3), bool)
        if self.difficulty is not None and measures_NM is not None and distance_N is not None:
            quality = self.difficulty.quality(measures_NM.astype(np.float64), names)
            unusual = self.difficulty.unusual(distance_N.astype(np.float64))
            widening = self.difficulty.widening(quality, unusual)
            refused = self.difficulty.expected(quality, unusual) > self.difficulty.largest
            quality, unusual = quality.astype(np.float32), unusual.astype(np.float32)
        age, low, high = self.apply(decoded_N3[:, 0], decoded_N3[:, 1], decoded_N3[:, 2], widening)
        over = self.checks.apply(share_NL, widening)
        return Answers(
            age.astype(np.float32),
            low.astype(np.float32),
            high.astype(np.float32),
            quality,
            unusual,
            widening.astype(np.float32),
            over.astype(np.float32),
            refused,
        )

    def to_card(self) -> dict[str, Any]:
        """For a bundle's card."""
        line = {"scale": self.scale, "shift": self.shift, "margin": self.margin, "faces": self.faces}
        first = _LINE
        if (self.scale, self.shift) == (1.0, 0.0):
            first = _NO_LINE
        if self.intervals is None:
            method = f"{first}; conformalised quantile regression"
            return {"method": method, "level": LEVEL, **line}
        method = (
            f"{first}; quantiles of the posterior conformalised by decade and side on a mixture of sets, "
            "widened by the quality of the picture and the distance from the faces of training"
        )
        card = {"method": method, "level": LEVEL, **line, "intervals": self.intervals.to_card()}
        if self.difficulty is not None:
            card["difficulty"] = self.difficulty.to_card()
        people = {"error_correlation": round(self.correlation, 4)}
        return card | {"over": self.checks.to_card(), "people": people, "sets": self.sets}

    @classmethod
    def from_card(cls, card: dict[str, Any] | None) -> Calibration:
        """From a bundle's card; without an entry there, the identity."""
        if not card:
            return cls()
        return cls(
            float(card["scale"]),
            float(card["shift"]),
            float(card["margin"]),
            int(card["faces"]),
            Intervals.from_card(card.get("intervals")),
            Difficulty.from_card(card.get("difficulty")),
            AgeChecks.from_card(card.get("over")),
            float(card.get("people", {}).get("error_correlation", CORRELATION)),
            dict(card.get("sets", {})),
        )


def fit(true: Ages, decoded: Ages, low: Ages, high: Ages) -> Calibration:
    """Fits line and margin on validation faces.

    true: (N,) true ages. decoded: (N,) decoded ages. low, high: (N,) the posterior's quantiles.
    With fewer than 30 faces it returns the identity. The same faces fit the line and the margin,
    and selected the epoch; the interval is therefore a little too narrow (two parameters on N
    faces).
    """
    if len(true) < _FEWEST:
        return Calibration(faces=0)
    scale, shift = fit_line(decoded.astype(np.float64), true.astype(np.float64))
    _, start, end = Calibration(scale, shift).apply(decoded, low, high)
    misses = np.sort(np.maximum(start - true, true - end))
    count = math.ceil((len(true) + 1) * LEVEL)
    return Calibration(scale, shift, float(misses[min(count, len(misses)) - 1]), len(true))


def fit_line(
    x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]], face_weight: NDArray[Any] | None = None
) -> tuple[float, float]:
    """Slope and intercept by least absolute deviations, by iteratively reweighted least squares.

    face_weight: (N,) weight of each face; None weighs all equally. A slope outside 0.5 to 2 means
    that the model has not learnt ages; then the result is the identity.
    """
    if face_weight is None:
        face_weight = np.ones_like(x)
    weight = face_weight
    scale, shift = 1.0, 0.0
    for _ in range(50):
        total = weight.sum()
        mean_x, mean_y = (weight * x).sum() / total, (weight * y).sum() / total
        spread = (weight * (x - mean_x) ** 2).sum()
        if spread < 1e-9:
            return 1.0, 0.0
        scale = float((weight * (x - mean_x) * (y - mean_y)).sum() / spread)
        shift = float(mean_y - scale * mean_x)
        weight = face_weight / np.maximum(np.abs(y - scale * x - shift), 1e-2)
    if not 0.5 <= scale <= 2:
        return 1.0, 0.0
    return scale, shift
