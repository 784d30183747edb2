"""Photo bytes to upright uint8 pixels.

If a smaller picture is enough, a JPEG is shrunk by its decoder, which is faster than decoding it in
full. Only the formats of FORMATS are decoded: Pillow knows 40 more, and starts ghostscript for one
of them.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from ageray import storage
from ageray.errors import UserError
from ageray.faces import exif, jpeg, limits, repair
from ageray.faces.gray import to_eight_bits

MAX_PIXELS = 100_000_000
"""Most pixels of a decoded picture. More give an error, because a few kilobytes of PNG can unpack
to gigabytes."""
MAX_JPEG_PIXELS = 300_000_000
"""Most pixels of a JPEG that is shrunk to MAX_PIXELS or fewer while it is decoded. Phones take
photos of 200 megapixels. A progressive JPEG is held in memory in full size, so MAX_PIXELS limits
it."""
MAX_FILE_BYTES = 256 * 2**20
"""Larger files give an error."""
PHOTOS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"),
    *(".heic", ".heif"),
)
"""Endings of photo files, in any case."""
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")
"""Pillow's names of the formats that are decoded, whatever the file is called. HEIC is decoded
where pillow-heif is installed."""

_PLUGINS = (  # importing a plugin makes its format known to Pillow
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
_HEIC = re.compile(rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL)
# Pillow's own limit would refuse at twice this, and warn from this on. `decode` looks at the size
# before any pixel is decoded.
Image.MAX_IMAGE_PIXELS = MAX_JPEG_PIXELS

_DRAFTS = (8, 4, 2)
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
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
    the largest that leaves the longer side at least that many pixels. A JPEG of more than
    MAX_PIXELS is shrunk further, until it has no more. Other formats come in full size.

    A whole JPEG without an end mark, and a whole PNG with damaged texts, are decoded as any viewer
    does. Raises ImageError if the photo cannot be read whole, or has over 100 megapixels.
    """
    if not data:
        raise ImageError("empty file")
    _check(limits.problem_of_header(data))
    try:
        return _decode(data, max_side, scale)
    except ImageError:
        raise
    except Exception as error:  # PIL's plugins raise many types: struct.error, SyntaxError, KeyError
        mended = repair.mend(data)
        if mended is None:
            raise _not_decoded(error) from None
    try:
        return _decode(mended, max_side, scale)
    except ImageError:
        raise
    except Exception as error:
        raise _not_decoded(error) from None


def _not_decoded(error: Exception) -> ImageError:
    if isinstance(error, UnidentifiedImageError):
        return ImageError("not an image")
    return ImageError(f"cannot decode: {type(error).__name__}: {error}")


def _decode(data: bytes, max_side: int | None, scale: int) -> Photo:
    with _opened(data) as image:
        if max_side is not None:
            longer = max(image.size)
            scale = next((draft for draft in _DRAFTS if longer >= max_side * draft), 1)
        _check(limits.problem(data, image))
        return _upright(image, scale)


def _opened(data: bytes) -> Image.Image:
    """The picture, of which only the header is read. Raises what Pillow raises, and ImageError for
    HEIC without pillow-heif.
    """
    formats: tuple[str, ...] = FORMATS
    heic = _HEIC.match(data) is not None
    if heic and _reads_heic():
        formats = (*FORMATS, "HEIF")
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError:
        if heic and not _reads_heic():
            raise ImageError("HEIC needs one more package: pip install 'ageray[heic]'") from None
        raise


@cache
def _reads_heic() -> bool:
    """Whether pillow-heif is installed. Makes its format known to Pillow."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener(thumbnails=False, decode_threads=1)
    return True


def _check(problem: str | None) -> None:
    """Raises ImageError for what `limits` found."""
    if problem is not None:
        raise ImageError(problem)


def _upright(image: Image.Image, target: int) -> Photo:
    """Decodes at 1/`target` if the decoder can, else in full size, and turns upright."""
    width, height = image.size
    shrinks = image.format in ("JPEG", "MPO")
    # PIL takes the largest of its scales that leaves at least this size.
    target = max(target, _least_scale(image, shrinks))
    image.draft("RGB", (max(1, width // target), max(1, height // target)))
    scale = 1
    if shrinks and image.size == (-(-width // target), -(-height // target)):
        scale = target
    if image.width * image.height > MAX_PIXELS:
        raise _too_many_pixels(image.size)
    # The last pixel of the small picture may reach past the edge. If its axis runs backwards, that
    # overhang comes first.
    overhang = (image.width * scale - width, image.height * scale - height)
    orientation = exif.orientation(image)
    back_x, back_y = _BACKWARDS.get(orientation, (None, None))
    offset = (0 if back_x is None else overhang[back_x], 0 if back_y is None else overhang[back_y])
    if image.size == (-(-width // scale), -(-height // scale)):
        pixels = jpeg.upright_pixels(image, scale, orientation)
        if pixels is not None:
            if orientation in _TURNED:
                width, height = height, width
            return Photo(pixels, scale, width, height, offset, shrinks)
    image.load()  # turns a TIFF upright
    upright = image
    if orientation in _TRANSPOSITIONS and image.format != "TIFF":
        upright = image.transpose(_TRANSPOSITIONS[orientation])
    if upright.mode.startswith(("I", "F")):  # gray of 16 or 32 bits, which PIL's conversion would clip
        upright = Image.fromarray(to_eight_bits(np.asarray(upright)))
    if scale == 1:
        width, height = upright.size
    elif orientation in _TURNED:
        width, height = height, width
    return Photo(np.asarray(upright.convert("RGB")), scale, width, height, offset, shrinks)


def _least_scale(image: Image.Image, shrinks: bool) -> int:
    """The least scale at which the picture has no more than MAX_PIXELS.

    Raises ImageError if it has more at every scale, or may not be shrunk.
    """
    pixels = image.width * image.height
    if pixels <= MAX_PIXELS:
        return 1
    if not shrinks or image.info.get("progressive") or pixels > MAX_JPEG_PIXELS:
        raise _too_many_pixels(image.size)
    return next(draft for draft in reversed(_DRAFTS) if pixels <= MAX_PIXELS * draft**2)


def _too_many_pixels(size: tuple[int, int]) -> ImageError:
    return ImageError(f"{size[0]}x{size[1]} is over {MAX_PIXELS // 1_000_000} megapixels")


def upright_size(content: bytes) -> tuple[int, int] | None:
    """Width and height of the upright image, from the header; None if it cannot be read.

    No pixel is decoded.
    """
    if limits.problem_of_header(content) is not None:
        return None
    try:
        with _opened(content) as image:
            size, orientation = image.size, exif.orientation(image)
            turned = orientation in _TURNED and image.format != "TIFF"  # Pillow gives a TIFF's upright size
    except Exception:  # PIL's plugins raise many types; `decode` reports what is wrong
        return None
    return (size[1], size[0]) if turned else size
