"""Faces that several trainings read: decoded once, into the object store.

If the backbone is frozen, its features are computed once too and take the place of the pixels.
Where the pixels do not fit, they are decoded piece by piece, and the features alone stay.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from threading import Event, Lock
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
from ageray.models.network import AgeNetwork, Backbone
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
    faces = _Collected(shards)
    for first, batch in faces.usable(experiment, labelled):
        canvas[first : first + len(batch["key"])] = batch["canvas"]
    columns = {"canvas": canvas[: len(faces.row)], **faces.columns(("points", "box", *_LABELS))}
    return FaceCache(ray.put(columns), faces.row, faces.errors)


def stream_features(
    experiment: Experiment, labelled: pa.Table, network: AgeNetwork, slots: TaskSlots
) -> FaceCache:
    """The features of a frozen backbone, for faces whose pixels do not fit into the object store.

    At any time only some pieces of 512 faces are in memory as pixels; each goes through the
    backbone once. The columns are those of `cache_faces` and `cache_features`, in the same order.
    `frozen.applies` must hold. Raises UserError if no face can be used.
    """
    backbone = network.get_backbone()
    assert isinstance(backbone, Backbone)
    features = np.empty((labelled.num_rows, 2, backbone.features), np.float32)
    faces, task = _Collected(str(experiment.data.shards)), slots.task(_features_of)
    located = config.with_absolute_paths(experiment)
    running: dict[Any, int] = {}

    def store(most: int) -> None:
        """Stores finished pieces until at most `most` are running."""
        while len(running) > most:
            [ready], _ = ray.wait(list(running), num_returns=1)
            part = ray.get(ready)
            first = running.pop(ready)
            features[first : first + len(part)] = part

    for first, batch in faces.usable(experiment, labelled, _FEATURES_PER_TASK):
        pixels = {name: batch[name] for name in _PIXELS}
        running[task.remote(located, pixels, slots.threads)] = first
        store(slots.folds + 1)
    store(0)
    columns = {**faces.columns(_LABELS), "features": features[: len(faces.row)]}
    return FaceCache(ray.put(columns), faces.row, faces.errors)


class _Collected:
    """The usable faces of a shard folder as they are decoded; `row` and `errors` as in
    `FaceCache`."""

    def __init__(self, shards: str) -> None:
        self.row, self.errors = dict[str, int](), dict[str, str]()
        self._shards = shards
        self._parts: dict[str, list[Any]] = {name: [] for name in ("points", "box", *_LABELS)}

    def usable(
        self, experiment: Experiment, labelled: pa.Table, size: int | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Decodes the labelled faces; yields the usable ones of each batch, and the number of the
        first.

        size: faces of a batch; None takes batches as they were decoded. Raises UserError at the end
        if no face was usable.
        """
        keys = labelled.column("key").to_pylist()
        lookup = RowIndex.of(keys, [0.0] * len(keys)).lookup()
        rows = face_rows(self._shards)
        stream = canvases(rows, experiment.align, experiment.scale.decode_batch, lookup=lookup)
        for batch in stream.iter_batches(batch_size=size, batch_format="numpy"):
            usable = batch["error"] == ""
            bad = batch["key"][~usable].tolist(), batch["error"][~usable].tolist()
            self.errors |= zip(*bad, strict=True)
            batch = {name: values[usable] for name, values in batch.items()}
            first = len(self.row)
            for key in batch["key"].tolist():
                self.row[key] = len(self.row)
            for name, arrays in self._parts.items():
                arrays.append(batch[name])
            if usable.any():
                yield first, batch
        if not self.row:
            key, reason = next(iter(self.errors.items()))
            raise UserError(
                f"data.shards={self._shards}: no face can be used; the first of {len(self.errors)}: "
                f"{key}: {reason}"
            )

    def columns(self, names: tuple[str, ...]) -> dict[str, Any]:
        """These columns of all usable faces."""
        return {name: np.concatenate(self._parts[name]) for name in names}


class FaceCaches:
    """The faces that several experiments on one set share, and the features of frozen backbones.

    At most one set of faces stays in memory. Threads may call it.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._identity: str | None = None
        self._faces: FaceCache | None = None
        self._features: dict[str, Any] = {}
        self._streamed: dict[str, FaceCache] = {}
        self.closed = Event()
        """Set by `close`."""

    def close(self) -> None:
        """Ends the trainings on these faces, also those of other threads."""
        self.closed.set()

    def faces(self, experiment: Experiment, labelled: pa.Table) -> FaceCache:
        """`cache_faces` of these faces, which may be those of an earlier call."""
        with self._lock:
            self._keep(_faces_identity(experiment, labelled))
            if self._faces is None:
                self._faces = cache_faces(experiment, labelled)
            return replace(self._faces)

    def features(
        self, experiment: Experiment, network: AgeNetwork, faces: FaceCache, slots: TaskSlots
    ) -> bool:
        """`cache_features`; equal backbones with equal weights compute them once for all calls."""
        if not frozen.applies(experiment, network):
            return False
        identity = _backbone_identity(experiment, network)
        with self._lock:
            if identity not in self._features:
                cache_features(experiment, network, faces, slots)
                self._features[identity] = faces.columns
            faces.columns = self._features[identity]
        return True

    def streamed_features(
        self, experiment: Experiment, labelled: pa.Table, network: AgeNetwork, slots: TaskSlots
    ) -> FaceCache:
        """`stream_features`; equal backbones with equal weights compute them once for all calls."""
        identity = _backbone_identity(experiment, network)
        with self._lock:
            self._keep(_faces_identity(experiment, labelled))
            if identity not in self._streamed:
                self._streamed = {}  # the features of one backbone may fill the object store
                self._streamed[identity] = stream_features(experiment, labelled, network, slots)
            return replace(self._streamed[identity])

    def _keep(self, identity: str) -> None:
        """Drops what it has, if that belongs to other faces."""
        if identity != self._identity:
            self._faces, self._features, self._streamed = None, {}, {}
            self._identity = identity


def _faces_identity(experiment: Experiment, labelled: pa.Table) -> str:
    """Equal for faces that are decoded alike."""
    align = experiment.align.model_dump(mode="json", exclude={"placement", "standardize"})
    keys = train_digest(labelled.column("key").to_pylist())
    return json.dumps([str(experiment.data.shards), align, keys])


def _backbone_identity(experiment: Experiment, network: AgeNetwork) -> str:
    """Equal for frozen backbones that give a face the same features."""
    return json.dumps(
        [
            repr(network.get_backbone()),
            experiment.model.weights,
            experiment.train.precision,
            experiment.train.seed if experiment.model.weights == "none" else None,
            experiment.align.standardize,
        ]
    )


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
    return _features_of(experiment, {name: values[first:last] for name, values in faces.items()}, threads)


def _features_of(experiment: Experiment, faces: dict[str, Any], threads: int) -> Any:
    """A Ray task: the frozen backbone's features of all these faces, (N, 2, D)."""
    with on_device(threads) as device:
        backbone = frozen.detach_backbone(build(experiment.model, seed=experiment.train.seed))
        return frozen.features(backbone, faces, experiment, device)


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

    def features_bytes(self, experiment: Experiment, network: AgeNetwork) -> int | None:
        """The bytes of the features in place of the pixels; None if the backbone is not frozen, or
        they do not fit either."""
        backbone = network.get_backbone()
        if not frozen.applies(experiment, network) or not isinstance(backbone, Backbone):
            return None
        count = self.faces * 2 * backbone.features * np.float32().itemsize
        return count if count <= self.room else None


def store_room(experiment: Experiment, faces: int) -> StoreRoom:
    """Whether so many faces fit into the object store of one machine."""
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    store = ray.cluster_resources().get("object_store_memory", 0)  # type: ignore[no-untyped-call]
    side = canvas_side(experiment.align)
    room = int(_MAX_STORE_SHARE * store / max(1, len(nodes)))
    return StoreRoom(faces, experiment.align.size, faces * side * side * 3, room)
