"""One fold of a protocol, in plain torch: a model trained on some of the faces in memory, and what it says of the others.

The training is that of `ageray.train.run` but for two things: an epoch's order is a permutation of all training faces (there, draws from a
shuffle buffer over a stream), and weights keep their float32 (a bundle rounds matrices to float16, which moves an age by about 0.01 years).
Shape letters: N faces in memory, T faces tested, Q quantiles.
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

from ageray import calibration
from ageray.calibration import TAILS, Calibration
from ageray.experiment import Experiment
from ageray.faces.canvases import to_tensors
from ageray.models.decode import decode, quantiles
from ageray.models.gallery import Gallery
from ageray.models.inference import classifier_posteriors, predict
from ageray.train import epochs, wise_ft
from ageray.train.in_memory import frozen
from ageray.train.loop import start, train_one_epoch
from ageray.train.state import Columns, State, new_state
from ageray.train.validation import build_gallery, validate

Rows = NDArray[np.int64]
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Fold:
    """Which of the faces in memory train, select the epoch and are tested: row numbers. `name` is the person left out, or a number."""

    name: str
    train: Rows
    val: Rows
    test: Rows


@dataclass(frozen=True)
class Result:
    """What a fold's model says of its T test faces, in the order of `Fold.test`: calibrated `predicted`, `low`, `high` (T,) in years and
    `quantiles` (T, Q) without the interval's margin; `besides`, of a model with a gallery: `neighbours`, `own` and, where the gallery knows
    genders, `female` (T,); of one with C classifiers: `classifiers` (T, C), the age that each says, not calibrated. `log` has a record an epoch."""

    predicted: Array
    low: Array
    high: Array
    quantiles: Array
    besides: dict[str, Array]
    calibration: Calibration
    log: list[dict[str, Any]]


def run(
    experiment: Experiment, faces: Columns, fold: Fold, device: torch.device, levels: Sequence[float]
) -> Result:
    """Trains, chooses the best epoch, calibrates and predicts: the same result whenever and beside whatever else it runs.

    faces: the columns `canvas`, `points`, `box`, `age`, `gender`, `subject` of N faces, or `features` (N, 2, D) in the place of the first three
    (see `frozen`). Every fold starts from `train.seed`. Without validation faces the last epoch counts, uncalibrated; with fewer than 30
    of them nothing is calibrated either. levels: of the quantiles. Raises FloatingPointError when a loss, an embedding or an age is not
    finite.
    """
    state = begin(experiment, faces, device)
    for _ in epochs_of(state, faces, fold):
        pass
    return answers(state, faces, fold, levels)


def begin(experiment: Experiment, faces: Columns, device: torch.device) -> State:
    """A training at its start; its network has no body where `faces` are remembered features."""
    assert not any(stage.shards for stage in experiment.train.stages)
    state = new_state(experiment, device)
    if "features" in faces:
        for network in (state.network, state.average):
            if network is not None:
                frozen.detach_backbone(network)
    return state


def epochs_of(state: State, faces: Columns, fold: Fold) -> Iterator[dict[str, Any]]:
    """Trains an epoch for each record that is asked for; after the last the judged network has the best epoch's weights."""
    size, settings = state.config.train.batch_size, state.config.model.decode
    assert len(fold.train) >= size
    best: dict[str, torch.Tensor] = {}
    for _ in epochs.remaining(state, [len(fold.train) // size] * len(state.config.train.stages)):
        started = time.perf_counter()
        if state.step == 0:
            start(state, _shuffled(state, faces, fold.train))
        result = train_one_epoch(state, _shuffled(state, faces, fold.train))
        near = (
            _gallery(state, faces, fold.train, settings.gallery.validation_faces) if len(fold.val) else None
        )
        validated = validate(state, _batches(faces, fold.val, size), near)
        record = epochs.close(state, result, validated, time.perf_counter() - started)
        if record["best"]:
            best = copy.deepcopy(state.judged.state_dict())
        yield record
    state.judged.load_state_dict(best)
    if state.config.train.wise_ft and len(fold.val):
        wise_ft.choose(
            state, _start_weights(state, faces), lambda: validate(state, _batches(faces, fold.val, size))
        )


def _start_weights(state: State, faces: Columns) -> dict[str, torch.Tensor]:
    """The weights that `begin` started from, without those of a backbone that it took away."""
    start = wise_ft.start_weights(state.config)
    return {name: start[name] for name in state.judged.state_dict()} if "features" in faces else start


def answers(state: State, faces: Columns, fold: Fold, levels: Sequence[float]) -> Result:
    """What a trained network says of the fold's test faces, calibrated on its validation faces."""
    gallery = full_gallery(state, faces, fold)
    fitted = _calibrate(state, faces, fold.val, gallery)
    said = _predict(state, faces, fold.test, gallery, levels)
    decoded, low, high = said.pop("decoded").T
    age, low, high = (ages.astype(np.float32) for ages in fitted.apply(decoded, low, high))
    spread = (fitted.scale * said.pop("quantiles") + fitted.shift).astype(np.float32)
    return Result(age, low, high, spread, said, fitted, state.log)


def full_gallery(state: State, faces: Columns, fold: Fold) -> Gallery | None:
    """The finished model's gallery, of all training faces; None for a model that needs none."""
    return _gallery(state, faces, fold.train)


def _shuffled(state: State, faces: Columns, rows: Rows) -> Iterator[Columns]:
    """The rows in this epoch's order, in full batches."""
    size = state.config.train.batch_size
    order = np.random.default_rng((state.config.train.seed, state.epoch)).permutation(rows)
    return _batches(faces, order[: len(order) // size * size], size)


def _batches(faces: Columns, rows: Rows, size: int) -> Iterator[Columns]:
    for first in range(0, len(rows), size):
        chosen = rows[first : first + size]
        yield {name: values[chosen] for name, values in faces.items()}


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
    """Before calibration: `decoded` (T, 3), age and the interval's quantiles, `quantiles` (T, Q) at the levels, and `Result.besides`."""
    network, config = state.judged.eval(), state.config
    autocast = config.train.precision == "bf16"
    wanted = torch.tensor([*TAILS, *levels], device=state.device)
    parts: dict[str, list[Array]] = {}
    for columns in _batches(faces, rows, config.scale.faces_a_batch(state.device.type == "cuda")):
        batch = to_tensors(columns, state.device)
        said = predict(network, batch, config, autocast, gallery)
        places = quantiles(said.posterior, state.bins, wanted)
        found = {
            "decoded": torch.cat([decode(said.posterior, config.model)[:, None], places[:, :2]], -1),
            "quantiles": places[:, 2:],
        }
        found |= {
            name: tensor
            for name in ("female", "neighbours", "own")
            if (tensor := getattr(said, name)) is not None
        }
        if network.classifier_names:
            each = classifier_posteriors(network, batch, config, autocast)
            found["classifiers"] = torch.stack(
                [decode(each[name], config.model) for name in network.classifier_names], -1
            )
        for name, tensor in found.items():
            parts.setdefault(name, []).append(tensor.float().cpu().numpy())
    whole = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    if not np.isfinite(whole["decoded"]).all():
        raise FloatingPointError(
            f"step {state.step}: predicted ages are not finite; lower the learning rate, or set train.clip"
        )
    return whole
