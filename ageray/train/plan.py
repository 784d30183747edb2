"""What is decided before training starts: the faces, the steps, the run folder. No Ray."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ageray import config, storage
from ageray.data import protocols, splits
from ageray.data.labelled_faces import labelled_faces
from ageray.data.row_index import RowIndex
from ageray.data.splits import train_digest
from ageray.errors import UserError
from ageray.experiment import Experiment, Scale
from ageray.losses.criterion import Criterion
from ageray.models.build import build
from ageray.models.network import AgeNetwork
from ageray.train.files import RunFiles


@dataclass(frozen=True)
class Plan:
    """A run that can start.

    parts: faces of each part. steps: of one epoch of each stage. facts: for the bundle's card.
    faces: by stream, `train`, `val`, `stage-0` and so on.
    """

    folder: str
    parts: dict[str, int]
    steps: list[int]
    facts: dict[str, Any]
    faces: dict[str, RowIndex]

    @property
    def files(self) -> RunFiles:
        """The files of the run folder."""
        return RunFiles(self.folder)


def run_folder(experiment: Experiment) -> str:
    """`<runs>/<model>-<data>-<digest of the settings without scale>`.

    The same experiment has the same folder and continues there.
    """
    name = f"{experiment.model.name}-{experiment.data.name}-{config.digest(experiment)}"
    return storage.join(storage.absolute(experiment.scale.runs), name)


def make(experiment: Experiment, fresh: bool = False) -> Plan:
    """Checks all that can be checked without a cluster, then writes config.yaml and split.parquet.

    fresh: start a finished or interrupted run anew. Raises UserError for a loss that the model
    cannot feed, missing shards or weights, too few faces, or a run that is finished.
    """
    if experiment.data.shards is None:
        raise UserError(
            "data.shards is not set; name the folder that jobs.prepare wrote, e.g. data.shards=shards/utkface"
        )
    check_train(experiment)
    check_model(experiment)
    faces = labelled_faces(experiment.data.shards)
    split = protocols.split(faces, experiment.protocol)
    parts = split.parts
    if not parts["train"]:
        name = experiment.protocol.name
        raise UserError(
            f"protocol.name={name}: leaves no face to train on; set protocol.name=subject_exclusive, say"
        )
    streams = _streams(experiment, faces, parts)
    steps = _steps(experiment, streams)
    files = RunFiles(run_folder(experiment))
    if fresh:
        storage.remove_tree(files.folder)
    elif storage.exists(files.card):
        raise UserError(
            f"{files.folder}: this run is finished; evaluate it with jobs.evaluate, "
            "or train it anew with --fresh"
        )
    storage.make_folder(files.folder)
    storage.write_text(files.config, config.dump(experiment))
    splits.save(files.split, parts)
    card = facts(experiment, faces, split)
    return Plan(files.folder, card["faces"], steps, card, streams)


def worker_range(scale: Scale) -> tuple[int, int]:
    """The least and the greatest number of workers that `scale.workers` allows."""
    return scale.workers if isinstance(scale.workers, tuple) else (scale.workers, scale.workers)


def check_train(experiment: Experiment) -> None:
    """Raises UserError if a batch cannot be cut into equal parts and pieces.

    A part goes to each worker (`scale.workers`), a piece is a part cut further
    (`train.accumulate`). A term that sums over a batch cannot be cut into pieces.
    """
    train = experiment.train
    least, most = worker_range(experiment.scale)
    if least > most:
        raise UserError(f"scale.workers=[{least}, {most}]: give the least number first")
    multiple = math.lcm(*(number * train.accumulate for number in range(least, most + 1)))
    for count in range(least, most + 1):
        if train.batch_size % (count * train.accumulate):
            pieces = f" in {train.accumulate} pieces each (train.accumulate)" if train.accumulate > 1 else ""
            raise UserError(
                f"train.batch_size={train.batch_size}: cannot be cut into equal parts for {count} "
                f"workers{pieces}; choose a multiple of {multiple}, or other scale.workers"
            )
    for name, term in experiment.loss:
        if train.accumulate > 1 and getattr(term, "reduction", "mean") == "sum":
            raise UserError(
                f"train.accumulate={train.accumulate}: loss.{name}.reduction=sum adds up a whole batch; "
                "set it to mean, or accumulate 1"
            )


def check_model(experiment: Experiment) -> AgeNetwork:
    """The network at its start.

    Raises UserError for missing weights, a loss that it cannot feed, or faces too small for it.
    """
    network = build(experiment.model, seed=experiment.train.seed)
    Criterion(experiment.loss, network.outputs, experiment.model.name)
    if experiment.align.size < network.least_side:
        raise UserError(
            f"align.size={experiment.align.size}: model '{experiment.model.name}' needs faces of at least "
            f"{network.least_side} pixels; raise it, or choose another backbone"
        )
    return network


def _streams(experiment: Experiment, faces: pa.Table, parts: dict[str, list[str]]) -> dict[str, RowIndex]:
    """The faces of every stream in the order of the shards."""
    streams = {}
    for name in ("train", "val"):
        keys = pa.array(parts[name], pa.string())
        streams[name] = _row_index(faces.filter(pc.is_in(faces.column("key"), keys)))
    for index, stage in enumerate(experiment.train.stages):
        if stage.shards is None:
            streams[f"stage-{index}"] = streams["train"]
        else:
            streams[f"stage-{index}"] = _row_index(labelled_faces(stage.shards), stage.shards)
    return streams


def _row_index(faces: pa.Table, shards: str = "") -> RowIndex:
    ages = cast(list[float], faces.column("age").to_pylist())
    index = RowIndex.of(faces.column("key").to_pylist(), ages)
    if len(np.unique(index.key_hash)) < len(index):
        raise UserError(f"{shards}: a key is there twice; keys must be unique, so prepare the shards again")
    return index


def _steps(experiment: Experiment, streams: dict[str, RowIndex]) -> list[int]:
    steps = []
    for index, stage in enumerate(experiment.train.stages):
        faces = len(streams[f"stage-{index}"])
        if faces < experiment.train.batch_size:
            shards = stage.shards or experiment.data.shards
            raise UserError(
                f"train.batch_size={experiment.train.batch_size}: {shards} has only {faces} training faces; "
                "lower it or add faces"
            )
        steps.append(faces // experiment.train.batch_size)
    return steps


def facts(experiment: Experiment, faces: pa.Table, split: splits.Split) -> dict[str, Any]:
    """What a bundle's card reports on the faces that the model was trained on."""
    parts = split.parts
    ages = dict(zip(faces.column("key").to_pylist(), faces.column("age").to_pylist(), strict=True))
    training = np.array([ages[key] for key in parts["train"]])
    first, last = experiment.model.ages
    return {
        "data": experiment.data.name,
        "protocol": experiment.protocol.model_dump(),
        "notes": split.notes,
        "faces": {name: len(keys) for name, keys in parts.items()},
        "train_digest": train_digest(parts["train"]),
        "train_ages": {
            "median": float(np.median(training)),
            "min": float(training.min()),
            "max": float(training.max()),
        },
        "outside_bins": int(((training < first) | (training > last)).sum()),
    }


def to_lines(records: list[dict[str, Any]]) -> str:
    """JSON lines; a number that is not finite becomes null."""
    lines = []
    for record in records:
        finite = dict(record)
        for name, value in record.items():
            if isinstance(value, float) and not math.isfinite(value):
                finite[name] = None
        lines.append(json.dumps(finite) + "\n")
    return "".join(lines)
