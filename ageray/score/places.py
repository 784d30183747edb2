"""The photos of a list or a folder, in segments, with memory that does not grow with their number.

The list is made once, while the input is listed. The first segments stay in memory. A longer list
goes to a file of this machine's temporary folder, compressed (about 10 bytes a photo).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa

SEGMENT_PATHS = 8192
"""Photos of a list that make one segment (see `ageray.score.chunks`)."""

_IN_MEMORY = 16  # segments
_BYTES_IN_MEMORY = 64 * 2**20
_PHOTOS = ["image"]


class Places:
    """A list of photos: tables with the column `image` (uris) first, and maybe further columns,
    which only `whole_segment` gives.

    photos: how many. names: a hash that changes with the uris.
    """

    def __init__(self, tables: Iterable[pa.Table]) -> None:
        """Reads all tables. They have one schema, and any number of rows."""
        self.photos = 0
        self._segments: list[pa.Table] = []
        self._file: _SegmentFile | None = None
        self._whole: SegmentReader | None = None
        names = hashlib.sha256()
        for segment in in_segments(tables):
            self.photos += segment.num_rows
            names.update("\n".join(segment.column("image").to_pylist()).encode() + b"\n")
            self._segments.append(segment)
            size = sum(each.nbytes for each in self._segments)
            if len(self._segments) > _IN_MEMORY or size > _BYTES_IN_MEMORY:
                self._to_file()
        if self._file is not None:
            self._to_file()
            self._file.close()
        self.names = names.hexdigest()[:16]

    @property
    def file(self) -> str | None:
        """The file that `read_segment` takes; None if the list is in memory."""
        return None if self._file is None else self._file.path

    def __len__(self) -> int:
        """Number of segments."""
        return -(-self.photos // SEGMENT_PATHS)

    def rows(self, number: int) -> int:
        """Photos of a segment."""
        return min(SEGMENT_PATHS, self.photos - number * SEGMENT_PATHS)

    def segments(self) -> Iterator[pa.Table]:
        """The photos' uris, in tables of SEGMENT_PATHS rows; the last one has the rest."""
        if self._file is None:
            for segment in self._segments:
                yield segment.select(_PHOTOS)
            return
        with SegmentReader(self._file.path) as reader:
            for number in range(len(self)):
                yield reader.read(number)

    def whole_segment(self, number: int) -> pa.Table:
        """A segment with all of its columns."""
        if self._file is None:
            return self._segments[number]
        if self._whole is None:
            self._whole = SegmentReader(self._file.path, further=True)
        return self._whole.read(number)

    def part(self, start: int, end: int) -> Places:
        """The segments from `start` to before `end`, as a list of their own."""
        return Places(map(self.whole_segment, range(start, end)))

    def take(self, numbers: Iterable[int]) -> pa.Table:
        """The photos of these numbers, in ascending order."""
        rows = []
        reader = None if self._file is None else SegmentReader(self._file.path)
        for segment, own in groupby(sorted(numbers), lambda number: number // SEGMENT_PATHS):
            table = self._segments[segment] if reader is None else reader.read(segment)
            rows.append(table.select(_PHOTOS).take([number % SEGMENT_PATHS for number in own]))
        return pa.concat_tables(rows)

    def _to_file(self) -> None:
        if self._file is None:
            self._file = _SegmentFile(self._segments[0].schema)
        for segment in self._segments:
            self._file.write(segment)
        self._segments = []


class SegmentReader:
    """The segments of a list in a file: the photos' uris, and with `further` the other columns."""

    def __init__(self, path: str, further: bool = False) -> None:
        self._source = pa.memory_map(path)
        options = pa.ipc.IpcReadOptions(included_fields=None if further else [0])
        self._file = pa.ipc.open_file(self._source, options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._source.close()

    def read(self, number: int) -> pa.Table:
        """The segment of this number."""
        return pa.Table.from_batches([self._file.get_batch(number)])


class _SegmentFile:
    """A temporary file, removed with this object. Each batch in it is a segment."""

    def __init__(self, schema: pa.Schema) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ageray-places-")
        self.path = str(Path(self._folder.name, "places.arrow"))
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        self._writer = pa.ipc.new_file(self.path, schema, options=options)

    def write(self, segment: pa.Table) -> None:
        [batch] = segment.combine_chunks().to_batches()
        self._writer.write_batch(batch)

    def close(self) -> None:
        self._writer.close()


def in_segments(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The rows of `tables` in tables of SEGMENT_PATHS rows, and one of the rest."""
    waiting: list[pa.Table] = []
    rows = 0
    for table in tables:
        waiting.append(table)
        rows += table.num_rows
        if rows < SEGMENT_PATHS:
            continue
        whole = pa.concat_tables(waiting)
        end = rows - rows % SEGMENT_PATHS
        for start in range(0, end, SEGMENT_PATHS):
            yield whole.slice(start, SEGMENT_PATHS).combine_chunks()
        waiting, rows = [whole.slice(end)], rows - end
    if rows:
        yield pa.concat_tables(waiting).combine_chunks()
