"""A piece: one file with the rows of whole chunks, and what a run remembers of it.

A piece is written by the driver, or by a task that has the rows. The driver keeps one `Piece` for
each, not its rows; the parts of the result are planned from them (`ageray.score.write`).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ageray import storage
from ageray.score.chunks import ChunkSet, Counts, split_chunk_id
from ageray.score.files import ScoreFiles


class Piece(NamedTuple):
    """A piece in short.

    chunks (n,): ids of its chunks, sorted. faces (n,): rows without an error, of each chunk.
    last: ids of those that are the last of their segment.
    """

    uri: str
    chunks: NDArray[np.int64]
    faces: NDArray[np.int64]
    last: list[int]
    counts: Counts


def write(files: ScoreFiles, rows: pa.Table) -> Piece:
    """Writes rows of whole chunks to a new piece."""
    content = io.BytesIO()
    pq.write_table(rows, content, compression="zstd")
    uri = files.new_piece()
    storage.write_bytes(uri, content.getvalue())
    return describe(uri, rows)


def read(uri: str) -> pa.Table:
    """The rows of a piece."""
    return pq.read_table(io.BytesIO(storage.read_bytes(uri)))


def describe(uri: str, rows: pa.Table) -> Piece:
    """What there is to remember of a piece with these rows."""
    counts = Counts()
    counts.add(rows)
    ids, places = np.unique(rows.column("lot").to_numpy(), return_inverse=True)
    is_face = rows.column("error").is_null().to_numpy()
    faces = np.bincount(places[is_face], minlength=len(ids)).astype(np.int64)
    last = pc.unique(rows.column("lot").filter(rows.column("last"))).to_pylist()
    return Piece(uri, ids, faces, last, counts)


class PieceIndex:
    """The pieces of an unfinished run, and which chunks are done.

    counts: totals over the chunks, each once. done: ids of the chunks.
    """

    def __init__(self) -> None:
        self.counts = Counts()
        self.done = ChunkSet()
        self._pieces: list[Piece] = []
        self._last: dict[int, int] = {}  # position of a segment's last chunk, if it is done

    def __iter__(self) -> Iterator[Piece]:
        return iter(self._pieces)

    def add(self, piece: Piece) -> None:
        """Takes a piece that lies on disk."""
        self._pieces.append(piece)
        self.counts.merge(piece.counts)
        for chunk in piece.chunks.tolist():
            self.done.add(chunk)
        self._last.update(map(split_chunk_id, piece.last))

    def finished_segments(self) -> set[int]:
        """Segments of which every chunk is done."""
        return {segment for segment, last in self._last.items() if self.done.count(segment) == last + 1}

    def faces(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids of all chunks, sorted, and the rows without an error of each."""
        if not self._pieces:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        ids = np.concatenate([piece.chunks for piece in self._pieces])
        faces = np.concatenate([piece.faces for piece in self._pieces])
        ids, first = np.unique(ids, return_index=True)
        return ids, faces[first]
