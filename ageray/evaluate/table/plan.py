"""What a table will run, and for how long by the speed measured on this machine.

Takes planned cells and their sets; trains nothing but a few steps on random pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from ageray.config.paper_table import CellPlan, TablePlan
from ageray.data import protocols
from ageray.data.labelled_faces import labelled_faces
from ageray.experiment import Experiment
from ageray.faces.canvases import canvas_side, to_tensors
from ageray.models.inference import posterior
from ageray.train import epochs, sampler
from ageray.train.loop import train_one_epoch
from ageray.train.plan import check_model, check_train
from ageray.train.state import new_state

_MEASURED_FACES = 8  # of a step; the speed of a face hardly depends on it
_TEST_PASSES = 2  # of a face: the last epoch's validation is about as long as the test


class Cost(NamedTuple):
    """Faces that train, over all epochs, folds and repeats; faces tested; trainings."""

    trained: int
    tested: int
    trainings: int


class Estimate(NamedTuple):
    """A cell's parts, cost and seconds.

    cell: its name. parts: training, validation and test faces of the first fold. epochs, steps: of
    one training, over its stages. seconds: of one device; None where nothing was measured. shared:
    the cell that this one shares its trainings with, '' if none.
    """

    cell: str
    parts: dict[str, int]
    folds: int
    epochs: int
    steps: int
    cost: Cost
    seconds: float | None
    shared: str


class Speed(NamedTuple):
    """Seconds a face in training and in the test."""

    training: float
    test: float


def estimate(plan: TablePlan, show: Callable[[dict[str, Any]], None], measure: bool = True) -> list[Estimate]:
    """The estimate of every cell that can run. Checks settings, shards, splits, models and losses.

    show: receives a note where a speed is measured. Raises UserError as a training would.
    """
    tables: dict[str, pa.Table] = {}
    speeds: dict[str, Speed] = {}
    estimates: list[Estimate] = []
    first_of: dict[str, str] = {}
    checked = set[str]()
    for cell in plan.runnable:
        shared = first_of.setdefault(cell.identity, cell.name)
        estimates.append(_estimate(cell, "" if shared == cell.name else shared, tables, checked))
        speed = None
        if measure:
            speed = _speed(cell.experiments[0], speeds, show)
        if speed is not None and not estimates[-1].shared:
            cost = estimates[-1].cost
            seconds = cost.trained * speed.training + _TEST_PASSES * cost.tested * speed.test
            estimates[-1] = estimates[-1]._replace(seconds=seconds)
    return estimates


def _check_model(experiment: Experiment, checked: set[str]) -> None:
    """`check_model` without a download of weights, once for equal networks and losses."""
    key = repr([getattr(experiment, name).model_dump(mode="json") for name in ("model", "loss", "align")])
    if key not in checked:
        checked.add(key)
        model = experiment.model
        if model.weights == "imagenet":
            model = model.model_copy(update={"weights": "none"})
        check_model(experiment.model_copy(update={"model": model}))


def _estimate(cell: CellPlan, shared: str, tables: dict[str, pa.Table], checked: set[str]) -> Estimate:
    first = cell.experiments[0]
    check_train(first)
    _check_model(first, checked)
    faces = _labels(str(first.data.shards), tables)
    trained = tested = trainings = folds = 0
    parts: dict[str, int] = {}
    lengths: list[epochs.Length] = []
    for experiment in cell.experiments:
        numbered = [experiment.protocol]
        if cell.tested is None:
            numbered = protocols.folds(faces, experiment.protocol.model_copy(update={"fold": 0}))
        folds = len(numbered)
        for protocol in numbered:
            split = protocols.split(faces, protocol)
            counts = {name: len(keys) for name, keys in split.parts.items()}
            parts = parts or counts
            lengths = _lengths(experiment, counts["train"], faces, split.parts["train"], tables)
            own = [
                length
                for length, stage in zip(lengths, experiment.train.stages, strict=True)
                if not stage.shards
            ]
            trained += sum(length.steps for length in own) * experiment.train.batch_size
            tested += counts["test"] + counts["val"]
            trainings += 1
    for length, stage in zip(lengths, first.train.stages, strict=True):
        if stage.shards:  # once for all folds and repeats
            trained += length.steps * first.train.batch_size
    if cell.tested is not None:
        test_faces = _labels(str(cell.tested.data.shards), tables)
        parts = {**parts, "test": len(protocols.split(test_faces, cell.tested.protocol).parts["test"])}
        tested += parts["test"]
    return Estimate(
        cell.name,
        parts,
        folds * len(cell.experiments),
        sum(length.epochs for length in lengths),
        sum(length.steps for length in lengths),
        Cost(trained, tested, trainings),
        None,
        shared,
    )


def _lengths(
    experiment: Experiment, count: int, faces: pa.Table, train: list[str], tables: dict[str, pa.Table]
) -> list[epochs.Length]:
    """The length of each stage."""
    settings, lengths = experiment.train, []
    for stage in settings.stages:
        ages, number = None, count
        if stage.shards:
            ages = _labels(stage.shards, tables).column("age").to_numpy()
            number = len(ages)
        if settings.balance == "counts":
            if ages is None:
                chosen = set(train)
                rows = zip(faces.column("key").to_pylist(), faces.column("age").to_pylist(), strict=True)
                ages = np.array([age for key, age in rows if key in chosen])
            number = sampler.epoch_faces(
                np.asarray(ages, np.float32), settings.balance_count, settings.thinned_ages
            )
        lengths.append(epochs.length(stage, max(1, number // settings.batch_size)))
    return lengths


def _labels(shards: str, tables: dict[str, pa.Table]) -> pa.Table:
    if shards not in tables:
        tables[shards] = labelled_faces(shards)
    return tables[shards]


def _speed(experiment: Experiment, speeds: dict[str, Speed], show: Callable[[dict[str, Any]], None]) -> Speed:
    """The speed of a network with its loss at its size, measured once for equal ones."""
    sections = ("model", "loss", "align")
    key = repr([getattr(experiment, name).model_dump(mode="json") for name in sections])
    if key not in speeds:
        speeds[key] = measure(experiment)
        rate = 1 / speeds[key].training
        text = f"{experiment.model.name} at {experiment.align.size} pixels trains {rate:.3g} faces a second"
        show({"kind": "note", "text": text})
    return speeds[key]


def measure(experiment: Experiment) -> Speed:
    """Seconds of a face in a training step and in a test, on the device that would be used.

    The second of two steps of a few random faces counts. The network starts from random weights,
    which cost the same.
    """
    on_gpu = torch.cuda.is_available() and experiment.scale.gpu is not False
    device = torch.device("cuda" if on_gpu else "cpu")
    count = min(experiment.train.batch_size, 64 if on_gpu else _MEASURED_FACES)
    stage = experiment.train.stages[-1]
    # a rate at which random pixels move nothing
    body_lr = 0.0 if stage.optimizer.body_lr == 0 else None
    optimizer = stage.optimizer.model_copy(update={"lr": 1e-9, "body_lr": body_lr})
    stage = stage.model_copy(update={"optimizer": optimizer})
    settings = experiment.model_copy(
        update={
            "model": experiment.model.model_copy(update={"weights": "none"}),
            "train": experiment.train.model_copy(
                update={
                    "batch_size": count,
                    "accumulate": 1,
                    "compile": False,
                    "teacher": None,
                    "stages": (stage,),
                }
            ),
            "loss": experiment.loss.model_copy(update={"distillation": None}),
        }
    )
    before = torch.get_num_threads()
    if experiment.scale.threads and not on_gpu:
        torch.set_num_threads(experiment.scale.threads)
    try:
        return _measured(settings, count, device)
    finally:
        torch.set_num_threads(before)


def _measured(settings: Experiment, count: int, device: torch.device) -> Speed:
    state = new_state(settings, device)
    generator = np.random.default_rng(0)
    side = canvas_side(settings.align)
    size = settings.align.size
    middle = np.array([[0.3, 0.35], [0.7, 0.35], [0.5, 0.55], [0.35, 0.75], [0.65, 0.75]], np.float32)
    batch = {
        "canvas": generator.integers(0, 255, (count, side, side, 3), np.uint8),
        "points": np.tile(middle * size + (side - size) / 2, (count, 1, 1)),
        "box": np.tile(np.array([0, 0, size, size], np.float32) + (side - size) / 2, (count, 1)),
        "age": generator.integers(*settings.model.ages, count).astype(np.float32),
        "gender": generator.integers(0, 2, count),
        "subject": np.arange(1, count + 1),
        "row": np.arange(count),
    }
    if state.network.num_init_faces:
        features = torch.randn(max(64, count), _features(state.network))
        state.network.init_from_features(features.to(device), state.generator)
    state.start_stage(0, 4)
    train_one_epoch(state, [batch])
    training = _seconds(lambda: train_one_epoch(state, [batch]), device) / count
    if settings.model.decode.method == "gallery":
        return Speed(training, training / 3)  # a forward pass and the search
    inputs = to_tensors({name: batch[name] for name in ("canvas", "points", "box")}, device)
    network, bf16 = state.eval_network.eval(), settings.train.precision == "bf16"
    with torch.inference_mode():
        test = _seconds(lambda: posterior(network, inputs, settings, bf16), device)
    return Speed(training, test / count)


def _features(network: Any) -> int:
    return int(network.get_backbone().features)


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
