"""Face shards as a stream of canvases for training and validation, on Ray Data.

Encoded bytes are read, decoded on CPU tasks and leave as uint8; everything after that happens where the accelerator is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from numpy.typing import NDArray

from ageray.data import splits
from ageray.data.face_shards import read_faces
from ageray.data.row_index import RowLookup
from ageray.experiment import Align
from ageray.faces.canvases import canvas_side, face_canvases
from ageray.faces.images import ImageError

_COLUMNS = ["key", "image", "landmarks", "box", "age", "subject", "gender", "dataset"]
_TASKS_PER_PROCESS = 1000
_BLOCK_ROWS = 256  # rows a decoding task takes at once: small enough to fill the cores from one shard, large beside the cost of a task

Columns = dict[str, Any]


def face_stream(
    shards: str, align: Align, decode_batch: int, split: str | None = None, part: str | None = None
) -> ray.data.Dataset:
    """The faces of a shard folder with a known age, or those whose key stands in `part` of the saved `split`, as columns `key`, `age`,
    `canvas` (C, C, 3) uint8, `points` (5, 2), `box` (4,), `gender` and `subject` as numbers (`gender_number`, `subject_number`), `error` (''
    where all is well), in the order of the shards."""
    return canvases(face_rows(shards), align, decode_batch, split=split, part=part)


def face_rows(shards: str) -> ray.data.Dataset:
    """What `canvases` takes: the rows of a shard folder in their order, still encoded, in blocks of 256."""
    return read_faces(shards, _COLUMNS).repartition(target_num_rows_per_block=_BLOCK_ROWS)


def canvases(
    rows: ray.data.Dataset,
    align: Align,
    decode_batch: int,
    split: str | None = None,
    part: str | None = None,
    wanted: RowLookup | None = None,
) -> ray.data.Dataset:
    """Rows decoded as `face_stream` does. wanted: only these faces are decoded; their row numbers are the column `row`."""
    return rows.map_batches(
        decode_rows,  # type: ignore[arg-type]  # Ray's type knows no keyword arguments
        batch_size=decode_batch,
        batch_format="pyarrow",
        zero_copy_batch=True,
        # Operators with unequal arguments stay apart: Ray would otherwise run this one inside the few actors of an evaluation.
        max_calls=_TASKS_PER_PROCESS,
        fn_kwargs={"align": align.model_dump(mode="json"), "split": split, "part": part, "wanted": wanted},
    )


@cache
def _members(split: str, part: str) -> pa.Array:
    """The keys of a part; read once a process."""
    return pa.array(splits.load(split)[part], pa.string())


def decode_rows(
    table: pa.Table,
    align: dict[str, Any],
    split: str | None = None,
    part: str | None = None,
    wanted: RowLookup | None = None,
) -> Columns:
    """Rows of the faces table to canvases (see `face_stream`). A row that cannot be used keeps its place, with its reason in `error`."""
    config = Align.model_validate(align)
    table = table.filter(pc.is_finite(table.column("age")))  # neither null nor NaN
    if split is not None and part is not None:
        table = table.filter(pc.is_in(table.column("key"), value_set=_members(split, part)))
    numbers = None if wanted is None else wanted.find(table.column("key").to_pylist())
    if numbers is not None:
        table, numbers = table.filter(pa.array(numbers >= 0)), numbers[numbers >= 0]
    count, side = table.num_rows, canvas_side(config)
    columns: Columns = {
        "key": np.asarray(table.column("key").to_pylist(), dtype=object),
        "age": table.column("age").to_numpy().astype(np.float32),
        "canvas": np.full((count, side, side, 3), config.fill, np.uint8),
        "points": np.full((count, 5, 2), np.nan, np.float32),
        "box": np.full((count, 4), np.nan, np.float32),
        "gender": np.array([gender_number(name) for name in table.column("gender").to_pylist()], np.int64),
        "subject": np.array([subject_number(*row) for row in zip(*_names(table), strict=True)], np.int64),
        "error": np.full(count, "", dtype=object),
    }
    if numbers is not None:
        columns["row"] = numbers
    images, landmarks, boxes = (
        table.column("image"),
        table.column("landmarks").to_pylist(),
        table.column("box").to_pylist(),
    )
    for row in range(count):
        try:
            found = face_canvases(
                images[row].as_py(), _as_points(landmarks[row]), _as_box(boxes[row]), config
            )
        except ImageError as error:
            columns["error"][row] = str(error)
            continue
        columns["canvas"][row], columns["points"][row], columns["box"][row] = (
            found.pixels[0],
            found.points[0],
            found.box[0],
        )
    return columns


def _names(table: pa.Table) -> list[list[str | None]]:
    return [table.column(name).to_pylist() for name in ("dataset", "subject")]


_MALE, _FEMALE = frozenset({"male", "m", "man", "boy"}), frozenset({"female", "f", "w", "woman", "girl"})


def gender_number(name: str | None) -> int:
    """0 male, 1 female, -1 anything else: what losses and galleries compare."""
    word = (name or "").strip().lower()
    return 0 if word in _MALE else 1 if word in _FEMALE else -1


def subject_number(dataset: str, subject: str | None) -> int:
    """A number above 0 for a subject of a data set, the same in every process; 0 where the subject is unknown."""
    if subject is None:
        return 0
    return 1 + int.from_bytes(
        hashlib.blake2b(f"{dataset}\0{subject}".encode(), digest_size=8).digest()[:7], "big"
    )


def _as_points(values: list[float] | None) -> NDArray[np.float32] | None:
    return None if values is None else np.asarray(values, np.float32).reshape(1, 5, 2)


def _as_box(values: list[float] | None) -> NDArray[np.float32] | None:
    return None if values is None else np.asarray(values, np.float32).reshape(1, 4)


class UsableBatches:
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
