"""Looking through the inputs before a run, without reading photos; and reading tables and tars,
chunk by chunk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ageray.errors import UserError
from ageray.score import chunks, tables, tars
from ageray.score.chunks import Segment
from ageray.score.inputs import Inputs
from ageray.score.places import Places
from ageray.score.tables import Columns
from ageray.stages.columns import PHOTO_SCHEMA
from ageray.storage import READERS

SEGMENT_SCHEMA = pa.schema(
    [
        pa.field("number", pa.int64()),
        pa.field("uri", pa.string()),
        pa.field("group", pa.int64()),
        pa.field("first", pa.int64()),
        pa.field("done", pa.list_(pa.int64())),
    ]
)
"""The fields of `Segment`."""


class InputSummary(NamedTuple):
    """What there is to score.

    photos: how many; None for tars, where that is not known before they are read.
    weight: of all photos together (see `ageray.score.chunks.CHUNK_OF_PHOTO_SCHEMA`).
    names: a hash that changes with the paths of the photos or the sizes of the files.
    segments: of tables and tars.
    places: the photos, where each is a file of its own.
    """

    photos: int | None
    weight: int
    names: str
    segments: list[Segment]
    places: Places | None = None


def scan(inputs: Inputs) -> InputSummary:
    """Looks through the inputs. Raises UserError, before any work, for no photo at all or an
    unusable file.
    """
    if inputs.kind == "tars":
        return _scan_tars(inputs)
    summary = _scan_lists(inputs) if inputs.lists_files else _scan_tables(inputs)
    if not summary.photos:
        raise UserError(f"{inputs.uri}: names no photo; check the path")
    return summary


def list_segments(places: Places, done: Mapping[int, Collection[int]]) -> Iterator[pa.Table]:
    """A row of SEGMENT_SCHEMA, without its file, for each segment of a list that has chunks to do.

    done: positions of the chunks that are done, by segment.
    """
    for number in range(len(places)):
        positions = done.get(number, ())
        if len(positions) < chunks.count(places.rows(number)):
            yield segment_table(Segment(number, "", done=tuple(positions)))


def segment_table(segment: Segment) -> pa.Table:
    """One row of SEGMENT_SCHEMA, for `read_segments`."""
    return pa.Table.from_pylist([segment._asdict()], schema=SEGMENT_SCHEMA)


def read_segments(rows: pa.Table, columns: Columns | None) -> Iterator[pa.Table]:
    """The chunks of segments that are not done: PHOTO_SCHEMA with CHUNK_OF_PHOTO_SCHEMA.

    rows: of SEGMENT_SCHEMA. columns: those of tables; None for tars.
    """
    for row in rows.to_pylist():
        segment = Segment(**row)
        if columns is None:
            yield from _read_tar(segment)
        else:
            yield from _read_group(segment, columns)


def _read_group(segment: Segment, columns: Columns) -> Iterator[pa.Table]:
    """Yields a chunk when the next one has been read, as `_read_tar` does."""
    photos = tables.batches(segment.uri, segment.group, segment.first, columns, chunks.SIZE)
    current = next(photos, None)
    position = 0
    while current is not None:
        following = next(photos, None)
        if position not in segment.done:
            weights = [1] * current.num_rows
            yield chunks.label(current, segment.number, position, weights, last=following is None)
        position, current = position + 1, following


def _scan_lists(inputs: Inputs) -> InputSummary:
    places = inputs.list_places()
    return InputSummary(places.photos, places.photos, places.names, [], places)


def _scan_tars(inputs: Inputs) -> InputSummary:
    with ThreadPoolExecutor(READERS) as pool:
        sizes = list(pool.map(tars.check, inputs.files))
    segments = [Segment(number, uri) for number, uri in enumerate(inputs.files)]
    names = _hash(map("{} {}".format, inputs.files, sizes))
    return InputSummary(None, sum(sizes), names, segments)


def _scan_tables(inputs: Inputs) -> InputSummary:
    with ThreadPoolExecutor(READERS) as pool:
        footers = list(pool.map(partial(_footer, inputs), inputs.files))
    segments: list[Segment] = []
    lines, photos = [], 0
    for uri, footer in zip(inputs.files, footers, strict=True):
        first = 0
        for group in range(footer.num_row_groups):
            segments.append(Segment(len(segments), uri, group, first))
            first += footer.row_group(group).num_rows
        photos += footer.num_rows
        lines.append(f"{uri} {footer.num_rows} {footer.serialized_size}")
    return InputSummary(photos, photos, _hash(lines), segments)


def _footer(inputs: Inputs, uri: str) -> pq.FileMetaData:
    """A table's footer. Raises UserError if the table is of another kind than the first one."""
    footer, first = tables.footer(uri), inputs.columns
    assert first is not None
    own = tables.columns(uri, footer.schema.to_arrow_schema())
    if (own.kind, own.image, own.to_read()) != (first.kind, first.image, first.to_read()):
        raise UserError(
            f"{uri}: is another kind of table than {inputs.files[0]}; give folders with tables of one kind"
        )
    return footer


def _read_tar(segment: Segment) -> Iterator[pa.Table]:
    """Yields a chunk when the next one has begun: only then it is known not to be the last."""
    members: list[tars.Member] = []
    position = start = 0
    for member in tars.photos(segment.uri):
        if len(members) == chunks.SIZE:
            if position not in segment.done:
                yield _tar_chunk(segment, position, members, start, last=False)
            position, start, members = position + 1, members[-1].end, []
        members.append(member)
    if members and position not in segment.done:
        yield _tar_chunk(segment, position, members, start, last=True)


def _tar_chunk(
    segment: Segment, position: int, members: list[tars.Member], start: int, last: bool
) -> pa.Table:
    """The chunk of these members. start: offset of the first one; a photo weighs the bytes up to
    its end.
    """
    rows, weights = [], []
    for member in members:
        row: dict[str, object] = {"image": segment.uri}
        if member.name:
            row["image"] = f"{segment.uri}/{member.name}"
        if isinstance(member.content, bytes):
            row["content"] = member.content
        else:
            row["problem"] = str(member.content)
        rows.append(row)
        weights.append(member.end - start)
        start = member.end
    photos = pa.Table.from_pylist(rows, schema=PHOTO_SCHEMA)
    return chunks.label(photos, segment.number, position, weights, last)


def _hash(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]
