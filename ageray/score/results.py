"""Reading a folder of scores again, in batches of the columns needed, so that memory does not grow with the table."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
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

OLDEST = 120
"""Last year of `Digest.ages`; it counts the older ones too."""

_ROWS = 65_536
_DRAWN = 60
_LISTED = 200
_READERS = 8
_HOLDERS = (".tar/", ".parquet/")


class Photo(NamedTuple):
    """Names a photo as its rows do: `image` and, for a row of a face shard, its key."""

    image: str
    key: str = ""

    @classmethod
    def of(cls, key: str, image: str) -> Photo:
        """The photo of a row of scores."""
        return cls(image, key if image.endswith(".parquet") else "")

    @property
    def name(self) -> str:
        """For a reader."""
        return self.key or self.image

    @property
    def file(self) -> str:
        """The file that holds the photo, if it is none itself: the image of a row of a table or tar is that file's uri with a name added."""
        if self.key:
            return self.image
        return next(
            (self.image[: at + len(end) - 1] for end in _HOLDERS if (at := self.image.rfind(end)) > 0),
            self.image,
        )


@dataclass(frozen=True)
class Digest:
    """What a table of scores amounts to.

    errors: how often each kind occurs. ages: faces of each age, rounded, 0 to OLDEST. failures: the first 200 photos
    by name that gave no face, and why. drawn: up to 60 photos of those that could be decoded, picked by hashed name.
    """

    images: int
    faces: int
    errors: Counter[str]
    ages: NDArray[np.int64]
    failures: list[tuple[Photo, str]]
    drawn: list[Photo]


def read_scores(folder: str) -> Digest:
    """Digest of the .parquet files of a folder."""
    images, faces, errors = 0, 0, Counter[str]()
    ages = np.zeros(OLDEST + 1, np.int64)
    failures: list[tuple[Photo, str]] = []
    drawn: list[tuple[bytes, bytes, Photo]] = []
    for batch in _batches(folder, ["key", "image", "face", "age", "error"]):
        years = batch.column("age").drop_null().to_numpy()
        faces += len(years)
        ages += np.bincount(np.clip(np.rint(years), 0, OLDEST).astype(int), minlength=OLDEST + 1)
        # Every photo has just one row that is its face 0, or -1.
        first = batch.filter(pc.less_equal(batch.column("face"), 0))
        images += first.num_rows
        photos = list(map(Photo.of, first.column("key").to_pylist(), first.column("image").to_pylist()))
        reasons = first.column("error").to_pylist()
        wrong = [(photo, reason) for photo, reason in zip(photos, reasons, strict=True) if reason is not None]
        errors.update(reason.split(":")[0] for _, reason in wrong)
        failures = heapq.nsmallest(_LISTED, failures + wrong)
        # By file first: faces of shards are then drawn from one shard, and only that is read for their pictures.
        fair = (photo for photo, why in zip(photos, reasons, strict=True) if why in (None, schema.NO_FACE))
        ranked = ((_hash(photo.file), _hash(photo.name), photo) for photo in fair)
        drawn = heapq.nsmallest(_DRAWN, {*drawn, *ranked})
    return Digest(images, faces, errors, ages, failures, [photo for _, _, photo in drawn])


def rows_of(folder: str, photos: Collection[Photo]) -> dict[Photo, list[dict[str, Any]]]:
    """The rows of scores of these photos, each photo's by the number of the face."""
    images = pa.array(sorted({photo.image for photo in photos}), pa.string())
    rows: dict[Photo, dict[int, dict[str, Any]]] = defaultdict(dict)
    for batch in _batches(folder, schema.SCORES.names):
        for row in batch.filter(pc.is_in(batch.column("image"), images)).to_pylist():
            rows[Photo.of(row["key"], row["image"])][row["face"]] = row
    return {photo: [rows[photo][number] for number in sorted(rows[photo])] for photo in photos}


def contents(photos: Collection[Photo]) -> dict[Photo, bytes]:
    """The encoded photos; one that can no longer be read is left out."""
    files = [photo for photo in photos if not photo.key]
    with ThreadPoolExecutor(_READERS) as pool:
        read = zip(files, pool.map(_read, files), strict=True)
        found = {photo: content for photo, content in read if content is not None}
    held: dict[str, set[Photo]] = defaultdict(set)
    for photo in photos:
        if photo not in found and (photo.key or photo.file != photo.image):
            held[photo.file].add(photo)
    for holder, inside in held.items():
        with suppress(UserError):
            found |= _held(holder, inside)
    return found


def _read(photo: Photo) -> bytes | None:
    try:
        return storage.read_bytes(photo.image)
    except UserError:
        return None


def _held(file: str, photos: set[Photo]) -> dict[Photo, bytes]:
    """Photos out of a tar or table."""
    if file.endswith(".tar"):
        inside = {photo.image[len(file) + 1 :]: photo for photo in photos}
        return {inside[name]: content for name, content in tars.read(file, set(inside))}
    return {Photo(*pair): content for pair, content in tables.pick(file, set(photos))}


def _batches(folder: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    for file in storage.list_files(folder, (".parquet",)):
        filesystem, path = storage.filesystem(file)
        with pq.ParquetFile(path, filesystem=filesystem) as part:
            yield from part.iter_batches(_ROWS, columns=columns)


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
