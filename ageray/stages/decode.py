"""First stage where the detector is on a GPU: a task on a CPU reads and decodes photos.

Each photo goes on as pixels of at most `detect.max_side` a side, which is what the detector sees,
and as the encoded photo, from which canvases are cut. A photo of a megapixel that way has about
1.1 MB: 0.9 MB of pixels. Without the pixels the actor would have to decode each photo once more, on
the few CPUs of its machine, and would die of the photos that kill decoders.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from ageray.experiment import Align, Detect
from ageray.faces.detect import Picture, picture_of
from ageray.faces.images import Photo
from ageray.stages.columns import DECODED_SCHEMA, Search
from ageray.stages.detect import Item, batches, opened


def decoded_batches(
    photos: pa.Table, align: Align, detect: Detect, search: Search, run: str | None
) -> Iterator[pa.Table]:
    """A batch of photos as rows of DECODED_SCHEMA, in tables of whole photos.

    Arguments as for `ageray.stages.detect.face_batches`. A photo in which faces are to be found is
    one row, whose face is -1. All others have the rows that they have there.
    """
    rows = partial(_rows_of, align=align, detect=detect, search=search)
    return batches(photos, rows, DECODED_SCHEMA, run)


def _rows_of(item: Item, align: Align, detect: Detect, search: Search) -> list[dict[str, Any]]:
    photo = opened(item, align, detect, search)
    if not isinstance(photo, Photo):
        return photo
    picture = picture_of(photo, detect)
    pixels = np.ascontiguousarray(picture.pixels)
    sizes = [*pixels.shape[:2], *photo.pixels.shape[:2], photo.scale, photo.width, photo.height]
    row = {
        "key": item.key or f"{item.uri}#-1",
        "image": item.uri,
        "face": -1,
        "content": item.content,
        "pixels": pixels.data,
        "sizes": [*sizes, *photo.offset, int(photo.shrinks)],
        "subject_key": item.key,
    }
    if pixels.shape == photo.pixels.shape and not photo.shrinks:
        row["content"] = b""  # canvases are cut from these pixels
    return [row]


def photo_of_row(row: dict[str, Any], pixels: pa.Buffer) -> tuple[Item, Picture, Photo | None]:
    """What a row of SOUGHT_SCHEMA says: the photo; the picture to be searched; and the decoded
    photo, or None where only a smaller one came. pixels: those of the row."""
    high, wide, height, width, scale, full_width, full_height, x, y, shrinks = row["sizes"]
    array = np.frombuffer(pixels, np.uint8).reshape(high, wide, 3)
    photo = Photo(array, scale, full_width, full_height, (x, y), bool(shrinks))
    ratio = np.array([width / wide, height / high], np.float32)
    item = Item(row["image"], row["content"], row["subject_key"])
    picture = Picture(array, ratio, photo)
    if (high, wide) == (height, width):
        return item, picture, photo
    return item, picture, None
