"""What a program gives as a photo, as encoded bytes with a name: the form that files come in."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ageray.errors import UserError
from ageray.faces.detect import Face
from ageray.faces.images import fetch
from ageray.stages.detect import Item

Photo: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]"
"""A path or url, an encoded photo, a picture of Pillow, or pixels: uint8, (H, W, 3) RGB, (H, W, 4)
RGBA or (H, W) gray."""

GivenFace: TypeAlias = Any
"""A face whose place is known: five points (5, 2) in pixels (viewer-left eye, viewer-right eye,
nose tip, mouth corners), a mapping with `landmarks` and `box`, or an object that has them."""


def is_many(photos: Any) -> bool:
    """Whether this is a collection of photos, not a single one."""
    if isinstance(photos, np.ndarray):
        return photos.ndim == 4
    return not isinstance(photos, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image))


def item(photo: Photo, number: int) -> Item:
    """The photo with its name and its bytes, or with the error why there are none.

    number: of the photo in its collection; photos without a path are named after it. Pictures and
    pixels become an uncompressed BMP, which decodes to the same pixels; Pillow's are turned upright
    as their EXIF says. Raises UserError for anything that is no photo.
    """
    if isinstance(photo, (str, os.PathLike)):
        uri = os.fspath(photo)
        return Item(uri, fetch(uri))
    name = f"photo {number}"
    if isinstance(photo, (bytes, bytearray, memoryview)):
        return Item(name, bytes(photo))
    if isinstance(photo, Image.Image):
        return Item(getattr(photo, "filename", "") or name, _bitmap(ImageOps.exif_transpose(photo)))
    if isinstance(photo, np.ndarray):
        return Item(name, _bitmap(_picture(photo, name)))
    kinds = "a path, a url, bytes, a picture of Pillow or a uint8 array"
    raise UserError(f"{name}: is of type {type(photo).__name__}; give {kinds}")


def faces(given: Sequence[GivenFace], name: str) -> list[Face]:
    """Faces whose places the caller knows. Raises UserError for values of another form."""
    return [_face(each, f"{name}, face {number}") for number, each in enumerate(given)]


def _face(given: GivenFace, name: str) -> Face:
    if isinstance(given, Mapping):
        landmarks, box = given.get("landmarks"), given.get("box")
    elif hasattr(given, "landmarks"):
        landmarks, box = given.landmarks, getattr(given, "box", None)
    else:
        landmarks, box = given, None
    points = _numbers(landmarks, (5, 2), f"{name}: landmarks")
    return Face(_numbers(box, (4,), f"{name}: box"), points, float("nan"))


def _numbers(values: Any, shape: tuple[int, ...], name: str) -> NDArray[np.float32]:
    """The values as an array of this shape; without values, of nan."""
    if values is None:
        return np.full(shape, np.nan, np.float32)
    try:
        return np.asarray(values, np.float32).reshape(shape)
    except (TypeError, ValueError):
        form = "five points x, y" if shape == (5, 2) else "x0, y0, x1, y1"
        raise UserError(f"{name}: give {form}, in pixels of the photo; {shape} numbers") from None


def _picture(pixels: NDArray[Any], name: str) -> Image.Image:
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or channels not in (1, 3, 4) or not pixels.size:
        form = "give uint8 pixels 0..255: (H, W, 3) RGB, (H, W, 4) RGBA or (H, W) gray"
        raise UserError(f"{name}: an array of {pixels.dtype} {pixels.shape}; {form}")
    if pixels.ndim == 3 and channels == 1:
        pixels = pixels[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(pixels))


def _bitmap(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.convert("RGB").save(content, "BMP")
    return content.getvalue()


def expand(photos: Any) -> list[Photo]:
    """The photos of a collection, in their order. Raises UserError for what is none."""
    try:
        return list(photos)
    except TypeError:
        kinds = "a path, a url, bytes, a picture of Pillow, a uint8 array, or a list of them"
        raise UserError(f"photos: is of type {type(photos).__name__}; give {kinds}") from None
