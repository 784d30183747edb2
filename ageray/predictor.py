"""Bundle to ages for a batch of faces: the same code in evaluation, scoring and serving. Shape letters: B faces, C side of a canvas, K bins."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ageray.bundle import Bundle
from ageray.calibration import LIMITS, TAILS, Answers, Person, combine_people, shares_above
from ageray.faces.canvases import to_tensors
from ageray.faces.quality import MEASURES
from ageray.models.decode import bins, decode, quantiles
from ageray.models.inference import classifier_posteriors, embeddings, predict

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Ages:
    """`age`, `low`, `high` (B,) in years, low and high the 90 % interval; `posterior` (B, K) before calibration; `decoded` (B, 3): age and the
    5 % and 95 % quantiles before calibration; `over` (B, L), probability of being of each of `calibration.LIMITS` or older.

    (B,) each, None where the model's card has not learnt them: `quality` of the picture, 0 to 1; `unusual`, distance from the faces of
    training, above 1 is unusual; `widening`, the factor that they widen the interval by; `refused`, bool, faces whose expected error is more
    than an interval can say. `measures` (B, M) and `distance` (B,) are what they come from.

    Of a model with a gallery also (B,) each: `female`, the share of women among the nearest faces (None where the gallery knows no gender),
    `neighbours`, how many ages were averaged, and `own`, how many of the nearest are of the face's own subject; see `Prediction`."""

    age: Array
    low: Array
    high: Array
    posterior: Array
    decoded: Array
    over: Array
    quality: Array | None = None
    unusual: Array | None = None
    widening: Array | None = None
    refused: NDArray[np.bool_] | None = None
    measures: Array | None = None
    distance: Array | None = None
    female: Array | None = None
    neighbours: Array | None = None
    own: Array | None = None


class Predictor:
    """A network on its device, ready for batches."""

    def __init__(
        self, bundle: Bundle, device: str = "auto", threads: int = 0, precision: str = "auto"
    ) -> None:
        """device: `auto` takes a GPU where there is one. threads: of this process's CPU operations, 0 for all cores. precision: `float32`,
        `bf16`, or `auto`: bf16 where the model was trained with it and the hardware has instructions for it (ages differ by about 0.05
        years from float32's)."""
        self.bundle = bundle
        self.device = torch.device(
            ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        )
        if self.device.type == "cpu":
            torch.set_num_threads(threads or os.cpu_count() or 1)
        wanted = bundle.experiment.train.precision if precision == "auto" else precision
        self._autocast = wanted == "bf16" and (precision == "bf16" or _fast_bf16(self.device))
        self._network = bundle.network().to(self.device)
        gallery = bundle.gallery() if bundle.experiment.model.decode.method == "gallery" else None
        self._gallery = None if gallery is None else gallery.to(self.device)
        self._bins = bins(bundle.experiment.model).to(self.device)
        self._calibration = bundle.calibration
        distance = bundle.distance()
        self._distance = None if distance is None else distance.to(self.device)

    @torch.inference_mode()
    def predict(
        self, canvas: NDArray[np.uint8], points: Array, box: Array, subject: NDArray[np.int64] | None = None
    ) -> Ages:
        """Ages of B faces: canvases uint8 (B, C, C, 3) with points (B, 5, 2) and boxes (B, 4) in canvas pixels, as
        `ageray.faces.canvases.face_canvases` makes them.

        subject: (B,) as `ageray.data.stream.subject_number` makes them, 0 unknown. A gallery's faces of the same subject are counted and,
        with `decode.gallery.exclude_subject`, left out."""
        config = self.bundle.experiment
        if len(canvas) == 0:
            return self._nobody()
        batch = self._batch(canvas, points, box)
        if subject is not None:
            batch |= to_tensors({"subject": np.ascontiguousarray(subject, np.int64)}, self.device)
        said = predict(
            self._network, batch, config, self._autocast, self._gallery, measured=self._distance is not None
        )
        probabilities = said.posterior
        age = decode(probabilities, config.model)
        tails = quantiles(probabilities, self._bins, torch.tensor(TAILS, device=self.device))
        decoded = torch.cat([age[:, None], tails], -1).cpu().numpy()
        posterior = probabilities.cpu().numpy()
        measures = None if said.measures is None else said.measures.cpu().numpy()
        distance = None
        if self._distance is not None and said.embedding is not None:
            distance = self._distance(said.embedding).cpu().numpy()
        answers = self.recalibrated(decoded, posterior, measures, distance)
        female, neighbours, own = (
            None if column is None else column.float().cpu().numpy()
            for column in (said.female, said.neighbours, said.own)
        )
        return Ages(
            answers.age,
            answers.low,
            answers.high,
            posterior,
            decoded,
            answers.over,
            quality=answers.quality,
            unusual=answers.unusual,
            widening=answers.widening,
            refused=answers.refused,
            measures=measures,
            distance=distance,
            female=female,
            neighbours=neighbours,
            own=own,
        )

    def _nobody(self) -> Ages:
        none = np.zeros(0, np.float32)
        posterior, decoded, over = (
            np.zeros((0, width), np.float32) for width in (len(self._bins), 3, len(LIMITS))
        )
        empty = Ages(none, none, none, posterior, decoded, over, widening=none + 1, refused=np.zeros(0, bool))
        if self._distance is None:
            return empty
        return replace(
            empty,
            quality=none,
            unusual=none,
            measures=np.zeros((0, len(MEASURES)), np.float32),
            distance=none,
        )

    def quantiles(self, ages: Ages, levels: Sequence[float]) -> Array:
        """The calibrated posteriors' quantiles at `levels` (Q,), in years: (B, Q). The interval's conformal margin is not in them."""
        said = quantiles(torch.from_numpy(ages.posterior), self._bins.cpu(), torch.tensor(levels)).numpy()
        return (self._calibration.scale * said + self._calibration.shift).astype(np.float32)

    def recalibrated(
        self,
        decoded: NDArray[np.floating[Any]],
        posterior: NDArray[np.floating[Any]],
        measures: NDArray[np.floating[Any]] | None = None,
        distance: NDArray[np.floating[Any]] | None = None,
    ) -> Answers:
        """What the card's calibration makes of what `predict` gave before it: `decoded` (B, 3), `posterior` (B, K),
        `measures` (B, M) and `distance` (B,)."""
        line = self._calibration
        share = shares_above(posterior, self._bins.cpu().numpy(), line.scale, line.shift)
        return line.answers(decoded, share, measures, MEASURES, distance)

    def people(
        self, ages: Ages, subject: Sequence[str | None], years: Sequence[float] | None = None
    ) -> list[Person]:
        """One age for each person of whom `ages` holds photos, sorted by `subject` (B,), None unknown.

        years: how long before the date that is asked about each photo was taken (B,); all at that date where it is
        None. How alike the errors of one person's photos are is on the model's card.
        """
        correlation = self._calibration.correlation
        return combine_people(subject, ages.age, ages.low, ages.high, years, correlation)

    @property
    def classifier_names(self) -> tuple[str, ...]:
        """Of a network with several classifiers (DHAA), the one that decides last; else none."""
        return self._network.classifier_names

    @torch.inference_mode()
    def classifiers(self, canvas: NDArray[np.uint8], points: Array, box: Array) -> Array:
        """The age that each classifier says, decoded as the model decodes but not calibrated: (B, classifiers)."""
        if len(canvas) == 0:
            return np.zeros((0, len(self.classifier_names)), np.float32)
        config = self.bundle.experiment
        said = classifier_posteriors(self._network, self._batch(canvas, points, box), config, self._autocast)
        return (
            torch.stack([decode(said[name], config.model) for name in self.classifier_names], -1)
            .cpu()
            .numpy()
        )

    @property
    def has_embedding(self) -> bool:
        """Whether `embeddings` has something to give."""
        return "embedding" in self._network.outputs

    @torch.inference_mode()
    def embeddings(self, canvas: NDArray[np.uint8], points: Array, box: Array) -> Array:
        """The network's embeddings, (B, D), of one face or more."""
        batch = self._batch(canvas, points, box)
        return embeddings(self._network, batch, self.bundle.experiment, self._autocast).cpu().numpy()

    def _batch(self, canvas: NDArray[np.uint8], points: Array, box: Array) -> dict[str, torch.Tensor]:
        columns = {
            "canvas": np.ascontiguousarray(canvas),
            "points": points.astype(np.float32),
            "box": box.astype(np.float32),
        }
        return to_tensors(columns, self.device)


def _fast_bf16(device: torch.device) -> bool:
    """Whether bf16 is faster than float32: on tensor cores and on CPUs with AMX or AVX-512 BF16; elsewhere it is emulated."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
