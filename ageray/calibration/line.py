"""What is learnt from the validation part after training: a line that undoes the pull to the
middle, and 90 % intervals.

The interval is conformalised quantile regression (Romano, Patterson and Candes, NeurIPS 2019): the
posterior's 5 % and 95 % quantiles, moved outwards (or inwards) by the one margin that covers 90 %
of the validation faces.
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
"""Share of faces that an interval is meant to cover."""
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
"""The posterior's quantiles that the interval starts from."""
_LINE = "line by least absolute deviations"
_FEWEST = 30  # with fewer validation faces nothing is fitted


class Answers(NamedTuple):
    """What the calibration makes of N faces, (N,) each: `age`, `low`, `high` in years; `quality`
    and `unusual`, None where the model has not learnt them; `widening`, the factor that they widen
    the interval by; `over` (N, L), probabilities of LIMITS; `refused`, faces whose expected error
    is more than an interval can say: their numbers should not be used."""

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
    """age = scale * decoded + shift. `faces` were used.

    Without `intervals`, the interval's ends go through the same line and then `margin` years
    outwards. With them, they are those of `Intervals`, widened by `difficulty`. `checks` gives the
    probabilities of LIMITS.
    """

    scale: float = 1.0
    shift: float = 0.0
    margin: float = 0.0
    faces: int = 0
    intervals: Intervals | None = None
    difficulty: Difficulty | None = None
    checks: AgeChecks = field(default_factory=AgeChecks)
    correlation: float = CORRELATION
    """Between the errors of two photos of one person, see `ageray.calibration.people`."""
    sets: dict[str, Any] = field(default_factory=dict)
    """Of each calibration set what the card says of it: faces; coverage and width where it was left
    out."""

    def apply(
        self, decoded: Ages, low: Ages, high: Ages, widening: Ages | None = None
    ) -> tuple[Ages, Ages, Ages]:
        """Age and interval (each (N,)) from the decoded age and the posterior's quantiles; below 0
        years counts as 0, and the age lies within its interval. `widening` (N,), at least 1, widens
        it where the model has `intervals`."""
        age, start, end = (np.maximum(self.scale * ends + self.shift, 0) for ends in (decoded, low, high))
        if self.intervals is None:
            start, end = np.maximum(start - self.margin, 0), end + self.margin
        else:
            start, end = self.intervals.apply(
                age, start, end, np.ones(len(age)) if widening is None else widening
            )
        return age, np.minimum(start, age), np.maximum(end, age)

    def answers(
        self,
        decoded_N3: Ages,
        share_NL: Ages,
        measures_NM: Ages | None = None,
        names: Sequence[str] = (),
        distance_N: Ages | None = None,
    ) -> Answers:
        """Everything that the calibration says of N faces.

        decoded: age and the posterior's 5 % and 95 % quantiles, (N, 3). share: `shares_above` of
        the posteriors, (N, L). measures (N, M) with their `names`, and distance (N,), are needed
        where the model has `difficulty`.
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
        age, low, high = self.apply(decoded_N3[:, 0], decoded_N3[:, 1], decoded_N3[:, 2], widening)
        over = self.checks.apply(share_NL, widening)
        age, low, high, widening, over = (
            column.astype(np.float32) for column in (age, low, high, widening, over)
        )
        quality, unusual = (
            None if column is None else column.astype(np.float32) for column in (quality, unusual)
        )
        return Answers(age, low, high, quality, unusual, widening, over, refused)

    def to_card(self) -> dict[str, Any]:
        """For a bundle's card."""
        line = {"scale": self.scale, "shift": self.shift, "margin": self.margin, "faces": self.faces}
        if self.intervals is None:
            method = f"{_LINE}; conformalised quantile regression"
            return {"method": method, "level": LEVEL, **line}
        method = (
            f"{_LINE}; quantiles of the posterior conformalised by decade and side on a mixture of sets, "
            "widened by the quality of the picture and the distance from the faces of training"
        )
        card = {"method": method, "level": LEVEL, **line, "intervals": self.intervals.to_card()}
        if self.difficulty is not None:
            card["difficulty"] = self.difficulty.to_card()
        people = {"error_correlation": round(self.correlation, 4)}
        return card | {"over": self.checks.to_card(), "people": people, "sets": self.sets}

    @classmethod
    def from_card(cls, card: dict[str, Any] | None) -> Calibration:
        """From a bundle's card; none there means none to apply."""
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
    """Fits line and margin on validation faces: true age, decoded age and the posterior's
    quantiles, each (N,).

    With fewer than 30 faces nothing is fitted: the identity comes back. The same faces fit the line
    and the margin, and chose the epoch; the interval is therefore a little optimistic (two
    parameters on N faces).
    """
    if len(true) < _FEWEST:
        return Calibration(faces=0)
    scale, shift = fit_line(decoded.astype(np.float64), true.astype(np.float64))
    _, start, end = Calibration(scale, shift).apply(decoded, low, high)
    misses = np.sort(np.maximum(start - true, true - end))
    rank = math.ceil((len(true) + 1) * LEVEL)
    return Calibration(scale, shift, float(misses[min(rank, len(misses)) - 1]), len(true))


def fit_line(
    x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]], face_weight: NDArray[Any] | None = None
) -> tuple[float, float]:
    """Least absolute deviations by iteratively reweighted least squares: slope and intercept.
    `face_weight` (N,) says how much a face counts, all alike where it is None. A slope outside 0.5
    to 2 is a model that has learnt nothing: then the identity."""
    face_weight = np.ones_like(x) if face_weight is None else face_weight
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
    return (scale, shift) if 0.5 <= scale <= 2 else (1.0, 0.0)
