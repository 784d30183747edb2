"""First stage, on CPUs: reads and decodes photos, finds their faces, and cuts a canvas around each
face.

No photo is lost. One that gives no face becomes one row with face -1 and an `error`, whose text up
to the first colon is the kind: `cannot read`, `unavailable` (its store did not answer), `cannot
decode`, `cannot crop`, `no landmarks`, `no face found`.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import chain, starmap
from pathlib import Path
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
from ageray.stages.columns import DETECTED_SCHEMA, PHOTO_SCHEMA, SIBLINGS, Search
from ageray.stages.read_ahead import read_ahead

_CANVAS_BYTES = 64 * 2**20
MAX_DEATHS = 2
"""A photo on which the process died so often is not tried again."""

_FATAL = "cannot decode: the process died on it twice"


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

    A table ends when its canvases have 64 MiB, so that the memory of a task depends on the faces
    of a photo and not on those of a batch: a photo of a crowd has 500.
    photos: the column `image` (uris to read), or rows of PHOTO_SCHEMA. If they have further
    columns, each row gets those of its photo, and SIBLINGS.
    run: name of the run. Ray repeats a task whose process died, without end. A photo on which the
    process died twice in this run (by a fault in a decoder, for lack of memory, or because the
    photo needed over 30 s of CPU) is not tried again. None for a caller that sees deaths itself
    (`given_up`).
    """
    cv2.setNumThreads(1)  # a task runs on each CPU
    log = None if run is None else _log_of_attempts(photos, run)
    deaths = Counter[str]() if log is None else _deaths(log)
    most = max(1, _CANVAS_BYTES // (3 * canvas_side(align) ** 2))
    rows: list[list[dict[str, Any]]] = []
    start = faces = 0
    with ExitStack() as stack:
        attempt = None if log is None else stack.enter_context(log.open("a"))
        if attempt is not None:
            attempt.write("\n")
        for number, item in enumerate(_items(photos)):
            if attempt is not None:
                attempt.write(f" {number}")
                attempt.flush()
            if deaths[str(number)] >= MAX_DEATHS:
                rows.append([_error_row(item, _FATAL)])
            else:
                with cpu_limit():
                    rows.append(rows_of(item, align, detect, search))
            faces += len(rows[-1])
            if faces >= most:
                yield _table(photos.slice(start, len(rows)), rows)
                start, faces, rows = number + 1, 0, []
    if log is not None:
        log.unlink(missing_ok=True)
    if rows or start == 0:
        yield _table(photos.slice(start), rows)


def given_up(photos: pa.Table) -> pa.Table:
    """As `find_faces`, for photos on which a process died twice: a row with an error for each."""
    keys = [None] * photos.num_rows
    if "key" in photos.column_names:
        keys = photos.column("key").to_pylist()
    rows = []
    for uri, key in zip(photos.column("image").to_pylist(), keys, strict=True):
        rows.append([_error_row(Item(uri, b"", key), _FATAL)])
    return _table(photos, rows)


def _table(photos: pa.Table, rows: list[list[dict[str, Any]]]) -> pa.Table:
    """The rows of each photo as a table, with the further columns of their photos."""
    siblings = np.array(list(map(len, rows)), np.int32)
    return _carry(photos, pa.Table.from_pylist(list(chain(*rows)), schema=DETECTED_SCHEMA), siblings)


def _log_of_attempts(photos: pa.Table, run: str) -> Path:
    """The file with a line for each attempt at this batch: the numbers of the photos that it
    reached.

    Its name follows from the photos and their further columns, which tell batches of equal photos
    apart (a manifest may name a photo often).
    """
    digest = hashlib.sha256()
    for name in photos.column_names:
        if name == "image" or name == "key" or name not in PHOTO_SCHEMA.names:
            digest.update(f"{name} {photos.column(name).to_pylist()}\n".encode())
    return Path(tempfile.gettempdir(), f"ageray-{run}-{digest.hexdigest()[:16]}")


def _deaths(log: Path) -> Counter[str]:
    """How often the process died on each photo: the last one that an attempt reached."""
    deaths = Counter[str]()
    if log.exists():
        for line in log.read_text().splitlines():
            deaths.update(line.split()[-1:])
    return deaths


def _carry(photos: pa.Table, rows: pa.Table, siblings: NDArray[np.int32]) -> pa.Table:
    """The rows with the further columns of their photos. siblings (photos,): rows of each photo."""
    further = [field for field in photos.schema if field.name not in PHOTO_SCHEMA.names]
    if not further:
        return rows
    origin = np.repeat(np.arange(photos.num_rows), siblings)
    for field in further:
        rows = rows.append_column(field, photos.column(field.name).take(origin))
    return rows.append_column(SIBLINGS, pa.array(siblings[origin]))


def rows_of(
    item: Item, align: Align, detect: Detect, search: Search, faces: list[Face] | None = None
) -> list[dict[str, Any]]:
    """Rows of DETECTED_SCHEMA for one photo: its faces, numbered from the left, or one row with the
    error. faces: where they are, if the caller knows it; then they keep their order.

    A photo of a face shard shows one subject. If several faces are found there, `ageray prepare`'s
    choice is taken.
    """
    if not isinstance(item.content, bytes):
        kind = schema.UNAVAILABLE if isinstance(item.content, StoreError) else "cannot read"
        return [_error_row(item, f"{kind}: {str(item.content).removeprefix(f'{item.uri}: ')}")]
    input_face = _face_of_input(item, align)
    detecting = align.mode != "none" and (search == "always" or (search == "auto" and input_face is None))
    detecting = detecting and faces is None
    try:
        side = detect.max_side if detecting else canvas_side(align)
        photo = decode(item.content, side)
    except ImageError as error:
        return [_error_row(item, f"cannot decode: {str(error).removeprefix('cannot decode: ')}")]
    if detecting:
        faces = _detect(item, photo, detect)
    elif faces is None and input_face is None:
        return [_error_row(item, "no landmarks")]
    elif faces is None and input_face is not None:
        faces = [input_face]
    if not faces:
        return [_error_row(item, schema.NO_FACE)]
    try:
        return _face_rows(item, photo, align, list(enumerate(faces)))
    except ImageError as error:
        if len(faces) == 1:
            return [_error_row(item, f"cannot crop: {error}")]
    return list(starmap(partial(_face_row, item, photo, align), enumerate(faces)))


def _face_rows(item: Item, photo: Photo, align: Align, faces: list[tuple[int, Face]]) -> list[dict[str, Any]]:
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


def _face_row(item: Item, photo: Photo, align: Align, number: int, face: Face) -> dict[str, Any]:
    """The row of one face among several, of which another may have failed."""
    try:
        return _face_rows(item, photo, align, [(number, face)])[0]
    except ImageError as error:
        return _error_row(item, f"cannot crop: {error}", number)


def _error_row(item: Item, error: str, face: int = -1) -> dict[str, Any]:
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


def _detect(item: Item, photo: Photo, detect: Detect) -> list[Face]:
    """The faces in the photo, from the left; of a face shard's photo, the one of its subject."""
    faces = detector(detect).detect(photo)
    if item.key is not None and faces:
        return [subject_of(faces, photo.width, photo.height)]
    return sorted(faces, key=lambda face: float(face.box[0] + face.box[2]))


def _values(array: NDArray[np.float32]) -> list[float] | None:
    if np.isnan(array).any():
        return None
    values: list[float] = array.ravel().tolist()
    return values
