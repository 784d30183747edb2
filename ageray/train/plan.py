"""What is decided before training starts: which faces, how many steps, where the run lives. No Ray."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ageray import bundle, config, storage
from ageray.data import protocols, splits
from ageray.data.labelled_faces import labelled_faces
from ageray.data.row_index import RowIndex
from ageray.data.splits import train_digest
from ageray.errors import UserError
from ageray.experiment import Experiment, FaceSet, Stage
from ageray.losses.criterion import Criterion
from ageray.models.build import build
from ageray.models.network import AgeNetwork
from ageray.train import wise_ft

CONFIG, SPLIT, LOG, BEST, STATE = "config.yaml", "split.parquet", "log.jsonl", "best.safetensors", "state.pt"
CURVES, EVENTS, TRACE = "curves.png", "tensorboard/events.out.tfevents.0", "trace.json"


@dataclass(frozen=True)
class Plan:
    """A run that can start: its folder, how many faces each part has, the steps of an epoch of each stage, facts for the card, and the faces by
    stream: `stage-0` and so on, `train`, `val`. `sets` are the sets that the run trains on, `data.shards` alone being one."""

    folder: str
    parts: dict[str, int]
    steps: list[int]
    facts: dict[str, Any]
    faces: dict[str, RowIndex]
    sets: tuple[FaceSet, ...]

    def folders(self, stage: Stage | None = None) -> list[str]:
        """Where the shards of each set are that a stage trains on, or that validate."""
        return [stage.shards] if stage is not None and stage.shards else [each.shards for each in self.sets]


def run_folder(experiment: Experiment) -> str:
    """`<runs>/<model>-<data>-<hash of everything but the machine>`: the same experiment has the same folder and continues there."""
    name = f"{experiment.model.name}-{experiment.data.name}-{config.digest(experiment)}"
    return storage.join(storage.absolute(experiment.scale.runs), name)


def make(experiment: Experiment, fresh: bool = False) -> Plan:
    """Checks everything that can be checked before a cluster is touched, then writes config.yaml and split.parquet into the run folder.

    Raises UserError for a loss that the model cannot feed, missing shards or weights, too few faces, or a run that is finished already
    (`fresh` starts it anew).
    """
    sets = face_sets(experiment)
    check_train(experiment)
    check_model(experiment)
    tables, splits_of_sets = _dealt(sets)
    faces, split = pa.concat_tables(tables), _joined(sets, splits_of_sets)
    parts = split.parts
    listed = _listed(experiment, sets, tables, parts)
    steps = _steps(experiment, listed)
    folder = run_folder(experiment)
    if fresh:
        storage.remove_tree(folder)
    elif storage.exists(storage.join(folder, bundle.IN_RUN, bundle.CARD)):
        raise UserError(
            f"{folder}: this run is finished; evaluate it with jobs.evaluate, or train it anew with --fresh"
        )
    storage.make_folder(folder)
    storage.write_text(storage.join(folder, CONFIG), config.dump(experiment))
    splits.save(storage.join(folder, SPLIT), parts)
    return Plan(
        folder,
        {name: len(keys) for name, keys in parts.items()},
        steps,
        facts(experiment, faces, split) | _facts_of_sets(sets, splits_of_sets),
        listed,
        sets,
    )


def face_sets(experiment: Experiment) -> tuple[FaceSet, ...]:
    """The sets that a run trains on: `data.sets`, or `data.shards` under `protocol`. Raises UserError if there is neither."""
    data = experiment.data
    if data.sets:
        return data.sets
    if data.shards is None:
        raise UserError(
            "data.shards is not set; name the folder that jobs.prepare wrote, e.g. data.shards=shards/utkface"
        )
    return (FaceSet(name=data.name, shards=data.shards, protocol=experiment.protocol),)


def _dealt(sets: Sequence[FaceSet]) -> tuple[list[pa.Table], list[splits.Split]]:
    """The labelled faces of each set and their split. A label without a deviation of its own has that of its set.

    Raises UserError if a set leaves no training face, or a key stands in two sets.
    """
    tables, found = [], []
    for each in sets:
        faces = labelled_faces(each.shards)
        split = protocols.split(faces, each.protocol)
        if not split.parts["train"]:
            where = "" if len(sets) == 1 else f"data.sets, '{each.name}': "
            raise UserError(
                f"{where}protocol.name={each.protocol.name}: leaves no face to train on; set protocol.name=subject_exclusive, say"
            )
        place = faces.column_names.index("age_std")
        stds = pc.fill_null(faces.column("age_std"), each.age_std)
        tables.append(faces.set_column(place, faces.field("age_std"), stds))
        found.append(split)
    owner: dict[str, str] = {}
    for each, table in zip(sets, tables, strict=True):
        for key in table.column("key").to_pylist():
            if owner.setdefault(key, each.name) != each.name:
                raise UserError(
                    f"data.sets: key '{key}' is in '{owner[key]}' and in '{each.name}'; prepare them with a data.name of their own"
                )
    return tables, found


def _joined(sets: Sequence[FaceSet], found: Sequence[splits.Split]) -> splits.Split:
    """The split of all sets together; a note says of which set it is."""
    if len(sets) == 1:
        return found[0]
    parts: dict[str, list[str]] = {name: [] for name in splits.PARTS}
    notes = []
    for each, split in zip(sets, found, strict=True):
        for name in splits.PARTS:
            parts[name] += split.parts[name]
        notes += [f"{each.name}: {note}" for note in split.notes]
    return splits.Split({name: sorted(keys) for name, keys in parts.items()}, notes)


def _facts_of_sets(sets: Sequence[FaceSet], found: Sequence[splits.Split]) -> dict[str, Any]:
    """For the card of a run on several sets: each set's weight, protocol and faces; else nothing."""
    if len(sets) == 1:
        return {}
    rows = [
        {
            "name": each.name,
            "weight": each.weight,
            "protocol": each.protocol.model_dump(),
            "faces": {name: len(keys) for name, keys in split.parts.items()},
        }
        for each, split in zip(sets, found, strict=True)
    ]
    return {"sets": rows}


def check_train(experiment: Experiment) -> None:
    """Raises UserError where a batch cannot be cut into equal parts for the workers, or these into equal pieces, or a term cannot be weighed."""
    train, workers = experiment.train, experiment.scale.workers
    least, most = workers if isinstance(workers, tuple) else (workers, workers)
    if least > most:
        raise UserError(f"scale.workers=[{least}, {most}]: give the least number first")
    for count in range(least, most + 1):
        if train.batch_size % (count * train.accumulate):
            pieces = f" in {train.accumulate} pieces each (train.accumulate)" if train.accumulate > 1 else ""
            raise UserError(
                f"train.batch_size={train.batch_size}: cannot be cut into equal parts for {count} workers{pieces}; choose a multiple of "
                f"{math.lcm(*(number * train.accumulate for number in range(least, most + 1)))}, or other scale.workers"
            )
    if experiment.data.sets and experiment.align.placement == "actors":
        raise UserError(
            "align.placement=actors: works with data.shards, not with data.sets; set align.placement=worker"
        )
    sums = [name for name, term in experiment.loss if getattr(term, "reduction", "mean") == "sum"]
    if train.accumulate > 1 and sums:
        raise UserError(
            f"train.accumulate={train.accumulate}: loss.{sums[0]}.reduction=sum adds up a whole batch; set it to mean, or accumulate 1"
        )


def check_model(experiment: Experiment) -> AgeNetwork:
    """The network at its start. Raises UserError for missing weights, a loss that it cannot feed, or faces that are too small for it."""
    wise_ft.check(experiment)
    network = build(experiment.model, seed=experiment.train.seed)
    Criterion(experiment.loss, network.outputs, experiment.model.name)
    for view in experiment.model.decode.views:
        size, key = (
            view.size or experiment.align.size,
            "model.decode.views.size" if view.size else "align.size",
        )
        if size < network.least_side:
            raise UserError(
                f"{key}={size}: model '{experiment.model.name}' needs faces of at least {network.least_side} "
                "pixels; raise it, or choose another backbone"
            )
    return network


def _listed(
    experiment: Experiment, sets: Sequence[FaceSet], tables: Sequence[pa.Table], parts: dict[str, list[str]]
) -> dict[str, RowIndex]:
    """The faces of every stream in the order of the sets and of their shards."""
    listed = {}
    for name in ("train", "val"):
        keys = pa.array(parts[name], pa.string())
        chosen = [table.filter(pc.is_in(table.column("key"), keys)) for table in tables]
        listed[name] = _listing(chosen, ", ".join(each.shards for each in sets))
    for index, stage in enumerate(experiment.train.stages):
        listed[f"stage-{index}"] = (
            listed["train"]
            if stage.shards is None
            else _listing([labelled_faces(stage.shards)], stage.shards)
        )
    return listed


def _listing(tables: Sequence[pa.Table], shards: str) -> RowIndex:
    """The faces of one table a set."""
    faces = pa.concat_tables(tables)
    ends = np.cumsum([0, *(table.num_rows for table in tables)])
    age_std = pc.fill_null(faces.column("age_std"), 0.0).to_numpy().astype(np.float32)
    listed = RowIndex.of(
        faces.column("key").to_pylist(),
        cast(list[float], faces.column("age").to_pylist()),
        age_std if age_std.any() else None,
        tuple(int(end) for end in ends[:-1]),
    )
    if len(np.unique(listed.mark)) < len(listed):
        raise UserError(f"{shards}: a key is there twice; keys must be unique, so prepare the shards again")
    return listed


def _steps(experiment: Experiment, listed: dict[str, RowIndex]) -> list[int]:
    steps = []
    for index, stage in enumerate(experiment.train.stages):
        faces = len(listed[f"stage-{index}"])
        if stage.shards is None and experiment.data.sets:
            ends = [*listed["train"].starts, faces]
            sizes = np.diff(ends) * [each.weight for each in experiment.data.sets]
            faces = int(np.rint(sizes.sum()))
        if faces < experiment.train.batch_size:
            where = stage.shards or experiment.data.shards or "data.sets"
            raise UserError(
                f"train.batch_size={experiment.train.batch_size}: {where} has only {faces} training faces; lower it or add faces"
            )
        steps.append(faces // experiment.train.batch_size)
    return steps


def facts(experiment: Experiment, faces: pa.Table, split: splits.Split) -> dict[str, Any]:
    """What a bundle's card says of the faces that it was trained on."""
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
    """JSON lines; what is not a number is null."""
    return "".join(
        json.dumps({name: _finite(value) for name, value in record.items()}) + "\n" for record in records
    )


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
