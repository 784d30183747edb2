"""First stage of scoring, on CPUs: photos are read and decoded, their faces found, and a canvas cut out around each.

No photo is lost: one that gives no face is one row with face -1 and `error`. The text up to a colon is the kind of
failure: `cannot read`, `cannot decode`, `cannot crop`, `no landmarks`, `no face found`.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ageray import schema, storage
from ageray.errors import UserError
from ageray.experiment import Align, Detect
from ageray.faces.canvases import canvas_side, face_canvases
from ageray.faces.detect import Face, YuNet, subject_of
from ageray.faces.images import MOST_BYTES, ImageError, Photo, decode
from ageray.stages.labels import CHUNK_OF_PHOTO_SCHEMA, CHUNK_OF_ROW_SCHEMA
from ageray.storage import READERS

Search = Literal["auto", "always", "never"]
"""Where the detector runs: where the input has no landmarks of its own, everywhere, nowhere."""

DETECTED_SCHEMA = pa.schema(
    [
        *(field for field in schema.SCORES if not field.name.startswith("age")),
        pa.field("canvas", pa.binary()),
        pa.field("canvas_points", schema.POINTS),
        pa.field("canvas_box", schema.BOX),
    ]
)
"""A row of scores without its ages, and the face's canvas (uint8, C x C x 3) with points and box in it; null where
`error` is set."""


_DEATHS = 2
_FATAL = "cannot decode: the process died on it twice"


class Item(NamedTuple):
    """A photo's bytes, or why there are none. A face shard's row also has its key, maybe landmarks (10) and box (4)."""

    uri: str
    content: bytes | UserError
    key: str | None = None
    landmarks: list[float] | None = None
    box: list[float] | None = None


def find_faces(photos: pa.Table, align: Align, detect: Detect, search: Search, run: str) -> pa.Table:
    """The faces of a batch of photos: rows of DETECTED_SCHEMA.

    photos: column `image` (uri), or rows of `tables.PHOTO`. With the columns of `lots.CHUNK_OF_PHOTO_SCHEMA` the rows have those of
    `lots.CHUNK_OF_ROW_SCHEMA` too.
    run: names the run; a photo on which the process died twice in this run (a fault of a decoder, or too little memory)
    is not tried again. Ray repeats a task whose process died, without end.
    """
    cv2.setNumThreads(1)  # as many of these run at once as there are CPUs
    items = list(_items(photos))
    digest = hashlib.sha256("\n".join(f"{item.uri}#{item.key}" for item in items).encode()).hexdigest()
    diary = Path(tempfile.gettempdir(), f"ageray-{run}-{digest[:16]}")
    # A line for each attempt at this batch, with the numbers of the photos it came to.
    lines = diary.read_text().splitlines() if diary.exists() else []
    died = Counter(line.split()[-1] for line in lines if line)
    rows: list[dict[str, Any]] = []
    siblings = []
    with diary.open("a") as attempt:
        attempt.write("\n")
        for number, item in enumerate(items):
            attempt.write(f" {number}")
            attempt.flush()
            fatal = died[str(number)] >= _DEATHS
            own = [_failed(item, _FATAL)] if fatal else rows_of(item, align, detect, search)
            rows += own
            siblings.append(len(own))
    diary.unlink(missing_ok=True)
    return _labelled(pa.Table.from_pylist(rows, schema=DETECTED_SCHEMA), photos, np.array(siblings, np.int32))


def _labelled(found: pa.Table, photos: pa.Table, siblings: NDArray[np.int32]) -> pa.Table:
    """With the labels of their photos, if those have any."""
    if "lot" not in photos.column_names:
        return found
    origin = np.repeat(np.arange(photos.num_rows), siblings)
    labels = photos.select(CHUNK_OF_PHOTO_SCHEMA.names).take(origin)
    for field in CHUNK_OF_PHOTO_SCHEMA:
        found = found.append_column(field, labels.column(field.name))
    return found.append_column(CHUNK_OF_ROW_SCHEMA.field("siblings"), pa.array(siblings[origin]))


def rows_of(item: Item, align: Align, detect: Detect, search: Search) -> list[dict[str, Any]]:
    """Rows of DETECTED_SCHEMA for one photo: its faces numbered from left to right, or the one that says why there is none.

    A face shard's row is a photo of one subject: of several faces found, the one that `jobs.prepare` would take.
    """
    if isinstance(item.content, UserError):
        return [_failed(item, f"cannot read: {item.content}")]
    known = _known(item, align)
    looking = align.mode != "none" and (search == "always" or (search == "auto" and known is None))
    try:
        photo = decode(item.content, detect.max_side if looking else canvas_side(align))
    except ImageError as error:
        return [_failed(item, f"cannot decode: {str(error).removeprefix('cannot decode: ')}")]
    if not looking and known is None:
        return [_failed(item, "no landmarks")]
    faces = _look(item, photo, detect) if looking else [known] if known else []
    if not faces:
        return [_failed(item, schema.NO_FACE)]
    try:
        return _cropped(item, photo, align, list(enumerate(faces)))
    except ImageError as error:
        if len(faces) == 1:
            return [_failed(item, f"cannot crop: {error}")]
    return [_cropped_alone(item, photo, align, number, face) for number, face in enumerate(faces)]


def _cropped(item: Item, photo: Photo, align: Align, faces: list[tuple[int, Face]]) -> list[dict[str, Any]]:
    """Rows of DETECTED_SCHEMA for numbered faces. Raises ImageError if one of them cannot be aligned."""
    assert isinstance(item.content, bytes)
    points, boxes = np.stack([face.points for _, face in faces]), np.stack([face.box for _, face in faces])
    canvases = face_canvases(item.content, points, boxes, align, photo)
    return [
        {
            "key": item.key or f"{item.uri}#{number}",
            "image": item.uri,
            "face": number,
            "box": _values(face.box),
            "landmarks": _values(face.points),
            "detection": None if math.isnan(face.score) else face.score,
            "canvas": canvases.pixels[row].tobytes(),
            "canvas_points": canvases.points[row].ravel().tolist(),
            "canvas_box": canvases.box[row].tolist(),
        }
        for row, (number, face) in enumerate(faces)
    ]


def _cropped_alone(item: Item, photo: Photo, align: Align, number: int, face: Face) -> dict[str, Any]:
    """One face of several: that another cannot be aligned does not cost it its row."""
    try:
        return _cropped(item, photo, align, [(number, face)])[0]
    except ImageError as error:
        return _failed(item, f"cannot crop: {error}", number)


def _failed(item: Item, error: str, face: int = -1) -> dict[str, Any]:
    return {"key": item.key or f"{item.uri}#{face}", "image": item.uri, "face": face, "error": error}


def _items(photos: pa.Table) -> Iterator[Item]:
    if "content" in photos.column_names:
        for row in photos.select(PHOTO.names).to_pylist():
            content = UserError(row["problem"]) if row["problem"] is not None else row["content"]
            yield Item(row["image"], content, row["key"], row["landmarks"], row["box"])
        return
    uris = photos.column("image").to_pylist()
    with ThreadPoolExecutor(READERS) as pool:
        yield from map(Item, uris, pool.map(_fetch, uris))


def _fetch(uri: str) -> bytes | UserError:
    try:
        if not uri:
            return UserError("no path is given")
        content = storage.read_bytes(uri, MOST_BYTES + 1)
    except UserError as error:
        return UserError(str(error).removeprefix(f"{uri}: "))
    return content if len(content) <= MOST_BYTES else UserError(f"over {MOST_BYTES >> 20} MiB")


def _known(item: Item, align: Align) -> Face | None:
    """The face that the input itself describes well enough for this alignment."""
    needed = {"none": (), "box": item.box}.get(align.mode, item.landmarks)
    if needed is None:
        return None
    points = np.array(item.landmarks or [math.nan] * 10, np.float32).reshape(5, 2)
    return Face(np.array(item.box or [math.nan] * 4, np.float32), points, math.nan)


def _look(item: Item, photo: Photo, detect: Detect) -> list[Face]:
    faces = _detector(detect).detect(photo)
    if item.key is not None and faces:
        return [subject_of(faces, photo.width, photo.height)]
    return sorted(faces, key=lambda face: float(face.box[0] + face.box[2]))


_HELD = threading.local()


def _detector(settings: Detect) -> YuNet:
    """One a thread: a detector remembers the size of its picture between two calls."""
    held: dict[Detect, YuNet] = _HELD.__dict__.setdefault("detectors", {})
    if settings not in held:
        held[settings] = YuNet(settings)
    return held[settings]


def _values(array: NDArray[np.float32]) -> list[float] | None:
    return None if np.isnan(array).any() else [float(value) for value in array.ravel()]


PHOTO = pa.schema(
    [
        pa.field("image", pa.string(), nullable=False),
        pa.field("content", pa.binary()),
        pa.field("problem", pa.string()),
        pa.field("key", pa.string()),
        pa.field("landmarks", schema.POINTS),
        pa.field("box", schema.BOX),
    ]
)
"""A photo with its bytes, or the problem that there are none. `key`, `landmarks` and `box` are a face shard's."""
