"""A bundle as one network: aligned faces in; posterior, age and interval out, calibrated as the
predictor does it.

The formulas are those of `ageray.calibration`, in tensors. Shape letters: B faces, S side of the
aligned face, K age bins, M measures.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ageray.bundle import Bundle
from ageray.calibration import TAILS, Difficulty, Intervals
from ageray.calibration.intervals import LEAST_REACH, middles
from ageray.errors import UserError
from ageray.faces import quality
from ageray.models.decode import bins, quantiles
from ageray.models.export import FacesToAges

OUTPUTS = ("posterior", "age", "interval", "difficulty")


class CalibratedAges(nn.Module):
    """`face` (B, 3, S, S), float RGB in 0..255, to

        posterior   (B, K)  before calibration
        age         (B,)    years
        interval    (B, 2)  the 90 % interval, years
        difficulty  (B,)    expected error relative to an ordinary face; the predictor refuses faces
                            above `largest`

    Models with a difficulty also read `points` (B, 5, 2), the five points in pixels of the aligned
    face, and `resolution` (B,), photo pixels per pixel of the aligned face. Networks that read
    points need `points` too. Without a difficulty the last output is 1.
    """

    def __init__(self, bundle: Bundle) -> None:
        """Raises UserError for models whose ages need more than one aligned face."""
        super().__init__()
        decode, align = bundle.experiment.model.decode, bundle.experiment.align
        for view in decode.views:
            if len(decode.views) > 1 or view.zoom != 1 or view.size not in (0, align.size):
                remedy = "export a model with one view, such as zoo:default"
                raise UserError(f"{bundle.uri}: averages views of several crops or sizes; {remedy}")
        self._network = FacesToAges(bundle.network(), bundle.experiment)
        self._align, self._model = align, bundle.experiment.model
        self._calibration = bundle.calibration
        self._distance = bundle.distance()
        self.register_buffer("_bins", bins(self._model), persistent=False)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the inputs."""
        if self._difficulty is not None:
            return ("face", "points", "resolution")
        return ("face", "points") if self._network.network.reads_points else ("face",)

    @property
    def largest(self) -> float | None:
        """The difficulty above which the predictor refuses a face; None if it refuses none."""
        return None if self._difficulty is None else self._difficulty.largest

    @property
    def _difficulty(self) -> Difficulty | None:
        return None if self._distance is None else self._calibration.difficulty

    def forward(
        self, face: Tensor, points: Tensor | None = None, resolution: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four outputs."""
        network_points = points if self._network.network.reads_points else None
        posterior_BK, decoded_B = self._network(face, network_points)
        difficulty_B = torch.ones_like(decoded_B)
        if self._difficulty is not None and self._distance is not None:
            assert points is not None
            assert resolution is not None
            measures_BM = quality.measure_aligned(face, points, resolution, self._align.size)
            embedding_BD = self._network.embedding(face, network_points)
            distance_B = self._distance(embedding_BD)
            difficulty_B = _expected(self._difficulty, measures_BM, distance_B)
        tails_B2 = quantiles(posterior_BK, self._bins, torch.tensor(TAILS).to(posterior_BK))  # type: ignore[arg-type]
        age_B, interval_B2 = self._calibrated(decoded_B, tails_B2, difficulty_B)
        return posterior_BK, age_B, interval_B2, difficulty_B

    def _calibrated(self, decoded_B: Tensor, tails_B2: Tensor, difficulty_B: Tensor) -> tuple[Tensor, Tensor]:
        """Age and interval, as `Calibration.apply`."""
        line = self._calibration
        age_B = (line.scale * decoded_B + line.shift).clamp_min(0)
        low_B, high_B = (line.scale * tails_B2 + line.shift).clamp_min(0).unbind(-1)
        if line.intervals is None:
            low_B, high_B = (low_B - line.margin).clamp_min(0), high_B + line.margin
        else:
            largest = self.largest or 1.0
            widening_B = difficulty_B.clamp(1.0, largest)
            below_B = (age_B - low_B).clamp_min(LEAST_REACH)
            above_B = (high_B - age_B).clamp_min(LEAST_REACH)
            factors = line.intervals
            low_B = (age_B - widening_B * _interpolated(age_B, factors, factors.low) * below_B).clamp_min(0)
            high_B = age_B + widening_B * _interpolated(age_B, factors, factors.high) * above_B
        return age_B, torch.stack([torch.minimum(low_B, age_B), torch.maximum(high_B, age_B)], -1)


def _expected(difficulty: Difficulty, measures_BM: Tensor, distance_B: Tensor) -> Tensor:
    """As `Difficulty.expected`: (B,)."""
    logarithm_B = torch.zeros_like(distance_B)
    for hinge in difficulty.hinges:
        column_B = measures_BM[:, quality.MEASURES.index(hinge.measure)]
        logarithm_B = logarithm_B + hinge.weight * (hinge.side * (column_B - hinge.knot)).clamp_min(0)
    unusual_B = distance_B / difficulty.reference
    strangeness_B = (difficulty.slope * (unusual_B - difficulty.knot).clamp_min(0)).clamp_max(50).exp()
    return strangeness_B / (-logarithm_B).exp().clamp_min(1e-9)


def _interpolated(age_B: Tensor, intervals: Intervals, factors: tuple[float, ...]) -> Tensor:
    """The factor at each age, linear between the middles of decades, as `numpy.interp`: (B,)."""
    places = middles(intervals.edges).tolist()
    factor_B = torch.full_like(age_B, factors[0])
    for number in range(len(factors) - 1):
        width = places[number + 1] - places[number]
        slope = (factors[number + 1] - factors[number]) / width
        factor_B = factor_B + slope * (age_B - places[number]).clamp(0.0, width)
    return factor_B
