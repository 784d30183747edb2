"""Face shards as a stream of canvases for training and validation, on Ray Data.

Encoded bytes are read, decoded on CPU tasks and leave as uint8; everything after that happens where the accelerator is.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from numpy.typing import NDArray

from ageray.data import splits
from ageray.data.batches import canvas_side, face_canvases
from ageray.data.images import ImageError
from ageray.data.shards import read_faces
from ageray.experiment import Align

_COLUMNS = ["key", "image", "landmarks", "box", "age"]
_TASKS_PER_PROCESS = 1000
_BLOCK_ROWS = 256  # rows a decoding task takes at once: small enough to fill the cores from one shard, large beside the cost of a task

Columns = dict[str, Any]


def face_stream(shards: str, align: Align, decode_batch: int, split: str | None = None, part: str | None = None) -> ray.data.Dataset:
    """The faces of a shard folder with a known age, or those whose key stands in `part` of the saved `split`, as columns `key`, `age`,
    `canvas` (C, C, 3) uint8, `points` (5, 2), `box` (4,), `error` ('' where all is well), in the order of the shards."""
    rows = read_faces(shards, _COLUMNS).repartition(target_num_rows_per_block=_BLOCK_ROWS)
    return rows.map_batches(
        decode_rows,  # type: ignore[arg-type]  # Ray's type knows no keyword arguments
        batch_size=decode_batch,
        batch_format="pyarrow",
        zero_copy_batch=True,
        # Operators with unequal arguments stay apart: Ray would otherwise run this one inside the few actors of an evaluation.
        max_calls=_TASKS_PER_PROCESS,
        fn_kwargs={"align": align.model_dump(mode="json"), "split": split, "part": part},
    )


@cache
def _members(split: str, part: str) -> pa.Array:
    """The keys of a part; read once a process."""
    return pa.array(splits.load(split)[part], pa.string())


def decode_rows(table: pa.Table, align: dict[str, Any], split: str | None = None, part: str | None = None) -> Columns:
    """Rows of the faces table to canvases (see `face_stream`). A row that cannot be used keeps its place, with its reason in `error`."""
    config = Align.model_validate(align)
    table = table.filter(pc.is_valid(table.column("age")))
    if split is not None and part is not None:
        table = table.filter(pc.is_in(table.column("key"), value_set=_members(split, part)))
    count, side = table.num_rows, canvas_side(config)
    columns: Columns = {
        "key": np.asarray(table.column("key").to_pylist(), dtype=object),
        "age": table.column("age").to_numpy().astype(np.float32),
        "canvas": np.full((count, side, side, 3), config.fill, np.uint8),
        "points": np.full((count, 5, 2), np.nan, np.float32),
        "box": np.full((count, 4), np.nan, np.float32),
        "error": np.full(count, "", dtype=object),
    }
    images, landmarks, boxes = table.column("image"), table.column("landmarks").to_pylist(), table.column("box").to_pylist()
    for row in range(count):
        try:
            found = face_canvases(images[row].as_py(), _as_points(landmarks[row]), _as_box(boxes[row]), config)
        except ImageError as error:
            columns["error"][row] = str(error)
            continue
        columns["canvas"][row], columns["points"][row], columns["box"][row] = found.pixels[0], found.points[0], found.box[0]
    return columns


def _as_points(values: list[float] | None) -> NDArray[np.float32] | None:
    return None if values is None else np.asarray(values, np.float32).reshape(1, 5, 2)


def _as_box(values: list[float] | None) -> NDArray[np.float32] | None:
    return None if values is None else np.asarray(values, np.float32).reshape(1, 4)


class Usable:
    """Iterates over batches, leaving out the rows that have an `error`; `skipped` lists their keys and reasons afterwards."""

    def __init__(self, batches: Any) -> None:
        self._batches = batches
        self.skipped: list[tuple[str, str]] = []

    def __iter__(self) -> Iterator[Columns]:
        for batch in self._batches:
            fine = batch["error"] == ""
            if not fine.all():
                self.skipped += zip(batch["key"][~fine].tolist(), batch["error"][~fine].tolist(), strict=True)
                batch = {name: values[fine] for name, values in batch.items()}
            if len(batch["age"]):
                yield batch
