"""Parquet tables as collections: face shards, photos by their bytes, or places of photos."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ageray import storage
from ageray.errors import UserError, one_line
from ageray.stages.detect import PHOTO

Kind = Literal["manifest", "photo table", "face shards"]

BYTES = ("image", "bytes")
"""Names of a table's column of encoded photos, binary or a struct with `bytes` as Hugging Face writes it; the first that is there counts."""

PLACES = ("image", "uri")
"""Names of a table's column of paths or urls; the first that is there counts."""


class Columns(NamedTuple):
    """What a table is, the column of its photos or places, and the names of all its columns."""

    kind: Kind
    image: str
    names: tuple[str, ...]

    def wanted(self) -> list[str]:
        """The columns that are read."""
        extra = ("key", "landmarks", "box") if self.kind == "face shards" else ("key",)
        return [self.image, *(name for name in extra if name in self.names)]


def footer(uri: str) -> pq.FileMetaData:
    """A Parquet file's footer. Raises UserError if there is none that can be read."""
    filesystem, path = storage.filesystem(uri)
    try:
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            return file.metadata
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{uri}: cannot be read as Parquet ({one_line(error)}); write it again") from None


def columns(uri: str, found: pa.Schema) -> Columns:
    """What the table of this schema is. Raises UserError if it has no column of photos or places."""
    names = tuple(found.names)
    for name in BYTES:
        if name in names and _is_bytes(found.field(name).type):
            shard = (
                name == "image"
                and "key" in names
                and "dataset" in names
                and found.field(name).type == pa.binary()
            )
            return Columns("face shards" if shard else "photo table", name, names)
    return Columns("manifest", place_column(uri, names), names)


def place_column(uri: str, names: tuple[str, ...]) -> str:
    """The column of places among these. Raises UserError if there is none."""
    for name in PLACES:
        if name in names:
            return name
    near = difflib.get_close_matches(PLACES[0], names, n=1, cutoff=0.4)
    hint = f"; rename '{near[0]}'" if near else ""
    raise UserError(
        f"{uri}: needs a column 'image' (or 'uri') of paths or urls; it has {', '.join(names) or 'none'}{hint}"
    )


def photos(uri: str, group: int, first: int, known: Columns) -> pa.Table:
    """The photos of a row group: rows of PHOTO. A face shard's are named by its uri and their keys, others `uri/key` or, without keys,
    `uri/row`, where the group's first row has the number `first`."""
    table = _read_group(uri, group, known.wanted())
    content = table.column(known.image).combine_chunks()
    if pa.types.is_struct(content.type):
        content = pc.struct_field(content, "bytes")
    made = {"content": content.cast(pa.binary()), **_names(table, uri, first, known)}
    made["problem"] = pc.if_else(
        pc.is_null(made["content"]), "no bytes are given", pa.scalar(None, pa.string())
    )
    if known.kind == "face shards":
        made |= {name: table.column(name) for name in ("landmarks", "box") if name in table.column_names}
    return pa.table([_cast(made, field, table.num_rows) for field in PHOTO], schema=PHOTO)


def pick(uri: str, wanted: set[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], bytes]]:
    """Photos of a table by `image` and `key` (empty but in face shards); row groups with none of them are not read."""
    meta, first = footer(uri), 0
    known = columns(uri, meta.schema.to_arrow_schema())
    keys = [name for name in ("key",) if name in known.names]
    for group in range(meta.num_row_groups):
        rows = meta.row_group(group).num_rows
        here = _pairs(_names(_read_group(uri, group, keys or [known.image]), uri, first, known))
        if not wanted.isdisjoint(here):
            content = photos(uri, group, first, known).column("content")
            yield from (
                (pair, content[row].as_py())
                for row, pair in enumerate(here)
                if pair in wanted and content[row].is_valid
            )
        first += rows


def _read_group(uri: str, group: int, names: list[str]) -> pa.Table:
    filesystem, path = storage.filesystem(uri)
    try:
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            return file.read_row_group(group, names)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{uri}: cannot be read ({one_line(error)}); write it again, then run the command again"
        ) from None


def _names(table: pa.Table, uri: str, first: int, known: Columns) -> dict[str, pa.Array]:
    keys = table.column("key").cast(pa.string()) if "key" in table.column_names else None
    if known.kind == "face shards":
        return {"image": pa.array([uri] * table.num_rows, pa.string()), "key": keys}
    inner = [str(first + row) for row in range(table.num_rows)] if keys is None else keys.to_pylist()
    return {"image": pa.array([f"{uri}/{name}" for name in inner], pa.string())}


def _pairs(names: dict[str, pa.Array]) -> list[tuple[str, str]]:
    images = names["image"].to_pylist()
    return list(zip(images, names["key"].to_pylist() if "key" in names else [""] * len(images), strict=True))


def _cast(made: dict[str, pa.Array], field: pa.Field, rows: int) -> pa.Array:
    return made[field.name].cast(field.type) if field.name in made else pa.nulls(rows, field.type)


def _is_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
