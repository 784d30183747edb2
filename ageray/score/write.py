"""Writing the scores table: Parquet files of up to 250 000 rows, rows that have an error in a file
of their own.

A part has the rows of a range of chunks, in their order, so that the files do not depend on who
computed what when. Parts are independent of each other: any process that reaches the folder can
write one (`write_part`). The driver plans them and puts the rest together, with memory that does
not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ageray import storage
from ageray.errors import UserError, one_line
from ageray.schema import check
from ageray.score import chunks, pieces, results
from ageray.score.files import ScoreFiles
from ageray.score.join import Join
from ageray.score.pieces import PieceIndex
from ageray.score.results import Digest

ROWS = 250_000
"""Most rows of a part; more only if a single chunk has more."""

_ROW_GROUP = 65_536


class Part(NamedTuple):
    """A part to write: its number, its first and last chunk, and the pieces that have them."""

    number: int
    first: int
    last: int
    pieces: list[str]


class WrittenPart(NamedTuple):
    """What a part had: its digest, and its rows with an error, which it does not have itself."""

    digest: Digest
    errors: pa.Table


def plan_parts(index: PieceIndex) -> list[Part]:
    """The parts of a result; at least one, even without rows."""
    ids, faces = index.faces()
    if not len(ids):
        return [Part(0, 0, -1, [])]
    starts = _starts(faces)
    ends = ids[np.append(starts[1:], len(ids)) - 1]
    members: list[list[str]] = [[] for _ in starts]
    for piece in index:
        parts = np.searchsorted(ids[starts], piece.chunks, "right") - 1
        for number in np.unique(parts).tolist():
            members[number].append(piece.uri)
    plan = []
    for number, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        plan.append(Part(number, int(ids[start]), end, members[number]))
    return plan


def _starts(faces: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places of the chunks with which a part begins. faces: rows of each chunk."""
    total = np.cumsum(faces)
    starts, before = [0], 0
    while True:
        end = int(np.searchsorted(total, before + ROWS, "right"))
        end = max(end, starts[-1] + 1)
        if end >= len(faces):
            return np.array(starts, np.int64)
        starts.append(end)
        before = int(total[end - 1])


def write_part(part: Part, files: ScoreFiles, schema: pa.Schema, join: Join | None = None) -> WrittenPart:
    """Writes one part into `files`.

    schema: of the file, with its metadata. Further columns of the pieces are dropped. A column that
    a piece lacks is null: pieces of an earlier version have fewer columns. join: makes of the rows
    what joins back to the input; its columns are the last of `schema`. The digest names photos by
    their uris. Raises UserError if the folder cannot be written.
    """
    rows = _rows_of(part, schema, join)
    errors = [schema.empty_table()]
    try:
        filesystem, path = storage.filesystem(files.part(part.number))
        with pq.ParquetWriter(path, schema, filesystem=filesystem, compression="zstd") as writer:
            for group in _joined(rows, schema, join):
                is_face = group.column("error").is_null()
                errors.append(group.filter(pc.invert(is_face)))
                faces = group.filter(is_face)
                if faces.num_rows:
                    writer.write_table(faces)
    except OSError as error:
        raise _not_written(files, error) from None
    return WrittenPart(results.digest_of(rows), pa.concat_tables(errors))


def finish(files: ScoreFiles, parts: Iterable[WrittenPart], schema: pa.Schema) -> Digest:
    """Writes `files.errors` from the parts, in their order; returns the digest of the whole."""
    digest = Digest()
    try:
        filesystem, path = storage.filesystem(files.errors)
        with closing(pq.ParquetWriter(path, schema, filesystem=filesystem, compression="zstd")) as writer:
            for part in parts:
                digest = digest.merge(part.digest)
                if part.errors.num_rows:
                    writer.write_table(part.errors, row_group_size=_ROW_GROUP)
    except OSError as error:
        raise _not_written(files, error) from None
    return digest


def _rows_of(part: Part, schema: pa.Schema, join: Join | None) -> pa.Table:
    """The rows of a part, in order, each once, with their chunks and without the columns of
    `join`.
    """
    own = schema.names[: len(schema) - len(join.fields)] if join else schema.names
    wide = pa.schema([*map(schema.field, own), *chunks.CHUNK_OF_ROW_SCHEMA])
    tables = [wide.empty_table()]
    for table in pieces.read_all(part.pieces):
        chunk = table.column("lot")
        mask = pc.and_(pc.greater_equal(chunk, part.first), pc.less_equal(chunk, part.last))
        tables.append(check(table.filter(mask), wide, "a piece").cast(wide))
    return chunks.in_order(pa.concat_tables(tables))


def _joined(rows: pa.Table, schema: pa.Schema, join: Join | None) -> Iterator[pa.Table]:
    """The rows as the result has them, some at a time, so that the input's columns are in memory
    for few of them.
    """
    for start in range(0, rows.num_rows, _ROW_GROUP):
        group = rows.slice(start, _ROW_GROUP)
        if join is not None:
            group = join(group)
        yield group.select(schema.names).cast(schema)


def _not_written(files: ScoreFiles, error: OSError) -> UserError:
    remedy = "check the space and the permissions there"
    return UserError(f"{files.folder}: cannot be written ({one_line(error)}); {remedy}")
