"""What is learnt from the validation part after training: a line that undoes the pull to the middle, and 90 % intervals.

The interval is conformalised quantile regression (Romano, Patterson and Candes, NeurIPS 2019): the posterior's 5 % and 95 % quantiles, moved
outwards (or inwards) by the one margin that covers 90 % of the validation faces.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ages = NDArray[np.float32]

LEVEL = 0.9
"""Share of faces that an interval is meant to cover."""
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
"""The posterior's quantiles that the interval starts from."""
_FEWEST = 30  # fewer validation faces than this say too little to fit anything


@dataclass(frozen=True)
class Calibration:
    """age = scale * decoded + shift; the interval's ends go through the same line and then `margin` years outwards. `faces` were used."""

    scale: float = 1.0
    shift: float = 0.0
    margin: float = 0.0
    faces: int = 0

    def apply(self, decoded: Ages, low: Ages, high: Ages) -> tuple[Ages, Ages, Ages]:
        """Age and interval (each (N,)) from the decoded age and the posterior's quantiles; below 0 years counts as 0, and the age lies
        within its interval."""
        age, start, end = (np.maximum(self.scale * ends + self.shift, 0) for ends in (decoded, low, high))
        start, end = np.maximum(start - self.margin, 0), end + self.margin
        return age, np.minimum(start, age), np.maximum(end, age)

    def to_card(self) -> dict[str, Any]:
        """For a bundle's card."""
        return {
            "method": "line by least absolute deviations; conformalised quantile regression",
            "level": LEVEL,
            **asdict(self),
        }

    @classmethod
    def from_card(cls, card: dict[str, Any] | None) -> Calibration:
        """From a bundle's card; none there means none to apply."""
        if not card:
            return cls()
        return cls(float(card["scale"]), float(card["shift"]), float(card["margin"]), int(card["faces"]))


def fit(true: Ages, decoded: Ages, low: Ages, high: Ages) -> Calibration:
    """Fits line and margin on validation faces: true age, decoded age and the posterior's quantiles, each (N,).

    With fewer than 30 faces nothing is fitted: the identity comes back. The same faces fit the line and the margin, and chose the epoch;
    the interval is therefore a little optimistic (two parameters on N faces).
    """
    if len(true) < _FEWEST:
        return Calibration(faces=0)
    scale, shift = _line(decoded.astype(np.float64), true.astype(np.float64))
    _, start, end = Calibration(scale, shift).apply(decoded, low, high)
    misses = np.sort(np.maximum(start - true, true - end))
    rank = math.ceil((len(true) + 1) * LEVEL)
    return Calibration(scale, shift, float(misses[min(rank, len(misses)) - 1]), len(true))


def _line(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Least absolute deviations by iteratively reweighted least squares. A slope outside 0.5 to 2 is a model that has learnt nothing: then the
    identity."""
    weight = np.ones_like(x)
    scale, shift = 1.0, 0.0
    for _ in range(50):
        total = weight.sum()
        mean_x, mean_y = (weight * x).sum() / total, (weight * y).sum() / total
        spread = (weight * (x - mean_x) ** 2).sum()
        if spread < 1e-9:
            return 1.0, 0.0
        scale = float((weight * (x - mean_x) * (y - mean_y)).sum() / spread)
        shift = float(mean_y - scale * mean_x)
        weight = 1 / np.maximum(np.abs(y - scale * x - shift), 1e-2)
    return (scale, shift) if 0.5 <= scale <= 2 else (1.0, 0.0)
