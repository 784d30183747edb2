"""The units in which a scoring run does its work, so that it can resume where it stopped.

A *segment* is what one read task opens: 8192 paths of a list, one row group of a table, or one tar.
A *chunk* is 64 consecutive photos of a segment. Its rows are written together or not at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Container, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import compress
from itertools import count as count_from
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ageray.schema import UNAVAILABLE

SIZE = 64
"""Photos of a chunk. The last chunk of a segment has the rest."""

CHUNK_OF_PHOTO_SCHEMA = pa.schema(
    [
        pa.field("lot", pa.int64(), nullable=False),
        pa.field("photo", pa.int32(), nullable=False),
        pa.field("photos", pa.int32(), nullable=False),
        pa.field("last", pa.bool_(), nullable=False),
        pa.field("weight", pa.int64(), nullable=False),
    ]
)
"""Columns that a photo carries through the stages: the id of its chunk (named `lot` on disk), its
number in the chunk, the chunk's number of photos, whether the chunk is the last of its segment, and
the photo's share of the work (1, or bytes in a tar)."""

CHUNK_OF_ROW_SCHEMA = CHUNK_OF_PHOTO_SCHEMA.append(pa.field("siblings", pa.int32(), nullable=False))
"""Columns that a row of scores carries: those of its photo, and how many rows the photo has."""

_MAX_CHUNKS = 1 << 24  # of a segment
_MAX_FACES = 1 << 16  # of a photo


class Segment(NamedTuple):
    """One segment: its number and its file, and the positions of its chunks that are done.

    group, first: in a table, the row group and the number of the group's first row in the file.
    """

    number: int
    uri: str
    group: int = -1
    first: int = 0
    done: tuple[int, ...] = ()


def chunk_id(segment: int, position: int) -> int:
    """The id of the chunk at a position of a segment."""
    return segment * _MAX_CHUNKS + position


def split_chunk_id(chunk: int) -> tuple[int, int]:
    """Segment and position of a chunk."""
    return divmod(chunk, _MAX_CHUNKS)


def places_of(rows: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Segment and number in the segment of each row's photo: (N,) each."""
    segment_N, position_N = np.divmod(_integers(rows, "lot"), _MAX_CHUNKS)
    return segment_N, position_N * SIZE + _integers(rows, "photo")


def label(photos: pa.Table, segment: int, position: int, weights: Sequence[int], last: bool) -> pa.Table:
    """The photos of one chunk with the columns of CHUNK_OF_PHOTO_SCHEMA; `weights` has one value a
    photo.
    """
    count = photos.num_rows
    columns = {
        "lot": np.full(count, chunk_id(segment, position)),
        "photo": np.arange(count),
        "photos": np.full(count, count),
        "last": np.full(count, last),
        "weight": np.asarray(weights, np.int64),
    }
    for column in CHUNK_OF_PHOTO_SCHEMA:
        photos = photos.append_column(column, pa.array(columns[column.name], column.type))
    return photos


def count(photos: int) -> int:
    """Number of chunks of a segment with this many photos."""
    return -(-photos // SIZE)


def cut(photos: pa.Table, segment: int, done: Collection[int]) -> Iterator[pa.Table]:
    """Cuts all photos of a segment into labelled chunks. Positions in `done` are left out."""
    positions = count(photos.num_rows)
    for position in range(positions):
        if position not in done:
            chunk = photos.slice(position * SIZE, SIZE)
            yield label(chunk, segment, position, [1] * chunk.num_rows, position == positions - 1)


def cut_again(photos: pa.Table, segment: int, position: int, numbers: list[int]) -> pa.Table:
    """Some photos of a chunk, by their numbers in it, as `cut` labels them; they are as many as the
    chunk seems to have.
    """
    own = photos.take(pa.array([position * SIZE + number for number in numbers], pa.int64()))
    labelled = label(own, segment, position, [1] * own.num_rows, last=False)
    place = labelled.column_names.index("photo")
    return labelled.set_column(place, labelled.schema.field("photo"), pa.array(numbers, pa.int32()))


def first_rows(rows: pa.Table) -> pa.Table:
    """One row a photo. Each photo has exactly one row whose face is 0 (its leftmost) or -1 (no
    face).
    """
    return rows.filter(pc.less_equal(rows.column("face"), 0))


@dataclass
class Counts:
    """Totals over rows of scores: photos, faces that have an age, `weight` of the photos, and
    errors by kind.
    """

    photos: int = 0
    faces: int = 0
    weight: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def add(self, rows: pa.Table) -> None:
        """Counts the rows of whole chunks, with the columns of CHUNK_OF_ROW_SCHEMA."""
        first = first_rows(rows)
        self.photos += first.num_rows
        self.faces += len(rows.column("age").drop_null())
        self.weight += pc.sum(first.column("weight")).as_py() or 0
        for reason in first.column("error").drop_null().to_pylist():
            self.errors[error_kind(reason)] += 1

    def merge(self, other: Counts) -> None:
        """Adds other counts."""
        self.photos += other.photos
        self.faces += other.faces
        self.weight += other.weight
        self.errors.update(other.errors)

    def replace(self, rows: pa.Table) -> None:
        """Counts rows of photos that were counted as unavailable before."""
        other = Counts()
        other.add(rows)
        self.supersede(other)

    def supersede(self, other: Counts) -> None:
        """Adds the counts of photos that were counted as unavailable before."""
        self.merge(other)
        self.photos -= other.photos
        self.weight -= other.weight
        self.errors[UNAVAILABLE] -= other.photos
        self.errors += Counter()  # drops a kind that is no more

    def copy(self) -> Counts:
        """Equal counts that can be added to on their own."""
        return Counts(self.photos, self.faces, self.weight, Counter(self.errors))


def error_kind(error: str) -> str:
    """The kind of an error in the scores table: its text up to the first colon."""
    return error.split(":")[0]


class ChunkSet:
    """A set of chunks, in one bit each: a billion photos are 16 million chunks."""

    def __init__(self) -> None:
        self._bits: dict[int, int] = {}  # of a segment: a 1 for each position

    def __contains__(self, chunk: object) -> bool:
        assert isinstance(chunk, int)
        segment, position = split_chunk_id(chunk)
        return bool(self._bits.get(segment, 0) >> position & 1)

    def __len__(self) -> int:
        return sum(map(int.bit_count, self._bits.values()))

    def add(self, chunk: int) -> None:
        """Takes the chunk of this id."""
        segment, position = split_chunk_id(chunk)
        self._bits[segment] = self._bits.get(segment, 0) | 1 << position

    def count(self, segment: int) -> int:
        """Number of chunks of a segment."""
        return self._bits.get(segment, 0).bit_count()

    def positions(self) -> dict[int, tuple[int, ...]]:
        """Positions of the chunks in each segment that has any."""
        positions = {}
        for segment, bits in sorted(self._bits.items()):
            positions[segment] = tuple(compress(count_from(), map(int, reversed(f"{bits:b}"))))
        return positions


def unavailable(rows: pa.Table) -> pa.Table:
    """The rows of photos whose store did not answer."""
    return rows.filter(pc.fill_null(pc.starts_with(rows.column("error"), f"{UNAVAILABLE}:"), False))


def photo_ids(rows: pa.Table) -> NDArray[np.int64]:
    """A number for the photo of each row, which tells it from every other photo."""
    return _integers(rows, "lot") * _MAX_FACES + _integers(rows, "photo")


class ChunkAssembler:
    """Puts rows of scores together to whole chunks.

    Rows have the columns of CHUNK_OF_ROW_SCHEMA. They may come in any order, in any blocks, and
    twice (Ray repeats a task whose process died). Every row is given back once, with all others of
    its chunk.
    """

    def __init__(self, done: Container[int] = (), again: Container[int] = ()) -> None:
        """done: ids of chunks whose rows are dropped, unless they are in `again`."""
        self._before, self._again, self._done = done, again, ChunkSet()
        self._incomplete: dict[int, pa.Table] = {}

    def add(self, rows: pa.Table) -> list[pa.Table]:
        """Takes rows; returns the chunks that are complete with them."""
        complete = []
        for chunk in pc.unique(rows.column("lot")).to_pylist():
            if chunk in self._done or (chunk in self._before and chunk not in self._again):
                continue
            own = rows.filter(pc.equal(rows.column("lot"), chunk))
            if chunk in self._incomplete:
                own = pa.concat_tables([self._incomplete.pop(chunk), own])
            own = _without_repeats(own)
            if _is_complete(own):
                self._done.add(chunk)
                complete.append(own)
            else:
                self._incomplete[chunk] = own
        return complete

    def incomplete(self) -> list[int]:
        """Ids of chunks of which some rows have come and others have not."""
        return sorted(self._incomplete)


def in_order(rows: pa.Table) -> pa.Table:
    """Rows by chunk, photo and face, each once."""
    numbers = _integers(rows, "photo") * _MAX_FACES + _integers(rows, "face")
    ids = _integers(rows, "lot")
    order = np.lexsort((numbers, ids))
    ids, numbers = ids[order], numbers[order]
    is_new = np.ones(len(order), bool)
    is_new[1:] = (ids[1:] != ids[:-1]) | (numbers[1:] != numbers[:-1])
    return rows.take(order[is_new])


def split(rows: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The rows of chunks that are complete, in order, and the others."""
    rows = in_order(rows)
    ids, first, places = np.unique(_integers(rows, "lot"), return_index=True, return_inverse=True)
    is_first = _integers(rows, "face") <= 0  # see `first_rows`
    photos = np.bincount(places[is_first], minlength=len(ids))
    siblings = np.bincount(places, _integers(rows, "siblings") * is_first, len(ids))
    complete = (photos == _integers(rows, "photos")[first]) & (siblings == np.bincount(places))
    mask = complete[places]
    return rows.filter(pa.array(mask)), rows.filter(pa.array(~mask))


def _without_repeats(rows: pa.Table) -> pa.Table:
    numbers = _integers(rows, "photo") * _MAX_FACES + _integers(rows, "face")
    _, first = np.unique(numbers, return_index=True)
    return rows if len(first) == len(numbers) else rows.take(np.sort(first))


def _is_complete(rows: pa.Table) -> bool:
    first = first_rows(rows)
    all_photos = first.num_rows == rows.column("photos")[0].as_py()
    return bool(all_photos and _integers(first, "siblings").sum() == rows.num_rows)


def _integers(rows: pa.Table, name: str) -> NDArray[np.int64]:
    return np.asarray(rows.column(name).to_numpy(), np.int64)
