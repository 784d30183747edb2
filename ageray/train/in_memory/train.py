"""One training on faces in memory, in plain torch: trains on some faces, predicts others.

It is the training of `ageray.train.run` with two differences. The order of an epoch is a
permutation of all training faces (there a face moves within a window). And weights stay float32 (a
bundle rounds matrices to float16, which moves an age by about 0.01 years).

Shape letters: N faces in memory, T test faces, Q quantiles, C classifiers.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ageray import calibration
from ageray.calibration import TAILS, Calibration
from ageray.experiment import Experiment
from ageray.faces.canvases import to_tensors
from ageray.models.decode import decode, quantiles
from ageray.models.gallery import Gallery
from ageray.models.inference import predict
from ageray.train import epochs, sampler, teacher, wise_ft
from ageray.train.in_memory import frozen
from ageray.train.loop import init_network, train_one_epoch
from ageray.train.state import Columns, State, new_state
from ageray.train.validation import build_gallery, validate

Rows = NDArray[np.int64]
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Fold:
    """Row numbers of the faces that train, choose the best epoch (`val`) and are tested.

    name: the person left out, or a number.
    """

    name: str
    train: Rows
    val: Rows
    test: Rows


@dataclass(frozen=True)
class Result:
    """What a model predicts for T test faces, in the order of `Fold.test`, in years.

    `predicted`, `low`, `high` (T,) are calibrated; `quantiles` (T, Q) are without the interval's
    margin; `plain` (T,) are the decoded ages before calibration. `besides`: of a model with a
    gallery `neighbours`, `own` and, if the gallery knows genders, `female` (T,); of a model with
    several classifiers `classifiers` (T, C), the age of each, not calibrated. `log` has a record
    per epoch.
    """

    predicted: Array
    low: Array
    high: Array
    quantiles: Array
    besides: dict[str, Array]
    calibration: Calibration
    log: list[dict[str, Any]]
    plain: Array


def run(
    experiment: Experiment, faces: Columns, fold: Fold, device: torch.device, levels: Sequence[float]
) -> Result:
    """Trains, chooses the best epoch, calibrates and predicts, from `train.seed` alone.

    faces: columns `canvas`, `points`, `box`, `age`, `gender`, `subject` of N faces, or `features`
    (N, 2, D) instead of the first three (see `frozen`). Without validation faces the last epoch
    counts, uncalibrated; with fewer than 30 nothing is calibrated either. levels: of the quantiles.
    Raises FloatingPointError if a loss, an embedding or an age is not finite.
    """
    state = begin(experiment, faces, device)
    for _ in epochs_of(state, faces, fold):
        pass
    return predict_fold(state, faces, fold, levels)


def begin(experiment: Experiment, faces: Columns, device: torch.device) -> State:
    """A training at its start; the network has no backbone if `faces` are precomputed features."""
    assert not any(stage.shards for stage in experiment.train.stages)
    state = new_state(experiment, device)
    if "features" in faces:
        frozen.detach_backbone(state.network)
        if state.ema_network is not None:
            frozen.detach_backbone(state.ema_network)
    return state


def epochs_of(state: State, faces: Columns, fold: Fold) -> Iterator[dict[str, Any]]:
    """Trains one epoch for each record asked for.

    After the last one `state.eval_network` has the weights of the best epoch.
    """
    size, settings = state.config.train.batch_size, state.config.model.decode
    assert len(fold.train) >= size
    best: dict[str, torch.Tensor] = {}
    taught = _taught(state, faces, fold.train)
    for _ in epochs.remaining(state, [_steps(state, faces, fold)] * len(state.config.train.stages)):
        started = time.perf_counter()
        if state.step == 0:
            init_network(state, _shuffled(state, taught, fold.train))
        result = train_one_epoch(state, _shuffled(state, taught, fold.train))
        gallery = None
        if len(fold.val):
            gallery = _gallery(state, faces, fold.train, settings.gallery.validation_faces)
        validated = validate(state, _batches(faces, fold.val, size), gallery)
        record = epochs.close(state, result, validated, time.perf_counter() - started)
        if record["best"]:
            best = copy.deepcopy(state.eval_network.state_dict())
        yield record
    state.eval_network.load_state_dict(best)
    if state.config.train.wise_ft and len(fold.val):
        start = _start_weights(state, faces)
        wise_ft.choose(state, start, lambda: validate(state, _batches(faces, fold.val, size)))


def _taught(state: State, faces: Columns, rows: Rows) -> Columns:
    """The faces; with `train.teacher_faces: aligned` also `teacher` (N, K), its posteriors of these
    rows."""
    if state.config.train.teacher_faces != "aligned":
        return faces
    found = teacher.load(state.config, state.device)
    if found is None:
        return faces
    count = len(faces["age"])
    numbered = faces | {"row": np.arange(count), "error": np.full(count, "")}
    batches = _batches(numbered, rows, state.config.train.batch_size)
    return faces | {"teacher": teacher.posteriors(found, batches, count, state.device)}


def _steps(state: State, faces: Columns, fold: Fold) -> int:
    """The steps of a whole epoch."""
    config, count = state.config.train, len(fold.train)
    if config.balance == "counts":
        age = np.asarray(faces["age"][fold.train], np.float32)
        count = sampler.epoch_faces(age, config.balance_count, config.thinned_ages)
    return count // config.batch_size


def _start_weights(state: State, faces: Columns) -> dict[str, torch.Tensor]:
    """The weights that the training started from; without those of a detached backbone."""
    start = wise_ft.start_weights(state.config)
    if "features" not in faces:
        return start
    return {name: start[name] for name in state.eval_network.state_dict()}


def predict_fold(state: State, faces: Columns, fold: Fold, levels: Sequence[float]) -> Result:
    """The trained network's predictions of the test faces, calibrated on the validation faces."""
    gallery = full_gallery(state, faces, fold)
    fitted = _calibrate(state, faces, fold.val, gallery)
    predictions = _predict(state, faces, fold.test, gallery, levels)
    decoded, low, high = predictions.pop("decoded").T
    plain = decoded.astype(np.float32)
    age, low, high = (ages.astype(np.float32) for ages in fitted.apply(decoded, low, high))
    quantiles_TQ = (fitted.scale * predictions.pop("quantiles") + fitted.shift).astype(np.float32)
    return Result(age, low, high, quantiles_TQ, predictions, fitted, state.log, plain)


def full_gallery(state: State, faces: Columns, fold: Fold) -> Gallery | None:
    """The trained model's gallery, of all training faces; None for a model that needs none."""
    return _gallery(state, faces, fold.train)


def _shuffled(state: State, faces: Columns, rows: Rows) -> Iterator[Columns]:
    """The rows in this epoch's order, in full batches, as many as the epoch has steps."""
    config = state.config.train
    generator = np.random.default_rng((config.seed, state.epoch))
    if config.balance == "counts":
        age = np.asarray(faces["age"][rows], np.float32)
        rows = rows[sampler.counted(age, config.balance_count, config.thinned_ages, generator)]
    order = generator.permutation(rows)
    size = config.batch_size
    steps = min(len(order) // size, state.epoch_steps or len(order))
    return _batches(faces, order[: steps * size], size)


def _batches(faces: Columns, rows: Rows, size: int) -> Iterator[Columns]:
    for first in range(0, len(rows), size):
        batch = rows[first : first + size]
        yield {name: values[batch] for name, values in faces.items()}


def _gallery(state: State, faces: Columns, rows: Rows, most: int | None = None) -> Gallery | None:
    if state.config.model.decode.method != "gallery":
        return None
    return build_gallery(state, _batches(faces, rows, state.config.train.batch_size), most)


def _calibrate(state: State, faces: Columns, rows: Rows, gallery: Gallery | None) -> Calibration:
    if not state.config.train.calibrate or not len(rows):
        return Calibration()
    decoded, low, high = _predict(state, faces, rows, gallery, ())["decoded"].T
    return calibration.fit(np.asarray(faces["age"][rows], np.float32), decoded, low, high)


@torch.inference_mode()
def _predict(
    state: State, faces: Columns, rows: Rows, gallery: Gallery | None, levels: Sequence[float]
) -> dict[str, Array]:
    """Before calibration: `decoded` (T, 3), age and the interval's quantiles; `quantiles` (T, Q) at
    the levels; and the arrays of `Result.besides`."""
    level_Q = torch.tensor([*TAILS, *levels], device=state.device)
    parts: dict[str, list[Array]] = {}
    for columns in _batches(faces, rows, state.config.scale.faces_a_batch(state.device.type == "cuda")):
        batch = to_tensors(columns, state.device)
        for name, tensor in _predict_batch(state, batch, gallery, level_Q).items():
            parts.setdefault(name, []).append(tensor.float().cpu().numpy())
    whole = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    if not np.isfinite(whole["decoded"]).all():
        raise FloatingPointError(
            f"step {state.step}: predicted ages are not finite; lower the learning rate, or set train.clip"
        )
    return whole


def _predict_batch(
    state: State, batch: dict[str, Tensor], gallery: Gallery | None, level_Q: Tensor
) -> dict[str, Tensor]:
    """The tensors of `_predict` for the faces of a batch."""
    network, config = state.eval_network.eval(), state.config
    bf16 = config.train.precision == "bf16"
    prediction = predict(network, batch, config, bf16, gallery, details=bool(network.classifier_names))
    quantiles_BQ = quantiles(prediction.posterior, state.bins, level_Q)
    age_B = decode(prediction.posterior, config.model)
    tensors = {
        "decoded": torch.cat([age_B[:, None], quantiles_BQ[:, :2]], -1),
        "quantiles": quantiles_BQ[:, 2:],
    }
    for name in ("female", "neighbours", "own"):
        tensor = getattr(prediction, name)
        if tensor is not None:
            tensors[name] = tensor
    if prediction.classifiers is not None:
        ages = [decode(each, config.model) for each in prediction.classifiers.values()]
        tensors["classifiers"] = torch.stack(ages, -1)
    return tensors
