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

from ageray.config.experiments import digest
from ageray.config.paper_table import CellPlan, TablePlan
from ageray.data import protocols
from ageray.data.labelled_faces import labelled_faces
from ageray.evaluate import pretraining
from ageray.experiment import Experiment
from ageray.faces.canvases import canvas_side, to_tensors
from ageray.models.inference import posterior
from ageray.train import epochs, sampler
from ageray.train.in_memory import frozen
from ageray.train.loop import train_one_epoch
from ageray.train.plan import check_model, check_train
from ageray.train.state import State, new_state

_MEASURED_FACES = 8  # of a step; the speed of a face hardly depends on it
_TEST_PASSES = 2  # of a face: the last epoch's validation is about as long as the test


class Cost(NamedTuple):
    """What a cell adds to the work of the cells before it.

    trained: faces that train, over all epochs, folds and repeats; pretrained: those among them that
    train before the folds, on a set of their own. tested: faces tested. trainings: that it starts.
    read: faces of its set, whose features a frozen backbone computes once.
    """

    trained: int
    tested: int
    trainings: int
    pretrained: int = 0
    read: int = 0


class Estimate(NamedTuple):
    """A cell's parts, cost and seconds.

    cell: its name. parts: training, validation and test faces of the first fold. folds: of all
    repeats. epochs, steps: of one training, over its stages. cost: without the trainings and stages
    of earlier cells that this one takes over. seconds: of one device; None where nothing was
    measured. shared: the cell that has the same trainings and tests, '' if none. leading: the share
    of the seconds before the folds begin.
    """

    cell: str
    parts: dict[str, int]
    folds: int
    epochs: int
    steps: int
    cost: Cost
    seconds: float | None
    shared: str
    leading: float = 0.0


class Speed(NamedTuple):
    """Seconds a face in training and in the test; of a frozen backbone, those of the head, and
    `features`: the seconds for the features of a face and of its mirror image."""

    training: float
    test: float
    features: float = 0.0

    def seconds(self, cost: Cost, read: bool) -> float:
        """Of a cell. read: whether its features are still to be computed."""
        features = self.features * cost.read if read else 0.0
        return cost.trained * self.training + _TEST_PASSES * cost.tested * self.test + features


def estimate(plan: TablePlan, show: Callable[[dict[str, Any]], None], measure: bool = True) -> list[Estimate]:
    """The estimate of every cell that can run. Checks settings, shards, splits, models and losses.

    show: receives a note where a speed is measured. Raises UserError as a training would.
    """
    tables: dict[str, pa.Table] = {}
    speeds: dict[str, Speed] = {}
    estimates: list[Estimate] = []
    first_of: dict[str, str] = {}
    checked, trained, read = set[str](), set[str](), set[str]()
    for cell in plan.runnable:
        first = first_of.setdefault(cell.identity, cell.name)
        if first != cell.name:
            [same] = [each for each in estimates if each.cell == first]
            nothing = same._replace(cell=cell.name, shared=first, cost=Cost(0, 0, 0))
            estimates.append(nothing._replace(seconds=0.0 if measure else None))
            continue
        estimate = _estimate(cell, tables, checked, trained)
        if measure:
            speed = _speed(cell.experiments[0], speeds, show)
            features = _features_key(cell.experiments[0])
            seconds = speed.seconds(estimate.cost, features not in read)
            leading = estimate.cost.pretrained * speed.training / max(seconds, 1e-9)
            estimate = estimate._replace(seconds=seconds, leading=leading)
            read.add(features)
        estimates.append(estimate)
    return estimates


def _features_key(experiment: Experiment) -> str:
    """Equal for experiments that share the features of a frozen backbone."""
    model, align = experiment.model, experiment.align.model_dump(mode="json")
    settings = [getattr(model, "backbone", model.name), model.weights, experiment.train.precision]
    return repr([experiment.data.shards, align, *settings])


def _check_model(experiment: Experiment, checked: set[str]) -> None:
    """`check_model` without a download of weights, once for equal networks and losses."""
    key = repr([getattr(experiment, name).model_dump(mode="json") for name in ("model", "loss", "align")])
    if key not in checked:
        checked.add(key)
        model = experiment.model
        if model.weights == "imagenet":
            model = model.model_copy(update={"weights": "none"})
        check_model(experiment.model_copy(update={"model": model}))


def _estimate(cell: CellPlan, tables: dict[str, pa.Table], checked: set[str], trained: set[str]) -> Estimate:
    """trained: digests of the runs and stages of earlier cells, to which this one's are added."""
    first = cell.experiments[0]
    check_train(first)
    _check_model(first, checked)
    faces = _labels(str(first.data.shards), tables)
    folds, tested, read = 0, 0, set[str]()
    parts: dict[str, int] = {}
    whole = Cost(0, 0, 0)
    lengths: list[epochs.Length] = []
    for experiment in cell.experiments:
        numbered = [experiment.protocol]
        if cell.tested is None:
            numbered = protocols.folds(faces, experiment.protocol.model_copy(update={"fold": 0}))
        folds += len(numbered)
        for protocol in numbered:
            split = protocols.split(faces, protocol)
            counts = {name: len(keys) for name, keys in split.parts.items()}
            for keys in split.parts.values():
                read.update(keys)
            parts = parts or counts
            lengths = _lengths(experiment, counts["train"], faces, split.parts["train"], tables)
            whole = _added(whole, experiment, lengths)
            tested += counts["test"] + counts["val"]
        whole = _with_stages(whole, cell, experiment, lengths, trained)
    if cell.tested is not None:
        test_faces = _labels(str(cell.tested.data.shards), tables)
        parts = {**parts, "test": len(protocols.split(test_faces, cell.tested.protocol).parts["test"])}
        run = digest(first)
        if run in trained:  # a row's training is tested on several sets
            whole, tested = Cost(0, 0, 0), 0
        trained.add(run)
        tested += parts["test"]
    return Estimate(
        cell=cell.name,
        parts=parts,
        folds=folds,
        epochs=sum(length.epochs for length in lengths),
        steps=sum(length.steps for length in lengths),
        cost=whole._replace(tested=tested, read=len(read)),
        seconds=None,
        shared="",
    )


def _added(cost: Cost, experiment: Experiment, lengths: list[epochs.Length]) -> Cost:
    """The cost with one more fold: its stages on the fold's own faces."""
    steps = 0
    for length, stage in zip(lengths, experiment.train.stages, strict=True):
        if not stage.shards:
            steps += length.steps
    trained = cost.trained + steps * experiment.train.batch_size
    return cost._replace(trained=trained, trainings=cost.trainings + 1)


def _with_stages(
    cost: Cost, cell: CellPlan, experiment: Experiment, lengths: list[epochs.Length], trained: set[str]
) -> Cost:
    """The cost with the stages on sets of their own, which all folds share, and other cells too."""
    for length, stage in zip(lengths, experiment.train.stages, strict=True):
        if not stage.shards:
            continue
        if cell.tested is None:  # else it is a stage of the one run
            run = digest(pretraining.stage_run(experiment, stage))
            if run in trained:
                continue
            trained.add(run)
        count = length.steps * experiment.train.batch_size
        cost = cost._replace(trained=cost.trained + count, pretrained=cost.pretrained + count)
    return cost


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
    sections = [getattr(experiment, name).model_dump(mode="json") for name in ("model", "loss", "align")]
    train = experiment.train
    rates = [stage.optimizer.body_lr for stage in train.stages]
    key = repr([sections, rates, train.precision, train.augment])
    if key not in speeds:
        speed = speeds[key] = measure(experiment)
        rate = 1 / speed.training
        text = f"{experiment.model.name} at {experiment.align.size} pixels trains {rate:.3g} faces a second"
        if speed.features:
            text += f" on the features of its frozen backbone, {1 / speed.features:.3g} of them a second"
        show({"kind": "note", "text": text})
    return speeds[key]


def measure(experiment: Experiment) -> Speed:
    """Seconds of a face in a training step and in a test, on the device that would be used.

    The second of two steps of a few random faces counts. The network starts from random weights,
    which cost the same. If the backbone is frozen, a step is one of whole batches of features.
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
        return _measured(experiment, settings, count, device)
    finally:
        torch.set_num_threads(before)


def _measured(experiment: Experiment, settings: Experiment, count: int, device: torch.device) -> Speed:
    """settings: those of the measured steps of `count` faces."""
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
        random = torch.randn(max(64, count), _features(state.network))
        state.network.init_from_features(random.to(device), state.generator)
    features = 0.0
    if frozen.applies(experiment, state.network):
        count = experiment.train.batch_size
        batch, features = _without_pixels(state, batch, count)
    state.start_stage(0, 4)
    train_one_epoch(state, [batch])
    training = _seconds(lambda: train_one_epoch(state, [batch]), device) / count
    if settings.model.decode.method == "gallery":
        return Speed(training, training / 3, features)  # a forward pass and the search
    names = [name for name in ("features", "canvas", "points", "box") if name in batch]
    inputs = to_tensors({name: batch[name] for name in names}, device)
    network, bf16 = state.eval_network.eval(), settings.train.precision == "bf16"
    with torch.inference_mode():
        test = _seconds(lambda: posterior(network, inputs, settings, bf16), device)
    return Speed(training, test / count, features)


def _without_pixels(state: State, batch: dict[str, Any], count: int) -> tuple[dict[str, Any], float]:
    """`count` faces by their features, with the labels of the batch's faces in turn; the seconds
    that the features of one face take. Detaches the frozen backbone."""
    backbone = frozen.detach_backbone(state.network)
    if state.ema_network is not None:
        frozen.detach_backbone(state.ema_network)

    def compute() -> Any:
        return frozen.features(backbone, batch, state.config, state.device)

    features = compute()
    seconds = _seconds(compute, state.device) / len(features)
    rows = np.arange(count) % len(features)
    labels = {name: batch[name][rows] for name in ("age", "gender", "subject", "row")}
    return {**labels, "features": features[rows]}, seconds


def _features(network: Any) -> int:
    return int(network.get_backbone().features)


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
