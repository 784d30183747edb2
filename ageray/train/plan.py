"""What is decided before training starts: the faces, the steps, the run folder. No Ray."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from ageray import config, storage
from ageray.data import protocols, splits
from ageray.data.labelled_faces import labelled_faces
from ageray.data.labels import gender_number
from ageray.data.row_index import RowIndex
from ageray.data.splits import train_digest
from ageray.errors import UserError
from ageray.experiment import Experiment, FaceSet, Scale, Stage
from ageray.losses.criterion import Criterion
from ageray.models.build import build
from ageray.models.network import AgeNetwork
from ageray.storage.lease import Lease, is_lease
from ageray.train import sampler, teacher, wise_ft
from ageray.train.files import RunFiles

_MIXED, _FEWEST = 0.75, 32
"""Spread of the ages within a shuffle's window over that of all ages, from which they are mixed;
and the fewest faces of a window in which a spread is measured."""


@dataclass(frozen=True)
class Plan:
    """A run that can start.

    parts: faces of each part. steps: of one epoch of each stage. facts: for the bundle's card.
    faces: by stream, `train`, `val`, `stage-0` and so on. sets: those that the run trains on;
    `data.shards` alone is one.
    """

    folder: str
    parts: dict[str, int]
    steps: list[int]
    facts: dict[str, Any]
    faces: dict[str, RowIndex]
    sets: tuple[FaceSet, ...]

    def folders(self, stage: Stage | None = None) -> list[str]:
        """The shards of each set that a stage trains on; without a stage, of all its sets."""
        if stage is not None and stage.shards:
            return [stage.shards]
        return [each.shards for each in self.sets]

    @property
    def files(self) -> RunFiles:
        """The files of the run folder."""
        return RunFiles(self.folder)


def run_folder(experiment: Experiment) -> str:
    """`<runs>/<model>-<data>-<digest of the settings without scale>`, or `<train.name>-<digest>`.

    The same experiment has the same folder and continues there.
    """
    name = experiment.train.name or f"{experiment.model.name}-{experiment.data.name}"
    return storage.join(storage.absolute(experiment.scale.runs), f"{name}-{config.digest(experiment)}")


def make(experiment: Experiment, fresh: bool = False) -> Plan:
    """Checks all that can be checked without a cluster, then writes config.yaml and split.parquet.

    fresh: start a finished or interrupted run anew. Raises UserError for a loss that the model
    cannot feed, missing shards or weights, too few faces, or a run that is finished.
    """
    sets = face_sets(experiment)
    check_train(experiment)
    check_model(experiment)
    tables = [_labels(each) for each in sets]
    _check_keys(sets, tables)
    splits_of_sets = []
    for each, table in zip(sets, tables, strict=True):
        splits_of_sets.append(_split(each, table, len(sets)))
    faces, split = pa.concat_tables(tables), _joined(sets, splits_of_sets)
    parts = split.parts
    streams = _streams(experiment, sets, tables, parts)
    steps = _steps(experiment, streams)
    files = RunFiles(run_folder(experiment))
    if fresh:
        _forget(files)
    elif storage.exists(files.card):
        raise UserError(
            f"{files.folder}: this run is finished; evaluate it with ageray evaluate, "
            "or train it anew with --fresh"
        )
    storage.make_folder(files.folder)
    storage.write_text(files.config, config.dump(experiment))
    splits.save(files.split, parts)
    split.notes.extend(notes(experiment, _training(faces, parts), len(parts["val"])))
    if not experiment.train.shuffle_all:
        names = [each.name for each in sets]
        split.notes.extend(notes_on_order(streams["train"], names, experiment.train.shuffle))
    card = facts(experiment, faces, split) | _facts_of_sets(sets, splits_of_sets)
    return Plan(files.folder, card["faces"], steps, card, streams, sets)


def _training(faces: pa.Table, parts: dict[str, list[str]]) -> pa.Table:
    """The labels of the training faces."""
    return faces.filter(pc.is_in(faces.column("key"), pa.array(parts["train"], pa.string())))


def notes(experiment: Experiment, training: pa.Table, val: int) -> list[str]:
    """What a reader of the figures must know of a training.

    A loss on gender with faces whose gender is not known; no face for validation.
    training: the labels of the training faces. val: the number of validation faces.
    """
    lines = []
    if experiment.loss.gender_contrastive is not None:
        numbers = [gender_number(name) for name in training.column("gender").to_pylist()]
        count = sum(number >= 0 for number in numbers)
        if not count:
            lines.append(
                "loss.gender_contrastive: no training face has a gender, so this term is 0 and trains nothing"
            )
        elif count < len(numbers):
            lines.append(
                f"loss.gender_contrastive: {count:,} of {len(numbers):,} training faces have a gender; "
                "pairs with the others do not count"
            )
    if not val:
        lines.append("no face validates: the last epoch's weights are taken, and ages are not calibrated")
    return lines


def notes_on_order(faces: RowIndex, names: Sequence[str], window: int) -> list[str]:
    """Which sets lie in the shards in an order that a shuffle within `window` faces does not mix.

    A network that sees the young first and the old last unlearns the young, though its loss falls.
    `ageray prepare` writes shards in random order; others may have sorted theirs by name, and with
    it by age. faces: of all sets, in the order of their shards.
    """
    lines = []
    for name, age_N in zip(names, np.split(faces.age, faces.starts[1:]), strict=True):
        if len(age_N) < 2 * _FEWEST:
            continue
        windows = np.array_split(age_N, max(1, len(age_N) // max(window, _FEWEST)))
        spread = float(np.mean([part.var(ddof=1) for part in windows])) ** 0.5
        if spread < _MIXED * float(age_N.std()):
            lines.append(
                f"{name}: its faces lie in an order of ages that train.shuffle={window} does not mix; set "
                "train.shuffle_all=true, or prepare the shards again"
            )
    return lines


def _forget(files: RunFiles) -> None:
    """Removes an earlier run. Raises UserError if the folder has other files, or is in use."""
    names = storage.names_below(files.folder)
    if not names:
        return
    for name in names:
        if not files.is_ours(name):
            raise UserError(f"{files.folder}: has {name}, which ageray train did not write; move it away")
    with Lease(files.folder, "training"):
        storage.remove(files.folder, [name for name in names if not is_lease(name)])


def face_sets(experiment: Experiment) -> tuple[FaceSet, ...]:
    """The sets that a run trains on: `data.sets`, or `data.shards` under `protocol`.

    Raises UserError if there is neither.
    """
    data = experiment.data
    if data.sets:
        return data.sets
    if data.shards is None:
        raise UserError(
            "data.shards is not set; name the folder that ageray prepare wrote, "
            "e.g. data.shards=shards/utkface"
        )
    return (FaceSet(name=data.name, shards=data.shards, protocol=experiment.protocol),)


def _labels(face_set: FaceSet) -> pa.Table:
    """The labelled faces of a set; a label without a deviation of its own takes that of the set."""
    faces = labelled_faces(face_set.shards)
    deviations = pc.fill_null(faces.column("age_std"), face_set.age_std)
    place = faces.column_names.index("age_std")
    return faces.set_column(place, faces.field("age_std"), deviations)


def _check_keys(sets: Sequence[FaceSet], tables: Sequence[pa.Table]) -> None:
    """Raises UserError if a key stands in two sets."""
    owners: dict[str, str] = {}
    for each, table in zip(sets, tables, strict=True):
        for key in table.column("key").to_pylist():
            owner = owners.setdefault(key, each.name)
            if owner != each.name:
                raise UserError(
                    f"data.sets: key '{key}' is in '{owner}' and in '{each.name}'; "
                    "prepare them with a data.name of their own"
                )


def _split(face_set: FaceSet, faces: pa.Table, count: int) -> splits.Split:
    """The split of one of `count` sets. Raises UserError if it leaves no training face."""
    split = protocols.split(faces, face_set.protocol)
    if not split.parts["train"]:
        where = "" if count == 1 else f"data.sets, '{face_set.name}': "
        raise UserError(
            f"{where}protocol.name={face_set.protocol.name}: leaves no face to train on; "
            "set protocol.name=subject_exclusive, say"
        )
    return split


def _joined(sets: Sequence[FaceSet], splits_of_sets: Sequence[splits.Split]) -> splits.Split:
    """The split of all sets together; each note names its set."""
    if len(sets) == 1:
        return splits_of_sets[0]
    parts: dict[str, list[str]] = {name: [] for name in splits.PARTS}
    notes = []
    for each, split in zip(sets, splits_of_sets, strict=True):
        for name in splits.PARTS:
            parts[name] += split.parts[name]
        for note in split.notes:
            notes.append(f"{each.name}: {note}")
    return splits.Split({name: sorted(keys) for name, keys in parts.items()}, notes)


def _facts_of_sets(sets: Sequence[FaceSet], splits_of_sets: Sequence[splits.Split]) -> dict[str, Any]:
    """`sets` for the card: the weight, protocol and faces of each set; empty for a single set."""
    if len(sets) == 1:
        return {}
    rows = []
    for each, split in zip(sets, splits_of_sets, strict=True):
        counts = {name: len(keys) for name, keys in split.parts.items()}
        rows.append(
            {
                "name": each.name,
                "weight": each.weight,
                "protocol": each.protocol.model_dump(),
                "faces": counts,
            }
        )
    return {"sets": rows}


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
            pieces = ""
            if train.accumulate > 1:
                pieces = f" in {train.accumulate} pieces each (train.accumulate)"
            raise UserError(
                f"train.batch_size={train.batch_size}: cannot be cut into equal parts for {count} "
                f"workers{pieces}; choose a multiple of {multiple}, or other scale.workers"
            )
    if experiment.data.sets and train.balance == "counts":
        raise UserError(
            "train.balance=counts: works with data.shards, not with data.sets; set train.balance=resample"
        )
    if train.balance == "counts" and not train.shuffle_all:
        raise UserError(
            "train.balance=counts: the copies of a rare face would stand in one batch; "
            "set train.shuffle_all=true"
        )
    if train.shuffle_all and experiment.align.placement == "actors":
        raise UserError(
            "align.placement=actors: does not go with train.shuffle_all; set align.placement=worker"
        )
    if experiment.data.sets and experiment.align.placement == "actors":
        raise UserError(
            "align.placement=actors: works with data.shards, not with data.sets; set align.placement=worker"
        )
    if train.sizes and experiment.align.placement == "actors":
        raise UserError(
            "align.placement=actors: aligns at one size, not at train.sizes; set align.placement=worker"
        )
    for name, term in experiment.loss:
        if train.accumulate > 1 and getattr(term, "reduction", "mean") == "sum":
            raise UserError(
                f"train.accumulate={train.accumulate}: loss.{name}.reduction=sum adds up a whole batch; "
                "set it to mean, or accumulate 1"
            )


def check_model(experiment: Experiment) -> AgeNetwork:
    """The network at its start.

    Raises UserError for missing weights, a loss that it cannot feed, a teacher that does not fit,
    or faces too small for it.
    """
    wise_ft.check(experiment)
    network = build(experiment.model, seed=experiment.train.seed)
    Criterion(experiment.loss, network.outputs, experiment.model.name)
    teacher.load(experiment, torch.device("cpu"))
    sizes = {"align.size": experiment.align.size}
    for place, view in enumerate(experiment.model.decode.views):
        if view.size:
            sizes[f"model.decode.views.{place}.size"] = view.size
    for place, size in enumerate(experiment.train.sizes):
        sizes[f"train.sizes.{place}"] = size
    for key, size in sizes.items():
        if size < network.least_side:
            raise UserError(
                f"{key}={size}: model '{experiment.model.name}' needs faces of at least "
                f"{network.least_side} pixels; raise it, or choose another backbone"
            )
    return network


def _streams(
    experiment: Experiment, sets: Sequence[FaceSet], tables: Sequence[pa.Table], parts: dict[str, list[str]]
) -> dict[str, RowIndex]:
    """The faces of every stream in the order of the sets and of their shards."""
    streams = {}
    shards = ", ".join(each.shards for each in sets)
    for name in ("train", "val"):
        keys = pa.array(parts[name], pa.string())
        chosen = [table.filter(pc.is_in(table.column("key"), keys)) for table in tables]
        streams[name] = _row_index(chosen, shards)
    for index, stage in enumerate(experiment.train.stages):
        if stage.shards is None:
            streams[f"stage-{index}"] = streams["train"]
        elif experiment.train.teacher is not None and experiment.train.teacher_faces == "aligned":
            raise UserError(
                f"train.stages.{index}.shards={stage.shards}: the teacher of train.teacher_faces=aligned "
                "sees the faces of data alone; set train.teacher_faces=augmented, or leave these shards out"
            )
        else:
            streams[f"stage-{index}"] = _row_index([labelled_faces(stage.shards)], stage.shards)
    return streams


def _row_index(tables: Sequence[pa.Table], shards: str) -> RowIndex:
    """The faces of one table a set."""
    faces = pa.concat_tables(tables)
    ages = cast(list[float], faces.column("age").to_pylist())
    age_std = pc.fill_null(faces.column("age_std"), 0.0).to_numpy().astype(np.float32)
    starts = np.cumsum([0, *(table.num_rows for table in tables)])[:-1].tolist()
    deviations = None
    if age_std.any():
        deviations = age_std
    index = RowIndex.of(faces.column("key").to_pylist(), ages, deviations, tuple(starts))
    if len(np.unique(index.key_hash)) < len(index):
        raise UserError(f"{shards}: a key is there twice; keys must be unique, so prepare the shards again")
    return index


def _steps(experiment: Experiment, streams: dict[str, RowIndex]) -> list[int]:
    steps = []
    for index, stage in enumerate(experiment.train.stages):
        faces = len(streams[f"stage-{index}"])
        if stage.shards is None and experiment.data.sets:
            sizes = np.diff([*streams["train"].starts, faces])
            faces = int(np.rint(sizes @ [each.weight for each in experiment.data.sets]))
        elif experiment.train.balance == "counts":
            config, age = experiment.train, streams[f"stage-{index}"].age
            faces = sampler.epoch_faces(age, config.balance_count, config.thinned_ages)
        if faces < experiment.train.batch_size:
            shards = stage.shards or experiment.data.shards or "data.sets"
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
