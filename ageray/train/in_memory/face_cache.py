"""Faces that several trainings read: decoded once, into the object store.

If the backbone is frozen, its features are computed once too and take the place of the pixels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray

from ageray import config
from ageray.data.row_index import RowIndex
from ageray.data.splits import train_digest
from ageray.data.stream import canvases, face_rows
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
    """Decodes faces of `data.shards` into the object store.

    labelled: the labels of these faces, see `ageray.data.labelled_faces`; no other face is decoded.
    Raises UserError if the faces do not fit, or none can be used.
    """
    shards, side, count = str(experiment.data.shards), canvas_side(experiment.align), labelled.num_rows
    room = store_room(experiment, count)
    if not room.fits:
        raise UserError(
            f"data.shards={shards}: {room.text}; raise scale.object_store_mib, or lower align.size"
        )
    canvas = np.empty((count, side, side, 3), np.uint8)
    parts: dict[str, list[Any]] = {name: [] for name in ("points", "box", *_LABELS)}
    row, errors = dict[str, int](), dict[str, str]()
    keys = labelled.column("key").to_pylist()
    lookup = RowIndex.of(keys, [0.0] * count).lookup()
    stream = canvases(face_rows(shards), experiment.align, experiment.scale.decode_batch, lookup=lookup)
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


class FaceCaches:
    """The faces that several experiments on one set share, and the features of frozen backbones.

    At most one set of faces stays in memory. Threads may call it.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._identity: str | None = None
        self._faces: FaceCache | None = None
        self._features: dict[str, Any] = {}

    def faces(self, experiment: Experiment, labelled: pa.Table) -> FaceCache:
        """`cache_faces` of these faces, which may be those of an earlier call."""
        align = experiment.align.model_dump(mode="json", exclude={"placement", "standardize"})
        keys = train_digest(labelled.column("key").to_pylist())
        identity = json.dumps([str(experiment.data.shards), align, keys])
        with self._lock:
            if self._faces is None or identity != self._identity:
                self._faces, self._features = None, {}
                self._faces = cache_faces(experiment, labelled)
                self._identity = identity
            return replace(self._faces)

    def features(
        self, experiment: Experiment, network: AgeNetwork, faces: FaceCache, slots: TaskSlots
    ) -> bool:
        """`cache_features`; equal backbones with equal weights compute them once for all calls."""
        if not frozen.applies(experiment, network):
            return False
        identity = json.dumps(
            [
                self._identity,
                repr(network.get_backbone()),
                experiment.model.weights,
                experiment.train.precision,
                experiment.train.seed if experiment.model.weights == "none" else None,
                experiment.align.standardize,
            ]
        )
        with self._lock:
            if identity not in self._features:
                cache_features(experiment, network, faces, slots)
                self._features[identity] = faces.columns
            faces.columns = self._features[identity]
        return True


def cache_features(experiment: Experiment, network: AgeNetwork, faces: FaceCache, slots: TaskSlots) -> bool:
    """Replaces pixels by features if the experiment's backbone is frozen; returns whether it did.

    network: the experiment's, with or without trained weights.
    """
    if not frozen.applies(experiment, network):
        return False
    task, count = slots.task(_features), len(faces.row)
    located = config.with_absolute_paths(experiment)
    pieces = []
    for first in range(0, count, _FEATURES_PER_TASK):
        last = min(first + _FEATURES_PER_TASK, count)
        pieces.append(task.remote(located, faces.columns, first, last, slots.threads))
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


class StoreRoom(NamedTuple):
    """Faces, the bytes of their pixels, and the bytes that the object store has for them."""

    faces: int
    size: int
    bytes: int
    room: int

    @property
    def fits(self) -> bool:
        """Whether they can be held in memory."""
        return self.bytes <= self.room

    @property
    def text(self) -> str:
        """For the terminal and for messages."""
        relation = "of" if self.fits else "more than"
        return (
            f"{self.faces:,} faces at align.size={self.size} take {self.bytes / 2**20:,.0f} MiB, {relation} "
            f"the {self.room / 2**20:,.0f} MiB that the object store has for them"
        )


def store_room(experiment: Experiment, faces: int) -> StoreRoom:
    """Whether so many faces fit into the object store of one machine."""
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    store = ray.cluster_resources().get("object_store_memory", 0)  # type: ignore[no-untyped-call]
    side = canvas_side(experiment.align)
    room = int(_MAX_STORE_SHARE * store / max(1, len(nodes)))
    return StoreRoom(faces, experiment.align.size, faces * side * side * 3, room)
