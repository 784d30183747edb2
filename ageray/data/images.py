"""Photo bytes to upright uint8 pixels, by the decoder's own down-scaling where a smaller picture is enough."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 100_000_000
"""Larger photos are refused: a few kilobytes of PNG can unpack to gigabytes."""

_ORIENTATION = 0x0112
# Which stored axis (0 = x, 1 = y) runs backwards along the upright x and along the upright y, by EXIF orientation.
_BACKWARDS: dict[int, tuple[int | None, int | None]] = {
    2: (0, None),
    3: (0, 1),
    4: (None, 1),
    6: (1, None),
    7: (1, 0),
    8: (None, 0),
}


class ImageError(ValueError):
    """Bytes that are no picture we can read; the message is short enough for a table's `error` column."""


@dataclass(frozen=True)
class Photo:
    """An upright photo, possibly decoded at 1/2, 1/4 or 1/8 of its size.

    `pixels` is uint8 (H, W, 3) RGB; `scale` says how many full-size pixels one of its pixels spans; `width` and `height` are full size.
    Points are measured from the centre of the first pixel, so a pixel of the small picture sits between those it was made from.
    """

    pixels: NDArray[np.uint8]
    scale: int
    width: int
    height: int
    offset: tuple[int, int] = (0, 0)

    def shrink(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Full-size points (..., 2) in the coordinates of `pixels`."""
        shift = np.asarray(self.offset, np.float32) - (self.scale - 1) / 2
        return np.asarray((points + shift) / self.scale, np.float32)

    def grow(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Points (..., 2) of `pixels` in full-size coordinates; the inverse of `shrink`."""
        shift = np.asarray(self.offset, np.float32) - (self.scale - 1) / 2
        return np.asarray(points * self.scale - shift, np.float32)


def decode(data: bytes, max_side: int | None = None) -> Photo:
    """Decodes a photo upright (EXIF), RGB, first frame; with `max_side` a JPEG is shrunk while decoding as long as its longer side stays at
    least that many pixels. Raises ImageError for anything that cannot be read whole or has over 100 megapixels.
    """
    if not data:
        raise ImageError("empty file")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"{image.width}x{image.height} is over {MAX_PIXELS // 1_000_000} megapixels")
            return _upright(image, max_side)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(str(error)) from None
    except UnidentifiedImageError:
        raise ImageError("not an image") from None
    except Exception as error:  # PIL's plugins raise whatever their parser met: struct.error, SyntaxError, KeyError, ...
        raise ImageError(f"cannot decode: {type(error).__name__}: {error}") from None


def _upright(image: Image.Image, max_side: int | None) -> Photo:
    width, height = image.size
    if max_side is not None:
        share = max_side / max(width, height)
        if share < 1:
            image.draft("RGB", (math.ceil(width * share), math.ceil(height * share)))
    scale = round(max(width / image.width, height / image.height))
    # The last pixel of the small picture may reach past the edge; if the axis is turned round, that overhang comes first.
    overhang = (image.width * scale - width, image.height * scale - height)
    orientation = image.getexif().get(_ORIENTATION, 1)
    back_x, back_y = _BACKWARDS.get(orientation, (None, None))
    offset = (overhang[back_x] if back_x is not None else 0, overhang[back_y] if back_y is not None else 0)
    if orientation in (5, 6, 7, 8):
        width, height = height, width
    if image.mode.startswith("I;16"):  # 16-bit gray: PIL's conversion would clip instead of scaling
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    else:
        image = ImageOps.exif_transpose(image)
    return Photo(np.asarray(image.convert("RGB")), scale, width, height, offset)
