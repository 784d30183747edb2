"""Looks at each photo: whether it can be read, its hash, its five points and its fingerprint."""

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
"""One row a photo. `faces`: how many the detector found; null if it did not run. `kind` and
`reason`: what is wrong with the photo; null if nothing is. `phash` and `thumbnail`: its
fingerprint, if asked for."""


def look(photos: pa.Table, landmarks: str, detect: Detect, fingerprint: bool = False) -> pa.Table:
    """Reads each photo (columns `key`, `uri`, `landmarks`) and returns its row of INSPECTED_SCHEMA.

    landmarks: `data.landmarks`. fingerprint: whether to compute fingerprints.
    A photo that cannot be used gets a `kind` (unreadable, undecodable, no face, no points) and a
    reason; nothing is raised for it.
    """
    cv2.setNumThreads(1)  # Ray runs one task a core already
    keys, uris, points = (photos.column(name).to_pylist() for name in ("key", "uri", "landmarks"))
    rows = []
    with ThreadPoolExecutor(READERS) as pool:
        for key, content, own in zip(keys, pool.map(fetch, uris), points, strict=True):
            row = {"key": key, **_inspect(content, own, landmarks, detect)}
            if fingerprint and isinstance(content, bytes):
                row |= _fingerprint(content)
            rows.append(row)
    return pa.Table.from_pylist(rows, schema=INSPECTED_SCHEMA)


def give_up(photos: pa.Table) -> pa.Table:
    """As `look`, for photos on which a process died twice."""
    rows = []
    for key in photos.column("key").to_pylist():
        rows.append({"key": key, "kind": "undecodable", "reason": "the process died on it twice"})
    return pa.Table.from_pylist(rows, schema=INSPECTED_SCHEMA)


def _fingerprint(content: bytes) -> dict[str, Any]:
    try:
        fingerprint = fingerprints(content)
    except ImageError:
        return {}
    return {"phash": fingerprint.phash, "thumbnail": fingerprint.thumbnail}


def _inspect(
    content: bytes | UserError | ImageError, points: list[float] | None, landmarks: str, detect: Detect
) -> dict[str, Any]:
    if isinstance(content, UserError):
        return {"kind": "unreadable", "reason": str(content)}
    if isinstance(content, ImageError):
        return {"kind": "undecodable", "reason": str(content)}
    run_detector = landmarks == "detect" or (landmarks == "auto" and points is None)
    try:
        photo = images.decode(content, detect.max_side if run_detector else None)
    except ImageError as error:
        return {"kind": "undecodable", "reason": str(error)}
    row: dict[str, Any] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    if not run_detector:
        if not points:
            return {**row, "kind": "no points", "reason": "the source gives none and data.landmarks=source"}
        return {**row, "landmarks": points}
    faces = detector(detect).detect(photo)
    row["faces"] = len(faces)
    if not faces:
        reason = f"no face found at data.detect.threshold={detect.threshold:g}"
        return {**row, "kind": "no face", "reason": reason}
    face = subject_of(faces, photo.width, photo.height)
    return {**row, "landmarks": face.points.ravel().tolist(), "box": face.box.tolist()}
