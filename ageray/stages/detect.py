"""First stage, on CPUs: reads and decodes photos, finds their faces, and cuts a canvas around each
face.

No photo is lost. One that gives no face becomes one row with face -1 and an `error`, whose text up
to the first colon is the kind: `cannot read`, `unavailable` (its store did not answer), `cannot
decode`, `cannot crop`, `no landmarks`, `no face found`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, starmap
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ageray import schema
from ageray.errors import StoreError, UserError
from ageray.experiment import Align, Detect
from ageray.faces.canvases import canvas_side, face_canvases
from ageray.faces.detect import Face, detector, subject_of
from ageray.faces.images import ImageError, Photo, decode
from ageray.faces.limits import cpu_limit
from ageray.stages.attempts import FATAL, Attempts
from ageray.stages.columns import DETECTED_SCHEMA, PHOTO_SCHEMA, SIBLINGS, Search
from ageray.stages.read_ahead import read_ahead

_CANVAS_BYTES = 64 * 2**20
_PICTURES = ("canvas", "pixels", "content")
"""Columns of rows that hold pictures."""


class Item(NamedTuple):
    """A photo's bytes, or the error why there are none. Only a face of a face shard has a key, and
    may have landmarks (10 values) and a box (4)."""

    uri: str
    content: bytes | UserError | ImageError
    key: str | None = None
    landmarks: list[float] | None = None
    box: list[float] | None = None


def find_faces(photos: pa.Table, align: Align, detect: Detect, search: Search, run: str | None) -> pa.Table:
    """The tables of `face_batches` as one."""
    return pa.concat_tables(face_batches(photos, align, detect, search, run))


def face_batches(
    photos: pa.Table, align: Align, detect: Detect, search: Search, run: str | None
) -> Iterator[pa.Table]:
    """The faces of a batch of photos: rows of DETECTED_SCHEMA, in tables of whole photos.

    photos: the column `image` (uris to read), or rows of PHOTO_SCHEMA. If they have further
    columns, each row gets those of its photo, and SIBLINGS.
    run: as for `Attempts`; None for a caller that sees deaths itself (`given_up`).
    """
    rows = partial(rows_of, align=align, detect=detect, search=search)
    return batches(photos, rows, DETECTED_SCHEMA, run)


def batches(
    photos: pa.Table, rows_of: Callable[[Item], list[dict[str, Any]]], schema: pa.Schema, run: str | None
) -> Iterator[pa.Table]:
    """The rows of each photo of a batch, of this schema, in tables of whole photos; see
    `face_batches`.

    A table ends when its pictures have 64 MiB, so that the memory of a task depends on the faces
    of a photo and not on those of a batch: a photo of a crowd has 500.
    """
    cv2.setNumThreads(1)  # a task runs on each CPU
    rows: list[list[dict[str, Any]]] = []
    start = size = 0
    with Attempts(photos, run) as attempts:
        for number, item in enumerate(_items(photos)):
            if attempts.reach(number):
                with cpu_limit():
                    rows.append(rows_of(item))
            else:
                rows.append([error_row(item, FATAL)])
            size += _bytes(rows[-1])
            if size >= _CANVAS_BYTES:
                yield _table(photos.slice(start, len(rows)), rows, schema)
                start, size, rows = number + 1, 0, []
    if rows or start == 0:
        yield _table(photos.slice(start), rows, schema)


def _bytes(rows: list[dict[str, Any]]) -> int:
    """Bytes of the pictures in rows."""
    size = 0
    for row in rows:
        for name in _PICTURES:
            size += memoryview(row.get(name, b"")).nbytes
    return size


def given_up(photos: pa.Table) -> pa.Table:
    """As `find_faces`, for photos on which a process died twice: a row with an error for each."""
    keys = [None] * photos.num_rows
    if "key" in photos.column_names:
        keys = photos.column("key").to_pylist()
    rows = []
    for uri, key in zip(photos.column("image").to_pylist(), keys, strict=True):
        rows.append([error_row(Item(uri, b"", key), FATAL)])
    return _table(photos, rows, DETECTED_SCHEMA)


def _table(photos: pa.Table, rows: list[list[dict[str, Any]]], schema: pa.Schema) -> pa.Table:
    """The rows of each photo as a table, with the further columns of their photos."""
    counts = np.array(list(map(len, rows)), np.int32)
    return _carry(photos, pa.Table.from_pylist(list(chain(*rows)), schema=schema), counts)


def _carry(photos: pa.Table, rows: pa.Table, siblings: NDArray[np.int32]) -> pa.Table:
    """The rows with the further columns of their photos. siblings (photos,): rows of each photo."""
    further = [field.name for field in photos.schema if field.name not in PHOTO_SCHEMA.names]
    return carry(photos.select(further), rows, siblings, siblings)


def carry(
    columns: pa.Table, rows: pa.Table, counts: NDArray[np.int32], siblings: NDArray[np.int32]
) -> pa.Table:
    """The rows with the columns of what they come from. counts (N,): rows of each. siblings (N,):
    rows of its photo. Without columns nothing is added."""
    if not columns.num_columns:
        return rows
    origin = np.repeat(np.arange(len(counts)), counts)
    for field in columns.schema:
        rows = rows.append_column(field, columns.column(field.name).take(origin))
    return rows.append_column(SIBLINGS, pa.array(siblings[origin]))


def rows_of(
    item: Item, align: Align, detect: Detect, search: Search, faces: list[Face] | None = None
) -> list[dict[str, Any]]:
    """Rows of DETECTED_SCHEMA for one photo: its faces, numbered from the left, or one row with the
    error. faces: where they are, if the caller knows it; then they keep their order.

    A photo of a face shard shows one subject. If several faces are found there, `ageray prepare`'s
    choice is taken.
    """
    photo = opened(item, align, detect, search, faces)
    if isinstance(photo, Photo):
        return rows_of_faces(item, photo, align, in_order(item, detector(detect).detect(photo), photo))
    return photo


def opened(
    item: Item, align: Align, detect: Detect, search: Search, faces: list[Face] | None = None
) -> Photo | list[dict[str, Any]]:
    """The photo, decoded for the detector, if its faces are to be found; else its rows. Arguments
    as in `rows_of`."""
    if not isinstance(item.content, bytes):
        kind = schema.UNAVAILABLE if isinstance(item.content, StoreError) else "cannot read"
        return [error_row(item, f"{kind}: {str(item.content).removeprefix(f'{item.uri}: ')}")]
    input_face = _face_of_input(item, align)
    detecting = align.mode != "none" and (search == "always" or (search == "auto" and input_face is None))
    detecting = detecting and faces is None
    try:
        side = detect.max_side if detecting else canvas_side(align)
        photo = decode(item.content, side)
    except ImageError as error:
        return [error_row(item, f"cannot decode: {str(error).removeprefix('cannot decode: ')}")]
    if detecting:
        return photo
    if faces is None and input_face is None:
        return [error_row(item, "no landmarks")]
    if faces is None and input_face is not None:
        faces = [input_face]
    return rows_of_faces(item, photo, align, faces or [])


def in_order(item: Item, faces: list[Face], photo: Photo) -> list[Face]:
    """The detected faces from the left; of a face shard's photo, the one of its subject."""
    if item.key is not None and faces:
        return [subject_of(faces, photo.width, photo.height)]
    return sorted(faces, key=lambda face: float(face.box[0] + face.box[2]))


def rows_of_faces(item: Item, photo: Photo | None, align: Align, faces: list[Face]) -> list[dict[str, Any]]:
    """Rows of DETECTED_SCHEMA for the faces of one photo, or one row with the error. photo: decoded
    at any scale; None if it has to be decoded."""
    if not faces:
        return [error_row(item, schema.NO_FACE)]
    try:
        return _face_rows(item, photo, align, list(enumerate(faces)))
    except ImageError as error:
        if len(faces) == 1:
            return [error_row(item, f"cannot crop: {error}")]
    return list(starmap(partial(_face_row, item, photo, align), enumerate(faces)))


def _face_rows(
    item: Item, photo: Photo | None, align: Align, faces: list[tuple[int, Face]]
) -> list[dict[str, Any]]:
    """Rows of DETECTED_SCHEMA for numbered faces. Raises ImageError if one of them cannot be
    aligned.
    """
    assert isinstance(item.content, bytes)
    points = np.stack([face.points for _, face in faces])
    boxes = np.stack([face.box for _, face in faces])
    canvases = face_canvases(item.content, points, boxes, align, photo)
    rows = []
    for row, (number, face) in enumerate(faces):
        rows.append(
            {
                "key": item.key or f"{item.uri}#{number}",
                "image": item.uri,
                "face": number,
                "box": _values(face.box),
                "landmarks": _values(face.points),
                "detection": face.score,
                "canvas": canvases.pixels[row].tobytes(),
                "canvas_points": canvases.points[row].ravel().tolist(),
                "canvas_box": canvases.box[row].tolist(),
            }
        )
        if math.isnan(face.score):  # the input brought the face
            rows[-1]["detection"] = None
    return rows


def _face_row(item: Item, photo: Photo | None, align: Align, number: int, face: Face) -> dict[str, Any]:
    """The row of one face among several, of which another may have failed."""
    try:
        return _face_rows(item, photo, align, [(number, face)])[0]
    except ImageError as error:
        return error_row(item, f"cannot crop: {error}", number)


def error_row(item: Item, error: str, face: int = -1) -> dict[str, Any]:
    return {"key": item.key or f"{item.uri}#{face}", "image": item.uri, "face": face, "error": error}


def _items(photos: pa.Table) -> Iterator[Item]:
    if "content" in photos.column_names:
        for row in photos.select(PHOTO_SCHEMA.names).to_pylist():
            content = row["content"]
            if row["problem"] is not None:
                content = UserError(row["problem"])
            yield Item(row["image"], content, row["key"], row["landmarks"], row["box"])
        return
    uris = photos.column("image").to_pylist()
    yield from map(Item, uris, read_ahead(uris))


def _face_of_input(item: Item, align: Align) -> Face | None:
    """The face that the input describes, if it says as much as this alignment needs."""
    needs = {"none": (), "box": item.box}.get(align.mode, item.landmarks)
    if needs is None:
        return None
    points = np.array(item.landmarks or [math.nan] * 10, np.float32).reshape(5, 2)
    return Face(np.array(item.box or [math.nan] * 4, np.float32), points, math.nan)


def _values(array: NDArray[np.float32]) -> list[float] | None:
    if np.isnan(array).any():
        return None
    values: list[float] = array.ravel().tolist()
    return values
