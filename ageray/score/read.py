"""A collection looked through once, without its photos' bytes, and the reading of its tables and tars, lot by lot."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ageray.errors import UserError
from ageray.score import chunks, tables, tars
from ageray.score.chunks import Segment
from ageray.score.inputs import Collection
from ageray.score.tables import Columns
from ageray.stages import labels
from ageray.stages.detect import PHOTO
from ageray.storage import READERS

STRETCH = pa.schema(
    [
        pa.field("number", pa.int64()),
        pa.field("uri", pa.string()),
        pa.field("group", pa.int64()),
        pa.field("first", pa.int64()),
        pa.field("done", pa.list_(pa.int64())),
    ]
)


class InputSummary(NamedTuple):
    """What there is to do. photos: how many (None: only reading the tars would tell). weight: their shares of the work together (see
    `lots.CHUNK_OF_PHOTO_SCHEMA`). names: a hash that changes with the photos' places or the files' sizes. stretches: of tables and tars."""

    photos: int | None
    weight: int
    names: str
    stretches: list[Segment]


def survey(collection: Collection) -> InputSummary:
    """Looks through a collection. Raises UserError if it has no photo, or a file that cannot be used: nothing is then begun."""
    if collection.lists_files:
        found = _survey_places(collection)
    elif collection.kind == "tars":
        with ThreadPoolExecutor(READERS) as pool:
            sizes = list(pool.map(tars.check, collection.files))
        stretches = [Segment(number, uri) for number, uri in enumerate(collection.files)]
        names = _hash(f"{uri} {size}" for uri, size in zip(collection.files, sizes, strict=True))
        return InputSummary(None, sum(sizes), names, stretches)
    else:
        found = _survey_tables(collection)
    if not found.photos:
        raise UserError(f"{collection.uri}: names no photo; check the path")
    return found


def read_segments(rows: pa.Table, columns: Columns | None) -> Iterator[pa.Table]:
    """The lots of stretches (rows of STRETCH) that are not done: PHOTO with CHUNK_OF_PHOTO_SCHEMA. columns: of tables; None reads tars."""
    for row in rows.to_pylist():
        stretch = Segment(**row)
        if columns is None:
            yield from _read_tar(stretch)
        else:
            yield from chunks.cut(
                tables.photos(stretch.uri, stretch.group, stretch.first, columns),
                stretch.number,
                set(stretch.done),
            )


def _survey_places(collection: Collection) -> InputSummary:
    seen, photos = hashlib.sha256(), 0
    for table in collection.places():
        photos += table.num_rows
        seen.update("\n".join(table.column("image").to_pylist()).encode() + b"\n")
    return InputSummary(photos, photos, seen.hexdigest()[:16], [])


def _survey_tables(collection: Collection) -> InputSummary:
    with ThreadPoolExecutor(READERS) as pool:
        footers = list(pool.map(partial(_footer, collection), collection.files))
    stretches: list[Segment] = []
    for uri, footer in zip(collection.files, footers, strict=True):
        first = 0
        for group in range(footer.num_row_groups):
            stretches.append(Segment(len(stretches), uri, group, first))
            first += footer.row_group(group).num_rows
    photos = sum(footer.num_rows for footer in footers)
    names = _hash(
        f"{uri} {footer.num_rows} {footer.serialized_size}"
        for uri, footer in zip(collection.files, footers, strict=True)
    )
    return InputSummary(photos, photos, names, stretches)


def _footer(collection: Collection, uri: str) -> pq.FileMetaData:
    footer, first = tables.footer(uri), collection.columns
    assert first is not None
    known = tables.columns(uri, footer.schema.to_arrow_schema())
    if (known.kind, known.image) != (first.kind, first.image) or known.wanted() != first.wanted():
        raise UserError(
            f"{uri}: is another kind of table than {collection.files[0]}; give folders with tables of one kind"
        )
    return footer


def _read_tar(stretch: Segment) -> Iterator[pa.Table]:
    """A lot is given once the next one has begun: only then is it known not to be the last."""
    members: list[tars.Member] = []
    position = start = 0
    for member in tars.photos(stretch.uri):
        if len(members) == chunks.SIZE:
            if position not in stretch.done:
                yield _lot(stretch, position, members, start, last=False)
            position, start, members = position + 1, members[-1].end, []
        members.append(member)
    if members and position not in stretch.done:
        yield _lot(stretch, position, members, start, last=True)


def _lot(stretch: Segment, position: int, members: list[tars.Member], start: int, last: bool) -> pa.Table:
    rows = [
        {
            "image": f"{stretch.uri}/{member.name}" if member.name else stretch.uri,
            "content": member.content if isinstance(member.content, bytes) else None,
            "problem": str(member.content) if isinstance(member.content, UserError) else None,
        }
        for member in members
    ]
    ends = [start, *(member.end for member in members)]
    table = pa.Table.from_pylist(rows, schema=PHOTO)
    for name, column in chunks.labels(
        stretch.number, position, [b - a for a, b in pairwise(ends)], last
    ).items():
        table = table.append_column(labels.CHUNK_OF_PHOTO_SCHEMA.field(name), column)
    return table


def _hash(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def segment_table(stretches: list[Segment]) -> pa.Table:
    """Rows of STRETCH."""
    return pa.Table.from_pylist([stretch._asdict() for stretch in stretches], schema=STRETCH)
