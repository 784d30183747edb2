"""What a collection is cut into, so that a scoring run can go on where it stopped.

A *stretch* is what is read in one go: 8192 places of a list, a row group of a table, or a tar. A *lot* is 64 photos of
a stretch, one after the other: all of its rows are kept at once, or none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ageray.stages.labels import CHUNK_OF_PHOTO_SCHEMA

SIZE = 64
"""Photos of a lot; a stretch's last has what is left."""

_LOTS = 1 << 24  # of a stretch, at most


class Segment(NamedTuple):
    """One stretch: its number, its file, in a table the row group and the number of its first row, and its lots that need not be read."""

    number: int
    uri: str
    group: int = -1
    first: int = 0
    done: tuple[int, ...] = ()


def number(stretch: int, position: int) -> int:
    """The number of a stretch's lot."""
    return stretch * _LOTS + position


def place(lot: int) -> tuple[int, int]:
    """Segment and position of a lot."""
    return divmod(lot, _LOTS)


def count(photos: int) -> int:
    """How many lots so many photos of a stretch make."""
    return -(-photos // SIZE)


def labels(stretch: int, position: int, weights: Collection[int], last: bool) -> dict[str, Any]:
    """The columns of CHUNK_OF_PHOTO_SCHEMA for the photos of one lot."""
    photos = len(weights)
    columns = {
        "lot": np.full(photos, number(stretch, position)),
        "photo": np.arange(photos),
        "photos": np.full(photos, photos),
    }
    columns |= {"last": np.full(photos, last), "weight": np.fromiter(weights, np.int64, photos)}
    return {field.name: pa.array(columns[field.name], field.type) for field in CHUNK_OF_PHOTO_SCHEMA}


def cut(table: pa.Table, stretch: int, done: Collection[int]) -> Iterator[pa.Table]:
    """The photos of a stretch, all at hand, as its lots without those done; each with its labels."""
    lots = count(table.num_rows)
    for position in range(lots):
        if position not in done:
            lot = table.slice(position * SIZE, SIZE)
            for name, column in labels(stretch, position, [1] * lot.num_rows, position == lots - 1).items():
                lot = lot.append_column(CHUNK_OF_PHOTO_SCHEMA.field(name), column)
            yield lot


class ChunkAssembler:
    """Takes rows with CHUNK_OF_ROW_SCHEMA in whatever order and pieces they come, even repeated, and gives them back lot by lot, each row once."""

    def __init__(self, done: Collection[int] = ()) -> None:
        """done: lots whose rows are to be dropped."""
        self._done = set(done)
        self._waiting: dict[int, pa.Table] = {}

    def add(self, rows: pa.Table) -> list[pa.Table]:
        """The lots that these rows complete."""
        complete = []
        for lot in pc.unique(rows.column("lot")).to_pylist():
            if lot in self._done:
                continue
            own = rows.filter(pc.equal(rows.column("lot"), lot))
            if lot in self._waiting:
                own = pa.concat_tables([self._waiting.pop(lot), own])
            own = _once(own)
            if _is_complete(own):
                self._done.add(lot)
                complete.append(own)
            else:
                self._waiting[lot] = own
        return complete

    def __len__(self) -> int:
        """Lots of which some rows are there and others not."""
        return len(self._waiting)


def first_rows(rows: pa.Table) -> pa.Table:
    """One row a photo: each has just one whose face is 0 or -1."""
    return rows.filter(pc.less_equal(rows.column("face"), 0))


def _once(rows: pa.Table) -> pa.Table:
    places = _numbers(rows, "photo") * 2**16 + _numbers(rows, "face")
    _, kept = np.unique(places, return_index=True)
    return rows if len(kept) == len(places) else rows.take(np.sort(kept))


def _is_complete(rows: pa.Table) -> bool:
    first = first_rows(rows)
    return bool(
        first.num_rows == rows.column("photos")[0].as_py()
        and _numbers(first, "siblings").sum() == rows.num_rows
    )


def _numbers(rows: pa.Table, name: str) -> NDArray[np.int64]:
    return np.asarray(rows.column(name).to_numpy(), np.int64)
