"""A finished table of scores on disk: parts of a sensible size, failures apart."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing

import pyarrow as pa
import pyarrow.parquet as pq

from ageray import storage
from ageray.errors import UserError, one_line

ERRORS = "errors.parquet"
"""Holds the rows that have an `error`, the parts all others: the .parquet files of a folder are the whole table."""

ROWS = 250_000
"""Rows of a part; the last one has what is left."""

_GROUP = 65_536


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
            self._writer.write_table(rows, row_group_size=_GROUP)
            self.rows += rows.num_rows


def write(folder: str, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Writes the rows to `part-NNNNN.parquet` and ERRORS in a new folder; both are there even where they have no rows.

    schema: of all the files, with their metadata. Raises UserError if the folder cannot be written.
    """
    try:
        with closing(_Part(storage.join(folder, ERRORS), schema)) as errors:
            _write_parts(folder, tables, schema, errors)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({one_line(error)}); check the space and the permissions there"
        ) from None


def _write_parts(folder: str, tables: Iterable[pa.Table], schema: pa.Schema, errors: _Part) -> None:
    number, part = 0, _Part(_name(folder, 0), schema)
    try:
        for table in tables:
            rows = table.select(schema.names).cast(schema)
            errors.write(rows.filter(rows.column("error").is_valid()))
            faces = rows.filter(rows.column("error").is_null())
            while part.rows + faces.num_rows > ROWS:
                room = ROWS - part.rows
                part.write(faces.slice(0, room))
                part.close()
                number, part, faces = number + 1, _Part(_name(folder, number + 1), schema), faces.slice(room)
            part.write(faces)
    finally:
        part.close()


def _name(folder: str, number: int) -> str:
    return storage.join(folder, f"part-{number:05d}.parquet")
