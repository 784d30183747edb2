"""Faces that every training reads: decoded once into the object store, and of a frozen body only the features, computed once too."""

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
from ageray.train.in_memory.slots import Share, on_device

_FULLEST = 0.6  # share of the object store that faces may take: decoding needs some too
_FEATURES_A_TASK = 512
_NUMBERED = ("canvas", "points", "box", "age", "gender", "subject")


@dataclass
class FaceCache:
    """UsableBatches faces: `columns` in the object store, where each key's row is; and the reason why another cannot be used."""

    columns: Any
    row: dict[str, int]
    errors: dict[str, str]

    def rows(self, parts: dict[str, list[str]]) -> dict[str, Any]:
        """The rows of each part's usable faces, ascending: (N,) of int64."""
        return {
            name: np.array(sorted(self.row[key] for key in keys if key in self.row), np.int64)
            for name, keys in parts.items()
        }

    def column(self, name: str, rows: Any) -> Any:
        """The values of some rows."""
        return ray.get(self.columns)[name][rows]

    def keys(self, rows: Any) -> list[str]:
        """The keys of some rows."""
        names = list(self.row)  # numbered in this order
        return [names[row] for row in rows]


def hold(experiment: Experiment, labelled: pa.Table) -> FaceCache:
    """All labelled faces as canvases, once, in the object store, in the order of the shards. Raises UserError if they do not fit in it."""
    shards, side, count = str(experiment.data.shards), canvas_side(experiment.align), labelled.num_rows
    _check_room(shards, count, side, experiment.align.size)
    canvas = np.empty((count, side, side, 3), np.uint8)
    parts: dict[str, list[Any]] = {name: [] for name in _NUMBERED[1:]}
    row, errors = dict[str, int](), dict[str, str]()
    stream = face_stream(shards, experiment.align, experiment.scale.decode_batch)
    for batch in stream.iter_batches(batch_size=None, batch_format="numpy"):
        fine = batch["error"] == ""
        errors |= zip(batch["key"][~fine].tolist(), batch["error"][~fine].tolist(), strict=True)
        first = len(row)
        row |= {key: first + place for place, key in enumerate(batch["key"][fine].tolist())}
        canvas[first : len(row)] = batch["canvas"][fine]
        for name, arrays in parts.items():
            arrays.append(batch[name][fine])
    if not row:
        key, reason = next(iter(errors.items()))
        raise UserError(
            f"data.shards={shards}: no face can be used; the first of {len(errors)}: {key}: {reason}"
        )
    columns = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    return FaceCache(ray.put({"canvas": canvas[: len(row)], **columns}), row, errors)


def remember(experiment: Experiment, network: AgeNetwork, faces: FaceCache, share: Share) -> bool:
    """Puts features in the place of pixels where the body of the experiment's network is frozen; whether it did."""
    if not frozen.applies(experiment, network):
        return False
    task, count = share.task(_features), len(faces.row)
    pieces = [(first, min(first + _FEATURES_A_TASK, count)) for first in range(0, count, _FEATURES_A_TASK)]
    found = np.concatenate(
        ray.get([task.remote(experiment, faces.columns, *piece, share.threads) for piece in pieces])
    )
    columns = {
        name: values
        for name, values in ray.get(faces.columns).items()
        if name not in ("canvas", "points", "box")
    }
    faces.columns = ray.put({**columns, "features": found})
    return True


def _features(experiment: Experiment, faces: dict[str, Any], first: int, last: int, threads: int) -> Any:
    """A task: the frozen body's features of some of the faces."""
    with on_device(threads) as device:
        body = frozen.detach_backbone(build(experiment.model, seed=experiment.train.seed))
        return frozen.features(
            body, {name: values[first:last] for name, values in faces.items()}, experiment, device
        )


def _check_room(shards: str, faces: int, side: int, size: int) -> None:
    needed = faces * side * side * 3
    room = ray.cluster_resources().get("object_store_memory", 0)  # type: ignore[no-untyped-call]
    room /= max(1, len([node for node in ray.nodes() if node["Alive"]]))  # type: ignore[no-untyped-call]
    if needed > _FULLEST * room:
        raise UserError(
            f"data.shards={shards}: {faces:,} faces at align.size={size} take {needed / 2**20:,.0f} MiB, more than {_FULLEST:.0%} of the object "
            f"store's {room / 2**20:,.0f} MiB; raise scale.object_store_mib, or lower align.size"
        )
