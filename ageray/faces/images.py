"""Photo bytes to upright uint8 pixels.

If a smaller picture is enough, a JPEG is shrunk by its decoder, which is faster than decoding it in
full.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ageray import storage
from ageray.errors import UserError
from ageray.faces import jpeg

MAX_PIXELS = 100_000_000
"""Larger photos give an error, because a few kilobytes of PNG can unpack to gigabytes."""
MAX_FILE_BYTES = 256 * 2**20
"""Larger files give an error."""
PHOTOS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Endings of photo files, in any case."""

_DRAFTS = (8, 4, 2)
_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
# By EXIF orientation: the stored axis (0 = x, 1 = y) that runs backwards along the upright x, and
# the one that runs backwards along the upright y.
_BACKWARDS: dict[int, tuple[int | None, int | None]] = {
    2: (0, None),
    3: (0, 1),
    4: (None, 1),
    6: (1, None),
    7: (1, 0),
    8: (None, 0),
}


class ImageError(ValueError):
    """Bytes that cannot be read as a picture. The message is short enough for a table's `error`."""


@dataclass(frozen=True)
class Photo:
    """An upright photo, possibly decoded at 1/2, 1/4 or 1/8 of its size.

    `pixels` is uint8 (H, W, 3) RGB. `scale` is the number of full-size pixels along one of its
    pixels. `width` and `height` are full size. `offset` (x, y) is the part of the first pixel that
    lies outside the photo, in full-size pixels. `shrinks` says whether the decoder can shrink
    (JPEG). Points are measured from the centre of the first pixel, so a pixel of the small picture
    lies between those that it was made from.
    """

    pixels: NDArray[np.uint8]
    scale: int
    width: int
    height: int
    offset: tuple[int, int] = (0, 0)
    shrinks: bool = False

    def shrink(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Full-size points (..., 2) in the coordinates of `pixels`."""
        shift = np.asarray(self.offset, np.float32) - (self.scale - 1) / 2
        return np.asarray((points + shift) / self.scale, np.float32)

    def grow(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Points (..., 2) of `pixels` in full-size coordinates; the inverse of `shrink`."""
        shift = np.asarray(self.offset, np.float32) - (self.scale - 1) / 2
        return np.asarray(points * self.scale - shift, np.float32)


def fetch(uri: str) -> bytes | UserError | ImageError:
    """The encoded photo at `uri`.

    Errors are returned, not raised, because threads fetch many photos at once: UserError if the
    file cannot be read, ImageError if it has more than MAX_FILE_BYTES (at most one byte more is
    read).
    """
    try:
        content = storage.read_bytes(uri, MAX_FILE_BYTES + 1)
    except UserError as error:
        return error
    return content if len(content) <= MAX_FILE_BYTES else too_large()


def too_large() -> ImageError:
    """The error for a file of more than MAX_FILE_BYTES."""
    return ImageError(f"over {MAX_FILE_BYTES >> 20} MiB")


def decode(data: bytes, max_side: int | None = None, scale: int = 1) -> Photo:
    """Decodes a photo: upright (EXIF), RGB, first frame.

    A JPEG is shrunk to 1/`scale` (1, 2, 4 or 8) while it is decoded. With `max_side`, `scale` is
    the largest that leaves the longer side at least that many pixels. Other formats come in full
    size. Raises ImageError if the photo cannot be read whole, or has over 100 megapixels.
    """
    if not data:
        raise ImageError("empty file")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"{image.width}x{image.height} is over {MAX_PIXELS // 1_000_000} megapixels")
            if max_side is not None:
                longer = max(image.size)
                scale = next((draft for draft in _DRAFTS if longer >= max_side * draft), 1)
            return _upright(image, scale)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(str(error)) from None
    except UnidentifiedImageError:
        raise ImageError("not an image") from None
    except Exception as error:  # PIL's plugins raise many types: struct.error, SyntaxError, KeyError
        raise ImageError(f"cannot decode: {type(error).__name__}: {error}") from None


def _upright(image: Image.Image, target: int) -> Photo:
    """Decodes at 1/`target` if the decoder can, else in full size, and turns upright."""
    width, height = image.size
    shrinks = image.format in ("JPEG", "MPO")
    # PIL takes the largest of its scales that leaves at least this size.
    image.draft("RGB", (max(1, width // target), max(1, height // target)))
    scale = 1
    if shrinks and image.size == (-(-width // target), -(-height // target)):
        scale = target
    # The last pixel of the small picture may reach past the edge. If its axis runs backwards, that
    # overhang comes first.
    overhang = (image.width * scale - width, image.height * scale - height)
    orientation = image.getexif().get(_ORIENTATION, 1)
    back_x, back_y = _BACKWARDS.get(orientation, (None, None))
    offset = (0 if back_x is None else overhang[back_x], 0 if back_y is None else overhang[back_y])
    if image.size == (-(-width // scale), -(-height // scale)):
        pixels = jpeg.upright_pixels(image, scale, orientation)
        if pixels is not None:
            if orientation in _TURNED:
                width, height = height, width
            return Photo(pixels, scale, width, height, offset, shrinks)
    image.load()  # turns a TIFF upright and changes its orientation tag
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):  # 16-bit gray, which PIL's conversion would clip
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    if scale == 1:
        width, height = upright.size
    elif orientation in _TURNED:
        width, height = height, width
    return Photo(np.asarray(upright.convert("RGB")), scale, width, height, offset, shrinks)


def upright_size(content: bytes) -> tuple[int, int] | None:
    """Width and height of the upright image, from the header; None if it cannot be read.

    No pixel is decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                size, orientation = image.size, image.getexif().get(_ORIENTATION, 1)
    except Exception:  # PIL's plugins raise many types; `decode` reports what is wrong
        return None
    if orientation in _TURNED:
        return size[1], size[0]
    return size
