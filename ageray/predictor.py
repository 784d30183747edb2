"""From a bundle and a batch of faces to ages. Evaluation, scoring and serving all use this code.

Shape letters: B faces, C side of a canvas, K age bins, L limits of age checks, M measures, D
features, Q quantile levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ageray.bundle import Bundle
from ageray.calibration import LIMITS, TAILS, Answers, Person, combine_people, shares_above
from ageray.faces.canvases import to_tensors
from ageray.faces.quality import MEASURES
from ageray.machine.cpus import usable_cpus
from ageray.models import cpu_engine
from ageray.models.bf16_weights import keep_bf16
from ageray.models.decode import bins, decode, quantiles
from ageray.models.gallery import Gallery
from ageray.models.inference import classifier_posteriors, embeddings, predict
from ageray.models.replay import Columns, Replay

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Ages:
    """The answers for B faces. `age`, `low` and `high`, the 90 % interval, are in years, (B,) each.

    The fields from `quality` to `distance` are None if the model's calibration has no difficulty.
    Those from `female` on are None for a model without a gallery; see `Prediction`.
    """

    age: Array
    low: Array
    high: Array
    posterior: Array
    """(B, K), before calibration."""
    decoded: Array
    """(B, 3): age, 5 % and 95 % quantile before calibration."""
    over: Array
    """(B, L): probability that the person has reached each age of `calibration.LIMITS`."""
    quality: Array | None = None
    """(B,): of the picture, 0 to 1."""
    unusual: Array | None = None
    """(B,): distance from the training faces; above 1 is unusual."""
    widening: Array | None = None
    """(B,): the factor by which `quality` and `unusual` widen the interval."""
    refused: NDArray[np.bool_] | None = None
    """(B,): faces whose expected error is larger than an interval can express."""
    measures: Array | None = None
    """(B, M): the measures of the picture that give `quality`."""
    distance: Array | None = None
    """(B,): the distance that gives `unusual`."""
    female: Array | None = None
    """(B,): share of women among the nearest faces; None if the gallery has no genders."""
    neighbours: Array | None = None
    """(B,): how many ages were averaged."""
    own: Array | None = None
    """(B,): how many of the nearest faces are of the same person."""
    embedding: Array | None = None
    """(B, D): the network's embedding, on request."""
    classifiers: Array | None = None
    """(B, classifiers): the age by each of several classifiers (DHAA), before calibration, on
    request."""


class Predictor:
    """A network on its device with its calibration, ready for batches."""

    def __init__(
        self,
        bundle: Bundle,
        device: str = "auto",
        threads: int = 0,
        precision: str = "auto",
        cuda_graphs: bool = True,
    ) -> None:
        """Loads the network of `bundle`.

        device: `auto` takes a GPU if there is one. threads: CPU threads of this process, 0 for all
        cores. precision: `float32`, `bf16` or `auto`. `auto` takes bf16 if the model was trained
        with it and the hardware has instructions for it; ages then differ by about 0.05 years from
        those of float32. cuda_graphs: whether a GPU replays a batch as a CUDA graph (`Replay`); a
        gallery, whose search waits for the GPU, never is.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.bundle = bundle
        self.device = torch.device(device)
        if self.device.type == "cpu":
            torch.set_num_threads(threads or usable_cpus())
        self._autocast = precision == "bf16"
        if precision == "auto":
            trained_in_bf16 = bundle.experiment.train.precision == "bf16"
            self._autocast = trained_in_bf16 and _fast_bf16(self.device)
        self._network = bundle.network().to(self.device)
        if self._autocast:
            keep_bf16(self._network)
        self._forward: nn.Module = self._network
        if self.device.type == "cpu" and not self._autocast:
            self._forward = cpu_engine.for_cpu(self._network, threads or usable_cpus())
        self._gallery: Gallery | None = None
        if bundle.experiment.model.decode.method == "gallery":
            gallery = bundle.gallery()
            assert gallery is not None  # `bundle.load` checks it
            self._gallery = gallery.to(self.device)
        self._bins = bins(bundle.experiment.model).to(self.device)
        self._tails = torch.tensor(TAILS, device=self.device)
        self._calibration = bundle.calibration
        self._distance = bundle.distance()
        if self._distance is not None:
            self._distance = self._distance.to(self.device)
        self._replay: Replay | None = None
        if cuda_graphs and self.device.type == "cuda" and self._gallery is None:
            self._replay = Replay(self._flat, self.device)
        self._shapes: dict[str, tuple[int, ...]] = {}

    @torch.inference_mode()
    def predict(
        self,
        canvas: NDArray[np.uint8],
        points: Array,
        box: Array,
        subject: NDArray[np.int64] | None = None,
        details: bool = False,
    ) -> Ages:
        """The ages of B faces.

        canvas: uint8 (B, C, C, 3). points: (B, 5, 2) and box: (B, 4), in canvas pixels.
        `ageray.faces.canvases.face_canvases` makes all three. subject: (B,) numbers of
        `ageray.data.stream.subject_number`, 0 unknown. Gallery faces of the same subject are
        counted and, with `decode.gallery.exclude_subject`, left out. details: adds `embedding` and
        `classifiers`, without further passes of the network.
        """
        if len(canvas) == 0:
            return self._no_ages()
        if self._replay is not None and not details:
            arrays = self._replayed(self._replay, canvas, points, box)
        else:
            batch = self._batch(canvas, points, box)
            if subject is not None:
                batch |= to_tensors({"subject": np.ascontiguousarray(subject, np.int64)}, self.device)
            columns = self._columns(batch, details)
            arrays = _split(_joined(columns).cpu().numpy(), _shapes(columns))
        return self._ages(arrays)

    def _columns(self, batch: dict[str, torch.Tensor], details: bool) -> dict[str, torch.Tensor]:
        """What leaves the device for a batch on it: (B,) or (B, columns) by name."""
        config = self.bundle.experiment
        prediction = predict(
            self._network if details and self.classifier_names else self._forward,
            batch,
            config,
            self._autocast,
            self._gallery,
            measured=self._distance is not None,
            details=details,
        )
        age = decode(prediction.posterior, config.model)
        tails = quantiles(prediction.posterior, self._bins, self._tails)
        columns = {"decoded": torch.cat([age[:, None], tails], -1), "posterior": prediction.posterior}
        for name in ("measures", "female", "neighbours", "own"):
            value = getattr(prediction, name)
            if value is not None:
                columns[name] = value
        if details and prediction.embedding is not None:
            columns["embedding"] = prediction.embedding
        if prediction.classifiers is not None:
            own = [decode(each, config.model) for each in prediction.classifiers.values()]
            columns["classifiers"] = torch.stack(own, -1)
        if self._distance is not None and prediction.embedding is not None:
            columns["distance"] = self._distance(prediction.embedding)
        return columns

    def _flat(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """`_columns` side by side, (B, W); `canvas` comes as (B, C, C, 3)."""
        columns = self._columns({**batch, "canvas": batch["canvas"].permute(0, 3, 1, 2)}, details=False)
        self._shapes = _shapes(columns)
        return _joined(columns)

    def _replayed(
        self, replay: Replay, canvas: NDArray[np.uint8], points: Array, box: Array
    ) -> dict[str, Array]:
        """`_columns` as arrays, by a recorded graph."""
        columns: Columns = {
            "canvas": np.asarray(canvas),
            "points": np.asarray(points, np.float32),
            "box": np.asarray(box, np.float32),
        }
        rows = replay(columns)
        return _split(rows, self._shapes)

    def _ages(self, arrays: dict[str, Array]) -> Ages:
        """The calibrated answers from `_columns`."""
        decoded, posterior = arrays["decoded"], arrays["posterior"]
        measures, distance = arrays.get("measures"), arrays.get("distance")
        answers = self.recalibrated(decoded, posterior, measures, distance)
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
            female=arrays.get("female"),
            neighbours=arrays.get("neighbours"),
            own=arrays.get("own"),
            embedding=arrays.get("embedding"),
            classifiers=arrays.get("classifiers"),
        )

    def _no_ages(self) -> Ages:
        """The answer for an empty batch."""
        none = np.zeros(0, np.float32)
        posterior = np.zeros((0, len(self._bins)), np.float32)
        decoded = np.zeros((0, 3), np.float32)
        over = np.zeros((0, len(LIMITS)), np.float32)
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
        """Quantiles of the calibrated posteriors at `levels` (Q,), in years: (B, Q).

        They do not include the interval's conformal margin.
        """
        years = quantiles(torch.from_numpy(ages.posterior), self._bins.cpu(), torch.tensor(levels)).numpy()
        return (self._calibration.scale * years + self._calibration.shift).astype(np.float32)

    def recalibrated(
        self,
        decoded: NDArray[np.floating[Any]],
        posterior: NDArray[np.floating[Any]],
        measures: NDArray[np.floating[Any]] | None = None,
        distance: NDArray[np.floating[Any]] | None = None,
    ) -> Answers:
        """Applies the card's calibration to columns of `Ages`: `decoded` (B, 3), `posterior` (B,
        K), `measures` (B, M) and `distance` (B,)."""
        line = self._calibration
        share = shares_above(posterior, self._bins.cpu().numpy(), line.scale, line.shift)
        return line.answers(decoded, share, measures, MEASURES, distance)

    def people(
        self, ages: Ages, subject: Sequence[str | None], years: Sequence[float] | None = None
    ) -> list[Person]:
        """One age for each person, from all photos of that person, sorted by subject.

        subject: (B,) the person on each photo, None unknown. years: (B,) how long before the date
        in question each photo was taken; None puts all photos at that date. The model's card has
        the correlation between the errors of two photos of one person.
        """
        correlation = self._calibration.correlation
        return combine_people(subject, ages.age, ages.low, ages.high, years, correlation)

    @property
    def classifier_names(self) -> tuple[str, ...]:
        """The classifiers of a network with several (DHAA). The last one decides. Else empty."""
        return self._network.classifier_names

    @torch.inference_mode()
    def classifiers(self, canvas: NDArray[np.uint8], points: Array, box: Array) -> Array:
        """The age by each classifier, decoded as `decode` says but not calibrated: (B,
        classifiers)."""
        if len(canvas) == 0:
            return np.zeros((0, len(self.classifier_names)), np.float32)
        config = self.bundle.experiment
        batch = self._batch(canvas, points, box)
        posteriors = classifier_posteriors(self._network, batch, config, self._autocast)
        ages = [decode(posteriors[name], config.model) for name in self.classifier_names]
        return torch.stack(ages, -1).cpu().numpy()

    @property
    def has_embedding(self) -> bool:
        """Whether the network has embeddings; `embeddings` needs them."""
        return "embedding" in self._network.outputs

    @torch.inference_mode()
    def embeddings(self, canvas: NDArray[np.uint8], points: Array, box: Array) -> Array:
        """The network's embeddings, (B, D). B must be at least 1."""
        batch = self._batch(canvas, points, box)
        return embeddings(self._forward, batch, self.bundle.experiment, self._autocast).cpu().numpy()

    def _batch(self, canvas: NDArray[np.uint8], points: Array, box: Array) -> dict[str, torch.Tensor]:
        columns: dict[str, Any] = {
            "canvas": canvas if isinstance(canvas, torch.Tensor) else np.ascontiguousarray(canvas),
            "points": points.astype(np.float32),
            "box": box.astype(np.float32),
        }
        return to_tensors(columns, self.device)


def _joined(columns: dict[str, torch.Tensor]) -> torch.Tensor:
    """The tensors, (B,) or (B, columns), side by side as float32: (B, W). They leave the device in
    one transfer, because each transfer waits for it."""
    return torch.cat([tensor.reshape(len(tensor), -1).float() for tensor in columns.values()], -1)


def _shapes(columns: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of a face's part of each tensor."""
    return {name: tuple(tensor.shape[1:]) for name, tensor in columns.items()}


def _split(rows: Array, shapes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    """The arrays, (B,) or (B, columns) each, that lie side by side in `rows` (B, W)."""
    arrays = {}
    first = 0
    for name, shape in shapes.items():
        width = math.prod(shape)
        arrays[name] = np.ascontiguousarray(rows[:, first : first + width]).reshape(len(rows), *shape)
        first += width
    return arrays


def _fast_bf16(device: torch.device) -> bool:
    """Whether bf16 is faster than float32: on tensor cores, and on CPUs with AMX or AVX-512 BF16.

    Other hardware emulates it.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
