"""Reading a scores folder again, in batches of the columns needed, so that memory does not grow
with the table.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ageray import schema, storage
from ageray.errors import UserError
from ageray.score import tables, tars
from ageray.score.chunks import error_kind, first_rows
from ageray.stages.detect import read_ahead

OLDEST = 120
"""Last year of `Digest.ages`, which counts all older faces too."""

_ROWS = 65_536
_MAX_DRAWN = 60
_MAX_FAILURES = 200
_CONTAINERS = (".tar/", ".parquet/")


class Photo(NamedTuple):
    """A photo as its rows name it: `image` and, for a row of a face shard, its key."""

    image: str
    key: str = ""

    @classmethod
    def of_row(cls, key: str, image: str) -> Photo:
        """The photo of a row of scores."""
        return cls(image, key if image.endswith(".parquet") else "")

    @property
    def name(self) -> str:
        """The name to show."""
        return self.key or self.image

    @property
    def file(self) -> str:
        """The file with the photo's bytes: a shard, the tar or table in front of the photo's name,
        or the photo itself.
        """
        if self.key:
            return self.image
        for ending in _CONTAINERS:
            start = self.image.rfind(ending)
            if start > 0:
                return self.image[: start + len(ending) - 1]
        return self.image


@dataclass(frozen=True)
class Digest:
    """A scores table in short.

    errors: how often each kind occurs. ages: number of faces of each age, rounded, 0 to OLDEST.
    failures: the first 200 photos by name that gave no face, and why. drawn: up to 60 photos of
    those that could be decoded, picked by a hash of their names.
    """

    images: int
    faces: int
    errors: Counter[str]
    ages: NDArray[np.int64]
    failures: list[tuple[Photo, str]]
    drawn: list[Photo]


def read_scores(folder: str) -> Digest:
    """The digest of the .parquet files of a folder."""
    images, faces, errors = 0, 0, Counter[str]()
    ages = np.zeros(OLDEST + 1, np.int64)
    failures: list[tuple[Photo, str]] = []
    drawn: list[tuple[bytes, bytes, Photo]] = []
    for batch in _batches(folder, ["key", "image", "face", "age", "error"]):
        years = batch.column("age").drop_null().to_numpy()
        faces += len(years)
        ages += np.bincount(np.clip(np.rint(years), 0, OLDEST).astype(int), minlength=OLDEST + 1)
        first = first_rows(batch)
        images += first.num_rows
        photos = list(map(Photo.of_row, first.column("key").to_pylist(), first.column("image").to_pylist()))
        candidates = set(drawn)
        for photo, error in zip(photos, first.column("error").to_pylist(), strict=True):
            if error is not None:
                errors[error_kind(error)] += 1
                failures.append((photo, error))
            if error in (None, schema.NO_FACE):
                # The file's hash comes first, so that photos of shards are drawn from few shards.
                candidates.add((_hash(photo.file), _hash(photo.name), photo))
        failures = heapq.nsmallest(_MAX_FAILURES, failures)
        drawn = heapq.nsmallest(_MAX_DRAWN, candidates)
    return Digest(images, faces, errors, ages, failures, [photo for _, _, photo in drawn])


def rows_of(folder: str, photos: Collection[Photo]) -> dict[Photo, list[dict[str, Any]]]:
    """The rows of scores of these photos, each photo's in the order of its faces."""
    images = pa.array(sorted({photo.image for photo in photos}), pa.string())
    rows: dict[Photo, dict[int, dict[str, Any]]] = defaultdict(dict)
    for batch in _batches(folder, schema.SCORES.names):
        for row in batch.filter(pc.is_in(batch.column("image"), images)).to_pylist():
            rows[Photo.of_row(row["key"], row["image"])][row["face"]] = row
    return {photo: [row for _, row in sorted(rows[photo].items())] for photo in photos}


def contents(photos: Collection[Photo]) -> Iterator[tuple[Photo, bytes]]:
    """The encoded photos, a few in memory at a time. One that can no longer be read is left out."""
    files = [photo for photo in photos if not photo.key]
    inside: dict[str, set[Photo]] = defaultdict(set)
    for photo in photos:
        if photo.key:
            inside[photo.file].add(photo)
    for photo, content in zip(files, read_ahead([photo.image for photo in files]), strict=True):
        if isinstance(content, bytes):
            yield photo, content
        elif photo.file != photo.image:
            inside[photo.file].add(photo)
    for container, members in inside.items():
        with suppress(UserError):
            yield from _read_members(container, members)


def _read_members(container: str, photos: set[Photo]) -> Iterator[tuple[Photo, bytes]]:
    """Photos out of one tar or table."""
    if container.endswith(".tar"):
        by_name = {photo.image[len(container) + 1 :]: photo for photo in photos}
        for name, content in tars.pick(container, set(by_name)):
            yield by_name[name], content
        return
    for pair, content in tables.pick(container, set(photos)):
        yield Photo(*pair), content


def _batches(folder: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    for file in storage.list_files(folder, (".parquet",)):
        filesystem, path = storage.filesystem(file)
        with pq.ParquetFile(path, filesystem=filesystem) as part:
            yield from part.iter_batches(_ROWS, columns=columns)


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
