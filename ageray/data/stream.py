"""Face shards as a stream of canvases, on Ray Data: encoded rows in, uint8 pixels and labels out.

CPU tasks decode the images. Alignment and all that follows run where the accelerator is.
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

from ageray import cluster
from ageray.data import splits
from ageray.data.face_shards import read_faces
from ageray.data.labels import gender_number, subject_number
from ageray.data.row_index import RowLookup
from ageray.experiment import Align
from ageray.faces.canvases import canvases_of_rows

_COLUMNS = ["key", "image", "landmarks", "box", "age", "subject", "gender", "dataset"]
_TASKS_PER_PROCESS = 1000
# rows of a decoding task: few enough to fill all cores from one shard, many beside the cost of a
# task
_BLOCK_ROWS = 256

Columns = dict[str, Any]


def face_stream(
    shards: str, align: Align, decode_batch: int, split: str | None = None, part: str | None = None
) -> ray.data.Dataset:
    """The faces of a shard folder with a known age, in the order of the shards.

    split, part: only the faces whose key is in this part of the saved split. Columns: `key`, `age`
    (years), `canvas` (C, C, 3) uint8, `points` (5, 2) and `box` (4,) in pixels of the canvas,
    `gender` and `subject` as numbers (`gender_number`, `subject_number`), `error` ('' if the face
    can be used).
    """
    return canvases(face_rows(shards), align, decode_batch, split=split, part=part)


def face_rows(shards: str) -> ray.data.Dataset:
    """Encoded rows of a shard folder in their order, in blocks of 256: what `canvases` takes."""
    return read_faces(shards, _COLUMNS).repartition(target_num_rows_per_block=_BLOCK_ROWS)


def canvases(
    rows: ray.data.Dataset,
    align: Align,
    decode_batch: int,
    split: str | None = None,
    part: str | None = None,
    lookup: RowLookup | None = None,
) -> ray.data.Dataset:
    """Decodes rows to the columns of `face_stream`.

    lookup: decode only these faces; their row numbers are a further column `row`.
    """
    return rows.map_batches(
        decode_rows,  # type: ignore[arg-type]  # Ray's type knows no keyword arguments
        batch_size=decode_batch,
        batch_format="pyarrow",
        zero_copy_batch=True,
        # Ray fuses operators with equal arguments: this one would run inside the few actors of an
        # evaluation.
        max_calls=_TASKS_PER_PROCESS,
        max_retries=cluster.LOSSES,
        fn_kwargs={"align": align.model_dump(mode="json"), "split": split, "part": part, "lookup": lookup},
    )


@cache
def _members(split: str, part: str) -> pa.Array:
    """The keys of a part, read once a process."""
    return pa.array(splits.load(split)[part], pa.string())


def decode_rows(
    table: pa.Table,
    align: dict[str, Any],
    split: str | None = None,
    part: str | None = None,
    lookup: RowLookup | None = None,
) -> Columns:
    """Rows of the faces table to columns as `face_stream` and `canvases` say.

    A row that cannot be used stays, with the reason in `error`.
    """
    config = Align.model_validate(align)
    table = table.filter(pc.is_finite(table.column("age")))  # neither null nor NaN
    if split is not None and part is not None:
        table = table.filter(pc.is_in(table.column("key"), value_set=_members(split, part)))
    columns: Columns = {}
    if lookup is not None:
        rows = lookup.find(table.column("key").to_pylist())
        table = table.filter(pa.array(rows >= 0))
        columns["row"] = rows[rows >= 0]
    columns |= _labels(table) | _pixels(table, config)
    return columns


def _labels(table: pa.Table) -> Columns:
    """The columns that need no decoding."""
    genders, subjects = list[int](), list[int]()
    for row in table.select(["gender", "dataset", "subject"]).to_pylist():
        genders.append(gender_number(row["gender"]))
        subjects.append(subject_number(row["dataset"], row["subject"]))
    return {
        "key": np.asarray(table.column("key").to_pylist(), dtype=object),
        "age": table.column("age").to_numpy().astype(np.float32),
        "gender": np.array(genders, np.int64),
        "subject": np.array(subjects, np.int64),
    }


def _pixels(table: pa.Table, config: Align) -> Columns:
    """Canvas, points and box of every row, and why a row has none."""
    points, box = _floats(table.column("landmarks"), 5, 2), _floats(table.column("box"), 4)
    faces, problems = canvases_of_rows(table.column("image").to_pylist(), points, box, config)
    return {"canvas": faces.pixels, "points": faces.points, "box": faces.box, "error": problems}


def _floats(column: pa.ChunkedArray, *shape: int) -> NDArray[np.float32]:
    """A column of lists of numbers as (rows, *shape), NaN where there is none."""
    values = np.full((len(column), *shape), np.nan, np.float32)
    present = column.is_valid().to_numpy()
    values[present] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, *shape)
    return values


class UsableBatches:
    """Iterates over batches without the rows that have an `error`; `skipped` lists them (key,
    reason).
    """

    def __init__(self, batches: Any) -> None:
        self._batches = batches
        self.skipped: list[tuple[str, str]] = []

    def __iter__(self) -> Iterator[Columns]:
        for batch in self._batches:
            usable = batch["error"] == ""
            if not usable.all():
                errors = batch["key"][~usable].tolist(), batch["error"][~usable].tolist()
                self.skipped += zip(*errors, strict=True)
                batch = {name: values[usable] for name, values in batch.items()}
            if len(batch["age"]):
                yield batch
