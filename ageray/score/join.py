"""Rows of a result that join back to the input: places as the user wrote them, the input's own ids
as keys, and its other columns.

A row of a piece tells which row of the input it is of, by its segment and its number there
(`ageray.score.chunks`). So nothing of this travels through the stages or lies in pieces, and runs
that were begun before have it too. Whoever writes a part takes the other columns from where they
lie, a segment at a time: those of manifests from the list of photos, those of tables from their
files.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ageray import storage
from ageray.errors import UserError, one_line
from ageray.score import chunks, manifest, tables
from ageray.score.chunks import Segment
from ageray.score.inputs import Inputs
from ageray.score.manifest import WRITTEN_FROM
from ageray.score.places import Places
from ageray.score.read import InputSummary
from ageray.storage import READERS

_ROWS = 8192
_NO_FIELDS = pa.schema([])


class Source(Protocol):
    """Where rows of the input can be had."""

    def rows(self, segment: int, start: int, end: int) -> pa.Table:
        """Rows `start` to before `end` of a segment, with the columns of `Join.fields`."""

    def part(self, first: int, last: int) -> Source:
        """What has the segments `first` to `last`, for another process."""


@dataclass(frozen=True)
class Join:
    """How rows of scores become rows that join back.

    roots: what the user wrote, by the uri with which names of photos begin.
    keeps_keys: whether keys are the input's already, as those of face shards.
    fields: the other columns, as the result has them. own_id: the one with the input's ids.
    """

    roots: dict[str, str]
    keeps_keys: bool = False
    fields: pa.Schema = _NO_FIELDS
    own_id: str | None = None
    source: Source | None = None

    def for_part(self, first: int, last: int) -> Join:
        """The same for another process. first, last: ids of the first and last chunk there."""
        if self.source is None:
            return self
        start, end = chunks.split_chunk_id(first)[0], chunks.split_chunk_id(last)[0]
        return replace(self, source=self.source.part(start, end))

    def written(self, images: pa.ChunkedArray, segment: int) -> pa.ChunkedArray:
        """What the user wrote for all photos of a segment. images: their uris."""
        own = None if self.source is None else self.source.rows(segment, 0, len(images))
        return self._written(images, own)

    def _written(self, images: pa.ChunkedArray, own: pa.Table | None) -> pa.ChunkedArray:
        if own is not None and WRITTEN_FROM in own.column_names:
            return _without_start(images, own.column(WRITTEN_FROM))
        return _as_written(images, self.roots)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Rows with `image` as the user wrote it, `key` after it, and `fields` behind.

        rows: of scores and of CHUNK_OF_ROW_SCHEMA, in the order of their chunks. If the input has
        an id, that is the key of a photo's leftmost face or of its error; further faces have
        `ID#1`, `ID#2`.
        """
        own = None if self.source is None else _own_rows(self.source, rows)
        images = self._written(rows.column("image"), own)
        keys = rows.column("key") if self.keeps_keys else _keys(images, rows)
        if own is not None and self.own_id is not None:
            keys = _keys_of_ids(keys, rows.column("face"), own.column(self.own_id).cast(pa.string()))
        rows = _with(_with(rows, "image", images), "key", keys)
        rows = rows.drop_columns(chunks.CHUNK_OF_ROW_SCHEMA.names)
        for field in self.fields:
            assert own is not None
            rows = rows.append_column(field, manifest.typed(own.column(field.name), field.type))
        return rows


def as_made(rows: pa.Table, images: pa.ChunkedArray) -> pa.Table:
    """Rows of a result as the stages made them. images: the uri of each row's photo. The keys must
    be those of photos.
    """
    return _with(_with(rows, "image", images), "key", _keys(images, rows))


def of_run(inputs: Inputs, summary: InputSummary) -> Join | None:
    """How the rows of a run join back; None if they do as they are.

    Raises UserError if a table cannot be read.
    """
    roots = {uri: written for uri, written in inputs.roots.items() if uri != written}
    if inputs.manifests is not None:
        assert summary.places is not None
        kinds = inputs.manifests.kinds
        return Join({}, False, kinds, manifest.own_id(kinds), _ListRows(summary.places))
    if inputs.kind == "photo table":
        source = _GroupRows.of_files(inputs.files, summary.segments)
        return Join(roots, False, source.fields, manifest.own_id(source.fields), source)
    if inputs.kind == "face shards":
        source = _GroupRows.of_files(inputs.files, summary.segments)
        return Join(roots, True, source.fields, None, source)
    return Join(roots) if roots else None


# --- where the rows are --------------------------------------------------------------------------


class _ListRows:
    """Rows of manifests, as the list of their photos has them."""

    def __init__(self, places: Places) -> None:
        self._places = places

    def rows(self, segment: int, start: int, end: int) -> pa.Table:
        """See Source."""
        return self._places.whole_segment(segment).slice(start, end - start)

    def part(self, first: int, last: int) -> Source:
        """See Source. The rows themselves: no other machine sees the list."""
        return _RowsInMemory(
            {number: self._places.whole_segment(number) for number in range(first, last + 1)}
        )


class _RowsInMemory(NamedTuple):
    """Rows by their segment."""

    segments: dict[int, pa.Table]

    def rows(self, segment: int, start: int, end: int) -> pa.Table:
        """See Source."""
        return self.segments[segment].slice(start, end - start)

    def part(self, first: int, last: int) -> Source:
        """See Source."""
        return self


class _GroupRows(NamedTuple):
    """Rows of tables of photos, read from their files; segments are row groups."""

    fields: pa.Schema
    segments: dict[int, Segment]

    @classmethod
    def of_files(cls, files: list[str], segments: list[Segment]) -> _GroupRows:
        """Raises UserError if a file cannot be read."""
        with ThreadPoolExecutor(READERS) as pool:
            schemas = list(pool.map(_file_schema, files))
        others = [_others(file, own) for file, own in zip(files, schemas, strict=True)]
        return cls(manifest.unified(others), {segment.number: segment for segment in segments})

    def part(self, first: int, last: int) -> Source:
        """See Source."""
        return self._replace(segments={number: self.segments[number] for number in range(first, last + 1)})

    def rows(self, segment: int, start: int, end: int) -> pa.Table:
        """See Source."""
        uri, group = self.segments[segment].uri, self.segments[segment].group
        batches: list[pa.Table] = []
        first = 0
        for batch in _read_group(uri, group):
            place, stop = max(0, start - first), max(0, end - first)
            batches.append(manifest.checked(batch[place:stop], self.fields, uri))
            first += batch.num_rows
            if first >= end:
                break
        return pa.concat_tables(batches)


def _file_schema(uri: str) -> pa.Schema:
    return tables.footer(uri).schema.to_arrow_schema()


def _other_names(uri: str, own: pa.Schema) -> dict[str, str]:
    """The columns that a result takes over, each with the name that it gets there.

    Those are all but the photos; of face shards, all but the key and what tells where the face is.
    """
    columns = tables.columns(uri, own)
    names = dict(
        zip(own.names, manifest.result_names(own.names, own.names.index(columns.image)), strict=True)
    )
    left_out = columns.to_read() if columns.kind == "face shards" else [columns.image]
    for name in left_out:
        del names[name]
    return names


def _others(uri: str, own: pa.Schema) -> pa.Schema:
    """The columns of a table of photos that a result takes over, as it has them."""
    fields = []
    for name, result in _other_names(uri, own).items():
        fields.append(pa.field(result, manifest.plain_type(own.field(name).type)))
    return pa.schema(fields)


def _read_group(uri: str, group: int) -> Iterator[pa.Table]:
    """A row group without its photos, under the names that its columns get."""
    filesystem, path = storage.filesystem(uri)
    try:
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            by_name = _other_names(uri, file.schema_arrow)
            for batch in file.iter_batches(_ROWS, [group], list(by_name)):
                yield pa.table(batch.columns, [by_name[name] for name in batch.schema.names])
    except (pa.ArrowException, OSError) as error:
        remedy = "write it again, then run the command again"
        raise UserError(f"{uri}: cannot be read ({one_line(error)}); {remedy}") from None


# --- rows ----------------------------------------------------------------------------------------


def _own_rows(source: Source, rows: pa.Table) -> pa.Table:
    """The input's row of each row."""
    segment_N, number_N = chunks.places_of(rows)
    starts = np.flatnonzero(np.diff(segment_N, prepend=-1))
    own = []
    for start, end in zip(starts, [*starts[1:], len(segment_N)], strict=True):
        numbers: NDArray[np.int64] = number_N[start:end]
        first = int(numbers.min())
        table = source.rows(int(segment_N[start]), first, int(numbers.max()) + 1)
        own.append(table.take(pa.array(numbers - first)))
    return pa.concat_tables(own)


def _with(rows: pa.Table, name: str, values: pa.ChunkedArray) -> pa.Table:
    return rows.set_column(rows.column_names.index(name), rows.schema.field(name), values)


def _keys(images: pa.ChunkedArray, rows: pa.Table) -> pa.ChunkedArray:
    """`image#face`, as the stages make it."""
    return pc.binary_join_element_wise(images, rows.column("face").cast(pa.string()), "#")


def _keys_of_ids(keys: pa.ChunkedArray, faces: pa.ChunkedArray, ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """ID, or `ID#face` from the second face on; the key as it is where the input has no id."""
    numbered = pc.binary_join_element_wise(ids, faces.cast(pa.string()), "#")
    own = pc.if_else(pc.greater(faces, 0), numbered, ids)
    missing = pc.or_kleene(pc.is_null(ids), pc.equal(ids, ""))
    return pc.if_else(missing, keys, own)


def _without_start(images: pa.ChunkedArray, starts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts without their first `starts` characters."""
    written = images
    for start in pc.unique(starts).to_pylist():
        if start:
            written = pc.if_else(pc.equal(starts, start), pc.utf8_slice_codeunits(images, start), written)
    return written


def _as_written(images: pa.ChunkedArray, roots: dict[str, str]) -> pa.ChunkedArray:
    """Names of photos with what the user wrote in the place of the uri with which they begin."""
    if not roots:
        return images
    lengths = sorted({len(uri) for uri in roots}, reverse=True)
    values = [_replaced(image, roots, lengths) for image in images.to_pylist()]
    return pa.chunked_array([pa.array(values, pa.string())])


def _replaced(image: str, roots: dict[str, str], lengths: list[int]) -> str:
    """`image` with the longest root that it begins with replaced."""
    for length in lengths:
        written = roots.get(image[:length])
        if written is not None and image[length : length + 1] in ("", "/"):
            return written + image[length:]
    return image
