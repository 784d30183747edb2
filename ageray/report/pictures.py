"""Photos and faces as small JPEG data URIs, and the pictures of faces by their keys.

Takes image bytes or a folder of shards, gives strings for an `img` element.
"""

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

_SIDE = 320  # pixels of a thumbnail's longer side: sharp on the sheet, about 15 kB
_FACE_SIDE = 240
_PHOTO_SIDE = 1200  # a photo is decoded at most about twice this large before its face is cut out
_BOX_MARGIN = 1.4  # side of the cut-out, relative to the side of the box
_POINTS_MARGIN = 2.9  # side of the cut-out, relative to the extent of the five points
_COLUMNS = ("key", "image", "landmarks", "box")


def thumbnail(content: bytes, side: int = _SIDE) -> tuple[str, int, int]:
    """A photo as a small JPEG data URI, and its upright full width and height.

    Raises ImageError if the bytes are not an image.
    """
    photo = decode(content, max_side=side)
    return _data_uri(Image.fromarray(photo.pixels), side), photo.width, photo.height


def face_picture(
    content: bytes, points: list[float] | None, box: list[float] | None, side: int = _FACE_SIDE
) -> str:
    """A face as a small JPEG data URI, cut out around its five points, or else its box.

    Where neither is known, the whole photo. points: x, y of each in pixels of the upright photo;
    box: x0, y0, x1, y1. Raises ImageError if the photo cannot be decoded.
    """
    photo = decode(content, max_side=_PHOTO_SIDE)
    image = Image.fromarray(photo.pixels)
    if points is not None:
        image = _cut_out(image, photo, np.asarray(points, np.float32).reshape(-1, 2), _POINTS_MARGIN)
    elif box is not None:
        image = _cut_out(image, photo, np.asarray(box, np.float32).reshape(-1, 2), _BOX_MARGIN)
    return _data_uri(image, side)


def _cut_out(image: Image.Image, photo: Photo, corners: Any, margin: float) -> Image.Image:
    """The square around `corners` (.., 2), full-size pixels, clipped to the picture.

    The whole picture if less than 8x8 pixels would be left.
    """
    corners = photo.shrink(corners)
    if not np.isfinite(corners).all():
        return image
    low, high = corners.min(0), corners.max(0)
    half = margin * float((high - low).max()) / 2
    x, y = (low + high) / 2 + 0.5  # a pixel's centre is at 0; PIL counts from its edge
    left, top = max(0, int(x - half)), max(0, int(y - half))
    right, bottom = min(image.width, int(x + half) + 1), min(image.height, int(y + half) + 1)
    if right - left < 8 or bottom - top < 8:
        return image
    return image.crop((left, top, right, bottom))


def _data_uri(image: Image.Image, side: int) -> str:
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def face_pictures(shards: str | None, keys: Collection[str]) -> dict[str, str]:
    """`face_picture` of each of `keys` that a folder of shards has and that can be decoded.

    Empty if there is no such folder.
    """
    pictures: dict[str, str] = {}
    if not shards:
        return pictures
    for row in _rows(shards, keys):
        try:
            pictures[row["key"]] = face_picture(row["image"], row.get("landmarks"), row.get("box"))
        except ImageError:
            continue  # the shards have changed since the prediction
    return pictures


def _rows(shards: str, keys: Collection[str]) -> Iterator[dict[str, Any]]:
    """The rows of `keys`. Reads every shard's keys, but only the row groups that have one of
    them."""
    key_array = pa.array(sorted(keys), pa.string())
    try:
        files = storage.list_files(shards, (".parquet",))
    except UserError:
        return  # moved or deleted since
    for uri in files:
        try:
            yield from _rows_of_shard(uri, key_array)
        except (OSError, pa.ArrowInvalid, KeyError):
            continue  # replaced by another file since


def _rows_of_shard(uri: str, keys: pa.Array) -> Iterator[dict[str, Any]]:
    filesystem, path = storage.filesystem(uri)
    with pq.ParquetFile(path, filesystem=filesystem) as file:
        columns = [name for name in _COLUMNS if name in file.schema_arrow.names]
        for group in range(file.num_row_groups):
            matches = pc.is_in(file.read_row_group(group, ["key"]).column("key"), keys)
            if pc.any(matches).as_py():
                yield from file.read_row_group(group, columns).filter(matches).to_pylist()
