"""A piece: one file with the rows of whole chunks, and what a run remembers of it.

A piece is written by the driver, or by a task that has the rows. The driver keeps one `Piece` for
each, not its rows; the parts of the result are planned from them (`ageray.score.write`).
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ageray import storage
from ageray.errors import UserError, one_line
from ageray.score.chunks import (
    CHUNK_OF_ROW_SCHEMA,
    ChunkSet,
    Counts,
    photo_ids,
    split_chunk_id,
    unavailable,
)
from ageray.score.files import ScoreFiles, is_again, is_whole

Place = tuple[int, int]
"""A photo: the id of its chunk, and its number there."""


class Piece(NamedTuple):
    """A piece in short.

    chunks (n,): ids of its chunks, sorted. faces (n,): rows without an error, of each chunk.
    last: ids of those that are the last of their segment. unavailable: chunk and number of the
    photos whose store did not answer. again: its photos are in other pieces too, as unavailable.
    """

    uri: str
    chunks: NDArray[np.int64]
    faces: NDArray[np.int64]
    last: list[int]
    counts: Counts
    unavailable: list[Place]
    again: bool


_OF_EVERY_PIECE = ("key", "image", "face", "age", "error")  # columns, of all versions


class DamagedPieceError(Exception):
    """A piece that is not what was written."""


def write(files: ScoreFiles, rows: pa.Table, again: bool = False) -> Piece:
    """Writes rows of whole chunks to a new piece, or those of photos that were unavailable."""
    content = io.BytesIO()
    pq.write_table(rows, content, compression="zstd")
    uri = files.new_piece(content.getvalue(), again)
    storage.write_bytes(uri, content.getvalue())
    return describe(uri, rows)


def read(uri: str) -> pa.Table:
    """The rows of a piece. Raises DamagedPieceError."""
    content = storage.read_bytes(uri)
    if not is_whole(uri, content):
        raise DamagedPieceError("its checksum is another")
    try:
        rows = pq.read_table(io.BytesIO(content))
        missing = {*CHUNK_OF_ROW_SCHEMA.names, *_OF_EVERY_PIECE} - set(rows.column_names)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedPieceError(one_line(error)) from None
    if missing:
        raise DamagedPieceError(f"no column '{min(missing)}'")
    return rows


def read_all(uris: Iterable[str]) -> Iterator[pa.Table]:
    """The rows of pieces. Of photos that were unavailable before and came later, only the rows that
    came first after that.

    Raises UserError for a piece that was damaged since the run began.
    """
    came_later = np.empty(0, np.int64)
    for uri in sorted(uris, key=is_again, reverse=True):
        try:
            rows = read(uri)
        except DamagedPieceError as error:
            remedy = "give the same command again: its photos are scored again"
            raise UserError(f"{uri}: damaged since the run began ({error}); {remedy}") from None
        photos = photo_ids(rows)
        yield rows.filter(pa.array(~np.isin(photos, came_later)))
        if is_again(uri):
            came_later = np.union1d(came_later, photos)


def places(rows: pa.Table) -> list[Place]:
    """Chunk and number of each row's photo."""
    return list(zip(rows.column("lot").to_pylist(), rows.column("photo").to_pylist(), strict=True))


def describe(uri: str, rows: pa.Table) -> Piece:
    """What there is to remember of a piece with these rows."""
    counts = Counts()
    counts.add(rows)
    ids, indices = np.unique(rows.column("lot").to_numpy(), return_inverse=True)
    is_face = rows.column("error").is_null().to_numpy()
    faces = np.bincount(indices[is_face], minlength=len(ids)).astype(np.int64)
    last = pc.unique(rows.column("lot").filter(rows.column("last"))).to_pylist()
    return Piece(uri, ids, faces, last, counts, places(unavailable(rows)), is_again(uri))


class PieceIndex:
    """The pieces of an unfinished run, and which chunks are done.

    counts: totals over the chunks. done: ids of the chunks. unavailable: photos whose store did not
    answer, as chunk and number.
    """

    def __init__(self) -> None:
        self.counts = Counts()
        self.done = ChunkSet()
        self.unavailable: set[Place] = set()
        self._pieces: list[Piece] = []
        self._last: dict[int, int] = {}  # position of a segment's last chunk, if it is done

    def __iter__(self) -> Iterator[Piece]:
        return iter(self._pieces)

    def add(self, piece: Piece) -> None:
        """Takes a piece that lies on disk. Pieces with photos again come after the others."""
        self._pieces.append(piece)
        if piece.again:
            self.counts.supersede(piece.counts)
            return
        self.counts.merge(piece.counts)
        self.unavailable.update(piece.unavailable)
        for chunk in piece.chunks.tolist():
            self.done.add(chunk)
        self._last.update(map(split_chunk_id, piece.last))

    def finished_segments(self) -> set[int]:
        """Segments of which every chunk is done."""
        return {segment for segment, last in self._last.items() if self.done.count(segment) == last + 1}

    def faces(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids of all chunks, sorted, and the rows without an error of each."""
        first = [piece for piece in self._pieces if not piece.again]
        if not first:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        ids = np.concatenate([piece.chunks for piece in first])
        faces = np.concatenate([piece.faces for piece in first])
        ids, places = np.unique(ids, return_index=True)
        faces = faces[places]
        for piece in self._pieces:
            if piece.again:
                np.add.at(faces, np.searchsorted(ids, piece.chunks), piece.faces)
        return ids, faces
