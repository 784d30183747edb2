"""Photos and faces as small JPEG data uris, and finding faces in shards by their keys."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from ageray import storage
from ageray.errors import UserError
from ageray.faces.images import ImageError, Photo, decode

_SIDE = 320  # pixels of a thumbnail's longer side: sharp on the sheet, some 15 kB
_FACE_SIDE = 240
_PHOTO_SIDE = 1200  # a photo is decoded no larger than about twice this before its face is cut out
_AROUND_BOX, _AROUND_POINTS = (
    1.4,
    2.9,
)  # side of what is shown, in sides of the box or of what the five points span


def thumbnail(content: bytes, side: int = _SIDE) -> tuple[str, int, int]:
    """A photo as a small JPEG data uri, and its upright full width and height. Raises ImageError if there is none."""
    photo = decode(content, max_side=side)
    return _data_uri(Image.fromarray(photo.pixels), side), photo.width, photo.height


def face_picture(
    content: bytes, points: list[float] | None, box: list[float] | None, side: int = _FACE_SIDE
) -> str:
    """A face as a small JPEG data uri, cut out around its five points or else its box; the whole photo where neither is known.

    points: x, y of each in pixels of the upright photo; box: x0, y0, x1, y1. Raises ImageError if the photo cannot be decoded.
    """
    photo = decode(content, max_side=_PHOTO_SIDE)
    image = Image.fromarray(photo.pixels)
    if points is not None:
        image = _cut_out(image, photo, np.asarray(points, np.float32).reshape(-1, 2), _AROUND_POINTS)
    elif box is not None:
        image = _cut_out(image, photo, np.asarray(box, np.float32).reshape(-1, 2), _AROUND_BOX)
    return _data_uri(image, side)


def _cut_out(image: Image.Image, photo: Photo, corners: Any, around: float) -> Image.Image:
    """The square around `corners` (.., 2), full-size pixels, as far as it lies in the picture; all of it if nothing would be left."""
    corners = photo.shrink(corners)
    if not np.isfinite(corners).all():
        return image
    low, high = corners.min(0), corners.max(0)
    half = around * float((high - low).max()) / 2
    x, y = (low + high) / 2 + 0.5  # a pixel's centre is at 0, PIL counts from its edge
    area = (
        max(0, int(x - half)),
        max(0, int(y - half)),
        min(image.width, int(x + half) + 1),
        min(image.height, int(y + half) + 1),
    )
    return image.crop(area) if area[2] - area[0] >= 8 and area[3] - area[1] >= 8 else image


def _data_uri(image: Image.Image, side: int) -> str:
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def face_pictures(shards: str | None, keys: Collection[str]) -> dict[str, str]:
    """`face_picture` of each of `keys` that is found in a folder of shards and can be decoded; none if there is no such folder."""
    pictures: dict[str, str] = {}
    for row in _rows(shards, keys) if shards else ():
        try:
            pictures[row["key"]] = face_picture(row["image"], row.get("landmarks"), row.get("box"))
        except ImageError:
            continue  # changed since it was predicted
    return pictures


def _rows(shards: str, keys: Collection[str]) -> Iterator[dict[str, Any]]:
    """The rows of `keys`. Every shard's keys are read, but pictures only of the row groups that hold one of them."""
    wanted = pa.array(sorted(keys), pa.string())
    try:
        files = storage.list_files(shards, (".parquet",))
    except UserError:
        return  # moved or deleted since
    for uri in files:
        try:
            yield from _rows_of_shard(uri, wanted)
        except (OSError, pa.ArrowInvalid, KeyError):
            continue  # replaced by something else since


def _rows_of_shard(uri: str, wanted: pa.Array) -> Iterator[dict[str, Any]]:
    filesystem, path = storage.filesystem(uri)
    with pq.ParquetFile(path, filesystem=filesystem) as file:
        columns = [name for name in ("key", "image", "landmarks", "box") if name in file.schema_arrow.names]
        for group in range(file.num_row_groups):
            here = pc.is_in(file.read_row_group(group, ["key"]).column("key"), wanted)
            if pc.any(here).as_py():
                yield from file.read_row_group(group, columns).filter(here).to_pylist()
