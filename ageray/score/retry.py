"""`--retry-errors`: the photos of a complete result that failed are tried again, and no others.

The result becomes an unfinished run again: its rows go to pieces, and those of photos to try again
are marked as unavailable, which a resumed run scores (`ageray.score.checkpoint`). What comes of it
replaces the result as a whole. Its other rows are the same as before, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ageray import config, schema, storage
from ageray.errors import UserError
from ageray.schema import UNAVAILABLE
from ageray.score import chunks
from ageray.score.checkpoint import ScoreCheckpoint, read_json
from ageray.score.chunks import error_kind
from ageray.score.files import ScoreFiles
from ageray.score.join import Join, as_made
from ageray.storage.errors import explained

MARK = "retry_errors"
"""The entry of such a run's plan."""

_ANSWERS = (schema.NO_FACE, "no landmarks", schema.UNSURE)
"""Kinds of errors that the same program and model would give again."""


def check(checkpoint: ScoreCheckpoint, out: str, plan: dict[str, Any]) -> dict[str, Any]:
    """The summary of the result in `out`.

    plan: of the same command without --retry-errors. Raises UserError if there is no complete
    result of this plan, or an unfinished run of another kind.
    """
    files = checkpoint.files
    summary = read_json(files.summary) or read_json(files.earlier_summary)
    if summary is None or storage.half_written(files.folder):
        raise UserError(f"--retry-errors: {out} holds no complete result; leave --retry-errors out")
    before = summary.get("plan") or {}
    if before.get("format", "parquet") != "parquet":
        raise UserError(f"--retry-errors: the tables of {out} are no Parquet; score again with --fresh")
    if "shards" in before:
        raise UserError(f"--retry-errors: {out} was put together from shards; score again with --fresh")
    if {"code": plan["code"]} | before != plan:
        changes = "; ".join(config.differences(before, plan))
        raise UserError(f"--retry-errors: {out} is of other settings ({changes}); give those, or --fresh")
    unfinished = checkpoint.plan
    if unfinished is not None and unfinished != plan | {MARK: True}:
        raise UserError(
            f"--retry-errors: {files.unfinished} has a run of another kind; end that first, or give --fresh"
        )
    return summary


def count(files: ScoreFiles) -> int:
    """Photos of a complete result that are to be tried again."""
    total = 0
    for batch in _batches([files.errors], ["face", "error"]):
        total += int(np.count_nonzero(_to_try(batch)))
    return total


def rows_of(
    checkpoint: ScoreCheckpoint, segments: Iterable[pa.Table], join: Join | None = None
) -> Iterator[pa.Table]:
    """The rows of the result, with the columns of chunks, in the order of the input: of each
    segment those whose chunks are in no piece yet. They are as the stages made them, without what
    `join` changed and added.

    segments: the photos of the whole input. Raises UserError if the rows are not those of the
    input.
    """
    files = checkpoint.files
    parts = storage.list_files(files.folder, (".parquet",))
    faces = _Rows(_batches([uri for uri in parts if uri != files.errors]))
    errors = _Rows(_batches([files.errors]))
    for number, photos in enumerate(segments):
        written = photos.column("image").to_pylist()
        if join is not None:
            written = join.written(photos.column("image"), number).to_pylist()
        tables = [_labelled(rows.take(photos, written), photos, number) for rows in (errors, faces)]
        rows = _with_siblings(pa.concat_tables(tables))
        if len(np.unique(chunks.photo_ids(rows))) != photos.num_rows:
            raise _other_rows(files)
        missing = [chunk not in checkpoint.done for chunk in rows.column("lot").to_pylist()]
        yield rows.filter(pa.array(missing, pa.bool_()))
    if not (faces.is_at_end() and errors.is_at_end()):
        raise _other_rows(files)


class _Rows:
    """Rows of a result, from front to back."""

    def __init__(self, batches: Iterator[pa.Table]) -> None:
        self._batches = batches
        self._rest: pa.Table | None = None

    def take(self, photos: pa.Table, written: list[str]) -> tuple[pa.Table | None, list[int]]:
        """The next rows that are of `photos`, and the number of each row's photo.

        written: what the result calls the photos, if an earlier version did not write it.
        """
        numbers: list[int] = []
        images, faces = self._columns(0)
        for number, names in enumerate(zip(photos.column("image").to_pylist(), written, strict=True)):
            face = -2
            while True:
                if len(numbers) == len(images) and not self._read(images, faces):
                    break
                place = len(numbers)
                # a photo of face -1 has no further row; a smaller number is of another photo
                if images[place] not in names or faces[place] <= face or face == -1:
                    break
                face = faces[place]
                numbers.append(number)
        if self._rest is None:
            return None, numbers
        rows = self._rest.slice(0, len(numbers))
        self._rest = self._rest.slice(len(numbers))
        return rows, numbers

    def is_at_end(self) -> bool:
        """Whether all rows were taken."""
        return not (self._rest is not None and self._rest.num_rows) and not self._read([], [])

    def _read(self, images: list[str], faces: list[int]) -> bool:
        """Reads further rows; their columns are added to the lists."""
        batch = next(self._batches, None)
        if batch is None:
            return False
        before = 0 if self._rest is None else self._rest.num_rows
        self._rest = batch if self._rest is None else pa.concat_tables([self._rest, batch])
        more = self._columns(before)
        images += more[0]
        faces += more[1]
        return bool(more[0]) or self._read(images, faces)

    def _columns(self, start: int) -> tuple[list[str], list[int]]:
        if self._rest is None:
            return [], []
        rows = self._rest.slice(start)
        return rows.column("image").to_pylist(), rows.column("face").to_pylist()


def _labelled(taken: tuple[pa.Table | None, list[int]], photos: pa.Table, segment: int) -> pa.Table:
    """Rows with CHUNK_OF_PHOTO_SCHEMA; those of photos to try again are marked."""
    rows, numbers = taken
    if rows is None:
        rows = schema.SCORES.empty_table()
    own = (*schema.SCORES.names, schema.POSTERIOR.name)
    rows = _marked(rows.select([name for name in rows.column_names if name in own]))
    rows = as_made(rows, photos.column("image").take(pa.array(numbers, pa.int64())))
    number = np.array(numbers, np.int64)
    position = number // chunks.SIZE
    last = chunks.count(photos.num_rows) - 1
    columns = {
        "lot": chunks.chunk_id(segment, 0) + position,
        "photo": number % chunks.SIZE,
        "photos": np.minimum(photos.num_rows - position * chunks.SIZE, chunks.SIZE),
        "last": position == last,
        "weight": np.ones(len(number), np.int64),
    }
    for field in chunks.CHUNK_OF_PHOTO_SCHEMA:
        rows = rows.append_column(field, pa.array(columns[field.name], field.type))
    return rows


def _marked(rows: pa.Table) -> pa.Table:
    """Rows whose error is `unavailable` where the photo is to be tried again."""
    texts = rows.column("error").to_pylist()
    for place in np.flatnonzero(_to_try(rows)).tolist():
        texts[place] = f"{UNAVAILABLE}: {texts[place].removeprefix(f'{UNAVAILABLE}: ')}"
    index = rows.column_names.index("error")
    return rows.set_column(index, rows.schema.field("error"), pa.array(texts, pa.string()))


def _to_try(rows: pa.Table) -> NDArray[np.bool_]:
    """Which rows are of photos that failed as a whole."""
    kinds = [error_kind(error or _ANSWERS[0]) for error in rows.column("error").to_pylist()]
    is_failure = np.array([kind not in _ANSWERS for kind in kinds], np.bool_)
    return np.asarray(is_failure & (rows.column("face").to_numpy() == -1), np.bool_)


def _with_siblings(rows: pa.Table) -> pa.Table:
    """The rows with SIBLINGS: how many rows the photo of each has."""
    _, places, counts = np.unique(chunks.photo_ids(rows), return_inverse=True, return_counts=True)
    field = chunks.CHUNK_OF_ROW_SCHEMA.field("siblings")
    return rows.append_column(field, pa.array(counts[places], field.type))


def _batches(uris: Iterable[str], columns: list[str] | None = None) -> Iterator[pa.Table]:
    for uri in uris:
        filesystem, path = storage.filesystem(uri)
        with explained(uri), pq.ParquetFile(path, filesystem=filesystem) as file:
            for batch in file.iter_batches(columns=columns):
                yield pa.Table.from_batches([batch]).replace_schema_metadata(None)


def _other_rows(files: ScoreFiles) -> UserError:
    return UserError(
        f"--retry-errors: the rows in {files.folder} are not those of INPUT; score again with --fresh"
    )
