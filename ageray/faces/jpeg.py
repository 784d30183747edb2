"""JPEG pixels by libjpeg-turbo, without Pillow's copies.

Pillow opens the file, so its checks of format, size and EXIF hold. The pixels are equal to Pillow's
in every bit, also where the decoder shrinks, because both use the same library. At a megapixel this
takes a quarter of Pillow's time (docs/benchmarks.md).
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

# By EXIF orientation: from the stored picture to the upright one.
_TURNS: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: stored.transpose(1, 0, 2)[:, ::-1],
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: stored.transpose(1, 0, 2)[::-1],
}


def upright_pixels(image: Image.Image, scale: int, orientation: int) -> Pixels | None:
    """The pixels (H, W, 3) of an opened JPEG, upright; None where Pillow has to decode it.

    image: opened by Pillow from memory and not loaded, with `draft` applied. scale: the side of a
    pixel in full-size pixels, 1, 2, 4 or 8. Pillow has to decode other formats and CMYK. It also
    decides about damaged and cut files: any warning of libjpeg leaves the picture to it.
    """
    if image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L"):
        return None
    content = getattr(image, "fp", None)
    if not isinstance(content, io.BytesIO):
        return None
    width, height = image.size
    # A buffer of the expected size: a header that libjpeg reads in another way does not fit in.
    pixels = np.empty((height, width, 3), np.uint8)
    try:
        decoded = simplejpeg.decode_jpeg(
            content.getbuffer(), "RGB", min_height=height, min_width=width, min_factor=scale, buffer=pixels
        )
    except ValueError:
        return None
    if decoded.shape != pixels.shape:
        return None
    if orientation in _TURNS:
        return np.ascontiguousarray(_TURNS[orientation](pixels))
    return pixels
