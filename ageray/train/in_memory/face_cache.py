"""Faces that several trainings read: decoded once, into the object store.

If the backbone is frozen, its features are computed once too and take the place of the pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from ageray.data.stream import face_stream
from ageray.errors import UserError
from ageray.experiment import Experiment
from ageray.faces.canvases import canvas_side
from ageray.models.build import build
from ageray.models.network import AgeNetwork
from ageray.train.in_memory import frozen
from ageray.train.in_memory.slots import TaskSlots, on_device

_MAX_STORE_SHARE = 0.6  # of the object store for faces: decoding needs some of it too
_FEATURES_PER_TASK = 512
_PIXELS = ("canvas", "points", "box")
_LABELS = ("age", "gender", "subject")


@dataclass
class FaceCache:
    """Usable faces, numbered in the order of the shards.

    columns: a reference to the columns in the object store. row: the number of each key. errors:
    the reason for each key that cannot be used.
    """

    columns: Any
    row: dict[str, int]
    errors: dict[str, str]

    def rows(self, parts: dict[str, list[str]]) -> dict[str, Any]:
        """The numbers of each part's usable faces, ascending: (N,) int64."""
        numbers = {}
        for name, keys in parts.items():
            usable = []
            for key in keys:
                if key in self.row:
                    usable.append(self.row[key])
            numbers[name] = np.array(sorted(usable), np.int64)
        return numbers

    def column(self, name: str, rows: Any) -> Any:
        """The values of these rows."""
        return ray.get(self.columns)[name][rows]

    def keys(self, rows: Any) -> list[str]:
        """The keys of these rows."""
        names = list(self.row)  # numbered in this order
        return [names[row] for row in rows]


def cache_faces(experiment: Experiment, labelled: pa.Table) -> FaceCache:
    """Decodes all labelled faces of `data.shards` into the object store.

    labelled: see `ageray.data.labelled_faces`. Raises UserError if the faces do not fit, or none
    can be used.
    """
    shards, side, count = str(experiment.data.shards), canvas_side(experiment.align), labelled.num_rows
    _check_room(shards, count, side, experiment.align.size)
    canvas = np.empty((count, side, side, 3), np.uint8)
    parts: dict[str, list[Any]] = {name: [] for name in ("points", "box", *_LABELS)}
    row, errors = dict[str, int](), dict[str, str]()
    stream = face_stream(shards, experiment.align, experiment.scale.decode_batch)
    for batch in stream.iter_batches(batch_size=None, batch_format="numpy"):
        usable = batch["error"] == ""
        errors |= zip(batch["key"][~usable].tolist(), batch["error"][~usable].tolist(), strict=True)
        first = len(row)
        for key in batch["key"][usable].tolist():
            row[key] = len(row)
        canvas[first : len(row)] = batch["canvas"][usable]
        for name, arrays in parts.items():
            arrays.append(batch[name][usable])
    if not row:
        key, reason = next(iter(errors.items()))
        raise UserError(
            f"data.shards={shards}: no face can be used; the first of {len(errors)}: {key}: {reason}"
        )
    columns = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    return FaceCache(ray.put({"canvas": canvas[: len(row)], **columns}), row, errors)


def cache_features(experiment: Experiment, network: AgeNetwork, faces: FaceCache, slots: TaskSlots) -> bool:
    """Replaces pixels by features if the experiment's backbone is frozen; returns whether it did.

    network: the experiment's, with or without trained weights.
    """
    if not frozen.applies(experiment, network):
        return False
    task, count = slots.task(_features), len(faces.row)
    pieces = []
    for first in range(0, count, _FEATURES_PER_TASK):
        last = min(first + _FEATURES_PER_TASK, count)
        pieces.append(task.remote(experiment, faces.columns, first, last, slots.threads))
    columns = dict(ray.get(faces.columns))
    for name in _PIXELS:
        del columns[name]
    columns["features"] = np.concatenate(ray.get(pieces))
    faces.columns = ray.put(columns)
    return True


def _features(experiment: Experiment, faces: dict[str, Any], first: int, last: int, threads: int) -> Any:
    """A Ray task: the frozen backbone's features of the faces `first` to `last`."""
    with on_device(threads) as device:
        backbone = frozen.detach_backbone(build(experiment.model, seed=experiment.train.seed))
        part = {name: values[first:last] for name, values in faces.items()}
        return frozen.features(backbone, part, experiment, device)


def _check_room(shards: str, faces: int, side: int, size: int) -> None:
    size_bytes = faces * side * side * 3
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    store = ray.cluster_resources().get("object_store_memory", 0)  # type: ignore[no-untyped-call]
    store /= max(1, len(nodes))
    if size_bytes > _MAX_STORE_SHARE * store:
        raise UserError(
            f"data.shards={shards}: {faces:,} faces at align.size={size} take {size_bytes / 2**20:,.0f} MiB, "
            f"more than {_MAX_STORE_SHARE:.0%} of the object store's {store / 2**20:,.0f} MiB; "
            "raise scale.object_store_mib, or lower align.size"
        )
