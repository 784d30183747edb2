"""A look at each photo before anything is decided: can it be read, what is its hash, where are its five points."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import pyarrow as pa

from ageray import schema
from ageray.audit.fingerprint import fingerprints
from ageray.errors import UserError
from ageray.experiment import Detect
from ageray.faces import images
from ageray.faces.detect import detector, subject_of
from ageray.faces.images import ImageError, fetch
from ageray.storage import READERS

INSPECTED_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("bytes", pa.int64()),
        pa.field("sha256", pa.string()),
        pa.field("landmarks", schema.POINTS),
        pa.field("box", schema.BOX),
        pa.field("faces", pa.int32()),
        pa.field("kind", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("phash", pa.uint64()),
        pa.field("thumbnail", pa.binary()),
    ]
)
"""One row a photo: `faces` is how many the detector found (null if it did not run), `kind` what is wrong with the photo
(null: nothing), `phash` and `thumbnail` its fingerprint where one was asked for."""


def look(photos: pa.Table, landmarks: str, detect: Detect, prints: bool = False) -> pa.Table:
    """Reads each photo (columns `key`, `uri`, `landmarks`) and returns its row of INSPECTED_SCHEMA.

    `landmarks` is `data.landmarks`; `prints`: whether fingerprints are wanted. A photo that cannot be used gets a `kind` (unreadable,
    undecodable, no face, no points) and a reason; nothing is raised for it.
    """
    cv2.setNumThreads(1)  # one task a core already; more threads would only take turns
    keys, uris, points = (photos.column(name).to_pylist() for name in ("key", "uri", "landmarks"))
    with ThreadPoolExecutor(READERS) as pool:
        contents = pool.map(fetch, uris)
        rows = [
            {"key": key, **_print(content, prints), **_seen(content, own, landmarks, detect)}
            for key, content, own in zip(keys, contents, points, strict=True)
        ]
    return pa.Table.from_pylist(rows, schema=INSPECTED_SCHEMA)


def _print(content: bytes | UserError | ImageError, wanted: bool) -> dict[str, Any]:
    if not wanted or not isinstance(content, bytes):
        return {}
    try:
        found = fingerprints(content)
    except ImageError:
        return {}
    return {"phash": found.phash, "thumbnail": found.thumbnail}


def _seen(
    content: bytes | UserError | ImageError, points: list[float] | None, landmarks: str, detect: Detect
) -> dict[str, Any]:
    if isinstance(content, UserError):
        return {"kind": "unreadable", "reason": str(content)}
    if isinstance(content, ImageError):
        return {"kind": "undecodable", "reason": str(content)}
    search = landmarks == "detect" or (landmarks == "auto" and points is None)
    try:
        photo = images.decode(content, detect.max_side if search else None)
    except ImageError as error:
        return {"kind": "undecodable", "reason": str(error)}
    known = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    if not search:
        missing = {"kind": "no points", "reason": "the source gives none and data.landmarks=source"}
        return {**known, **({"landmarks": points} if points else missing)}
    faces = detector(detect).detect(photo)
    if not faces:
        return {
            **known,
            "faces": 0,
            "kind": "no face",
            "reason": f"no face found at data.detect.threshold={detect.threshold:g}",
        }
    face = subject_of(faces, photo.width, photo.height)
    return {**known, "faces": len(faces), "landmarks": face.points.ravel().tolist(), "box": face.box.tolist()}
