"""A scores table in short, part by part, so that memory does not grow with the table."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ageray import schema
from ageray.errors import UserError
from ageray.score import tables, tars
from ageray.score.chunks import error_kind, first_rows
from ageray.stages.read_ahead import read_ahead

OLDEST = 120
"""Last year of `Digest.ages`, which counts all older faces too."""

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


Row = dict[str, Any]


@dataclass(frozen=True)
class Digest:
    """A scores table in short, or a part of it.

    errors: how often each kind occurs. ages: number of faces of each age, rounded, 0 to OLDEST.
    failures: the first 200 photos by name that gave no face, and why. drawn: up to 60 photos of
    those that could be decoded, picked by a hash of their names, with their rows in the order of
    their faces.
    """

    images: int = 0
    faces: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    ages: NDArray[np.int64] = field(default_factory=lambda: np.zeros(OLDEST + 1, np.int64))
    failures: list[tuple[Photo, str]] = field(default_factory=list)
    drawn: dict[Photo, list[Row]] = field(default_factory=dict)

    def merge(self, other: Digest) -> Digest:
        """The digest of both tables together. No photo may be in both with different faces."""
        drawn = self.drawn | other.drawn
        return Digest(
            self.images + other.images,
            self.faces + other.faces,
            self.errors + other.errors,
            self.ages + other.ages,
            heapq.nsmallest(_MAX_FAILURES, self.failures + other.failures),
            {photo: drawn[photo] for photo in _draw(drawn)},
        )


def digest_of(rows: pa.Table) -> Digest:
    """The digest of a table of scores. Each photo has all of its rows there."""
    years = rows.column("age").drop_null().to_numpy()
    ages = np.bincount(np.clip(np.rint(years), 0, OLDEST).astype(int), minlength=OLDEST + 1)
    first = first_rows(rows)
    photos = _photos(first)
    errors, failures, decoded = Counter[str](), [], set()
    for photo, error in zip(photos, first.column("error").to_pylist(), strict=True):
        if error is not None:
            errors[error_kind(error)] += 1
            failures.append((photo, error))
        if error in (None, schema.NO_FACE):
            decoded.add(photo)
    failures = heapq.nsmallest(_MAX_FAILURES, failures)
    return Digest(first.num_rows, len(years), errors, ages, failures, _rows_of(rows, _draw(decoded)))


def _photos(rows: pa.Table) -> list[Photo]:
    keys, images = rows.column("key").to_pylist(), rows.column("image").to_pylist()
    return list(map(Photo.of_row, keys, images))


def _draw(photos: Iterable[Photo]) -> list[Photo]:
    """Up to 60 photos. The file's hash comes first, so that photos of shards are drawn from few
    shards.
    """

    def order(photo: Photo) -> tuple[bytes, bytes, Photo]:
        return _hash(photo.file), _hash(photo.name), photo

    return heapq.nsmallest(_MAX_DRAWN, photos, order)


def _rows_of(table: pa.Table, photos: Collection[Photo]) -> dict[Photo, list[Row]]:
    """The rows of scores of these photos, each photo's in the order of its faces."""
    images = pa.array(sorted({photo.image for photo in photos}), pa.string())
    rows: dict[Photo, dict[int, Row]] = {photo: {} for photo in photos}
    columns = table.select(schema.SCORES.names)
    for row in columns.filter(pc.is_in(columns.column("image"), images)).to_pylist():
        photo = Photo.of_row(row["key"], row["image"])
        if photo in rows:
            rows[photo][row["face"]] = row
    return {photo: [row for _, row in sorted(faces.items())] for photo, faces in rows.items()}


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


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
