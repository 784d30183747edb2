"""Parquet tables as inputs: face shards, photos by their bytes, or paths of photos."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ageray import schema, storage
from ageray.errors import UserError, one_line
from ageray.faces.images import fetch
from ageray.stages.columns import PHOTO_SCHEMA
from ageray.storage import delimited

Kind = Literal["manifest", "photo table", "face shards"]

BYTES = ("image", "bytes")
"""Names of the column of encoded photos: binary, or a struct with `bytes`, as Hugging Face writes
it. The first name that the table has is taken."""

URIS = ("image", "uri")
"""Names of the column of paths or urls. The first name that the table has is taken."""

_OF_A_FACE = ("landmarks", "box")
_NEEDED = ("key", "image", "dataset")  # of a face shard
_ROWS = 64  # of a batch


class Columns(NamedTuple):
    """What a table is, its column of photos or paths, and the names of all its columns."""

    kind: Kind
    image: str
    names: tuple[str, ...]

    def to_read(self) -> list[str]:
        """The columns that scoring reads."""
        further = ["key"]
        if self.kind == "face shards":
            further += _OF_A_FACE
        return [self.image, *filter(self.names.__contains__, further)]


def footer(uri: str) -> pq.FileMetaData:
    """A Parquet file's footer. Raises UserError if it cannot be read."""
    filesystem, path = storage.filesystem(uri)
    try:
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            return file.metadata
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{uri}: cannot be read as Parquet ({one_line(error)}); write it again") from None


def columns(uri: str, table: pa.Schema) -> Columns:
    """What a table of this schema is. Raises UserError if it has no column of photos or paths."""
    names = tuple(table.names)
    for name in BYTES:
        if name in names and _holds_bytes(table.field(name).type):
            kind: Kind = "face shards" if _is_shard(table, name) else "photo table"
            return Columns(kind, name, names)
    return Columns("manifest", uri_column(uri, names), names)


def uri_column(uri: str, names: tuple[str, ...]) -> str:
    """The column of paths or urls among `names`. Raises UserError if there is none."""
    for name in URIS:
        if name in names:
            return name
    likely = delimited.likely_column(names)
    remedy = f"; rename '{likely}'" if likely else ""
    names_text = ", ".join(names) or "none"
    raise UserError(f"{uri}: needs a column 'image' (or 'uri') of paths or urls; it has {names_text}{remedy}")


def photos(uri: str, group: int, first: int, columns: Columns) -> pa.Table:
    """The photos of a row group: rows of PHOTO_SCHEMA.

    A photo of a face shard has the shard's uri as `image`, and its own key. Any other is called
    `uri/key` or, in a table without keys, `uri/row`. first: the number of the group's first row in
    the file.
    """
    return pa.concat_tables([PHOTO_SCHEMA.empty_table(), *batches(uri, group, first, columns, _ROWS)])


def batches(uri: str, group: int, first: int, columns: Columns, size: int) -> Iterator[pa.Table]:
    """The photos of a row group as `photos` gives them, in tables of `size` rows; the last one has
    the rest.

    Only one of them is in memory: programs write up to a million photos into one row group, and a
    column of Arrow holds 2 GiB.
    """
    rows: list[pa.Table] = []
    count = 0
    for batch in _read_batches(uri, group, columns.to_read(), size):
        rows.append(pa.Table.from_batches([batch]))
        count += batch.num_rows
        if count >= size:
            table = pa.concat_tables(rows)
            yield _photos(table.slice(0, size), uri, first, columns)
            first, count, rows = first + size, count - size, [table.slice(size)]
    if count:
        yield _photos(pa.concat_tables(rows), uri, first, columns)


def _photos(table: pa.Table, uri: str, first: int, columns: Columns) -> pa.Table:
    content = table.column(columns.image)
    paths = None
    if pa.types.is_struct(content.type):
        if content.type.get_field_index("path") >= 0:
            paths = pc.struct_field(content, "path").to_pylist()
        content = pc.struct_field(content, "bytes")
    content = _binary(content).combine_chunks()
    problem = pc.if_else(pc.is_null(content), "no bytes are given", pa.scalar(None, pa.string()))
    if paths is not None and content.null_count:
        content, problem = _read_paths(content, problem, paths, posixpath.dirname(uri))
    values = {"content": content, "problem": problem, **_names(table, uri, first, columns)}
    if columns.kind == "face shards":
        for name in _OF_A_FACE:
            if name in table.column_names:
                values[name] = table.column(name)
    arrays = [_column(values, field, table.num_rows) for field in PHOTO_SCHEMA]
    return pa.table(arrays, schema=PHOTO_SCHEMA)


def pick(uri: str, names: set[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], bytes]]:
    """The encoded photos of a table with these (image, key); a key is empty except in face shards.

    Row groups that have none of them are not read.
    """
    meta, first = footer(uri), 0
    own = columns(uri, meta.schema.to_arrow_schema())
    name_column = "key" if "key" in own.names else own.image
    for group in range(meta.num_row_groups):
        rows = _read_group(uri, group, [name_column])
        pairs = _pairs(_names(rows, uri, first, own))
        if not names.isdisjoint(pairs):
            content = photos(uri, group, first, own).column("content")
            for row, pair in enumerate(pairs):
                if pair in names and content[row].is_valid:
                    yield pair, content[row].as_py()
        first += meta.row_group(group).num_rows


def _binary(content: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of any kind that `_holds_bytes`, as plain binary."""
    if pa.types.is_dictionary(content.type):
        content = pa.chunked_array([chunk.dictionary_decode() for chunk in content.chunks])
    return content.cast(pa.binary())


def _read_paths(
    content: pa.Array, problem: pa.Array, paths: list[str | None], folder: str
) -> tuple[pa.Array, pa.Array]:
    """Bytes and problems, where bytes that are missing are read from the paths beside them.

    So does the library `datasets` write a folder of photos.
    """
    photos, problems = content.to_pylist(), problem.to_pylist()
    for row, path in enumerate(paths):
        if photos[row] is None and path:
            photo = fetch(storage.join(folder, path))
            if isinstance(photo, bytes):
                photos[row], problems[row] = photo, None
            else:
                problems[row] = f"no bytes are given, and their path cannot be read: {photo}"
    return pa.array(photos, pa.binary()), pa.array(problems, pa.string())


def _read_batches(uri: str, group: int, names: list[str], size: int) -> Iterator[pa.RecordBatch]:
    filesystem, path = storage.filesystem(uri)
    try:
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            for batch in file.iter_batches(size, [group], names):
                batch.validate(full=True)  # texts that are not UTF-8
                yield batch
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        remedy = "write it again, then run the command again"
        raise UserError(f"{uri}: cannot be read ({one_line(error)}); {remedy}") from None


def _read_group(uri: str, group: int, names: list[str]) -> pa.Table:
    filesystem, path = storage.filesystem(uri)
    try:
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            table = file.read_row_group(group, names)
            table.validate(full=True)  # texts that are not UTF-8
            return table
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        remedy = "write it again, then run the command again"
        raise UserError(f"{uri}: cannot be read ({one_line(error)}); {remedy}") from None


def _names(table: pa.Table, uri: str, first: int, columns: Columns) -> dict[str, pa.Array]:
    """The columns that name photos: `image` and, in a face shard, `key`."""
    keys = table.column("key").cast(pa.string()) if "key" in table.column_names else None
    if columns.kind == "face shards":
        return {"image": pa.array([uri] * table.num_rows, pa.string()), "key": keys}
    names: Iterable[object] = range(first, first + table.num_rows)
    if keys is not None:
        names = keys.to_pylist()
    return {"image": pa.array([f"{uri}/{name}" for name in names], pa.string())}


def _pairs(names: dict[str, pa.Array]) -> list[tuple[str, str]]:
    images = names["image"].to_pylist()
    keys = names["key"].to_pylist() if "key" in names else [""] * len(images)
    return list(zip(images, keys, strict=True))


def _column(values: dict[str, pa.Array], field: pa.Field, rows: int) -> pa.Array:
    return values[field.name].cast(field.type) if field.name in values else pa.nulls(rows, field.type)


def _is_shard(table: pa.Schema, image: str) -> bool:
    """Whether `ageray prepare` wrote the table. Shards of earlier versions have no mark; they have
    exactly the columns of FACES.
    """
    if image != "image" or not set(_NEEDED).issubset(table.names):
        return False
    if (table.metadata or {}).get(schema.MARK) == schema.SHARDS:
        return True
    return all(
        field.name in table.names and table.field(field.name).type == field.type for field in schema.FACES
    )


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    if pa.types.is_dictionary(kind):
        return _holds_bytes(kind.value_type)
    kinds = (
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
        pa.types.is_fixed_size_binary,
    )
    return any(is_kind(kind) for is_kind in kinds)
