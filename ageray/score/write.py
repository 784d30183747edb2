"""Writing the scores table: Parquet files of 250 000 rows, rows that have an error in a file of
their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing

import pyarrow as pa
import pyarrow.parquet as pq

from ageray import storage
from ageray.errors import UserError, one_line
from ageray.schema import check
from ageray.score.files import ScoreFiles

ROWS = 250_000
"""Rows of a part. The last part has the rest."""

_ROW_GROUP = 65_536


class _Part:
    """A Parquet file that grows."""

    def __init__(self, uri: str, schema: pa.Schema) -> None:
        self.rows = 0
        filesystem, path = storage.filesystem(uri)
        self._writer = pq.ParquetWriter(path, schema, filesystem=filesystem, compression="zstd")

    def close(self) -> None:
        self._writer.close()

    def write(self, rows: pa.Table) -> None:
        if rows.num_rows:
            self._writer.write_table(rows, row_group_size=_ROW_GROUP)
            self.rows += rows.num_rows


def write(files: ScoreFiles, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Writes the rows of `tables` to the parts and to `files.errors`. There is at least one part,
    even without rows.

    schema: of every file, with its metadata. Further columns of the tables are dropped. A column
    that a table lacks is null: pieces of an earlier version have fewer columns. Raises UserError if
    the folder cannot be written.
    """
    try:
        with closing(_Part(files.errors, schema)) as errors:
            _write_parts(files, tables, schema, errors)
    except OSError as error:
        remedy = "check the space and the permissions there"
        raise UserError(f"{files.folder}: cannot be written ({one_line(error)}); {remedy}") from None


def _write_parts(files: ScoreFiles, tables: Iterable[pa.Table], schema: pa.Schema, errors: _Part) -> None:
    number, part = 0, _Part(files.part(0), schema)
    try:
        for table in tables:
            rows = check(table, schema, "a piece").cast(schema)
            errors.write(rows.filter(rows.column("error").is_valid()))
            faces = rows.filter(rows.column("error").is_null())
            while part.rows + faces.num_rows > ROWS:
                room = ROWS - part.rows
                part.write(faces.slice(0, room))
                part.close()
                number, faces = number + 1, faces.slice(room)
                part = _Part(files.part(number), schema)
            part.write(faces)
    finally:
        part.close()
