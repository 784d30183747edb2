"""The EXIF orientation of a picture, also from damaged EXIF.

Pillow reads all tags and fails for one that is odd. Only the tag of the orientation is read here.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

ORIENTATION = 0x0112

_HEADER = re.compile(rb"II\*\0|MM\0\*")
_IN_XMP = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
_HEADERS = 4  # of EXIF blocks that are looked at: some programs write a second block behind the first
_ENTRY = 12  # bytes of a tag: number, type, count, value or offset
# By EXIF type: the format and the size of a value.
_TYPES = {1: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 11: "f", 12: "d"}
_TEXT = 2


def orientation(image: Image.Image) -> int:
    """How the stored picture is turned: 1 (upright) to 8, as in the EXIF standard.

    It is read from the EXIF, else from the XMP. 1 if neither has a value that can be read. `image`
    need not be loaded. Of a TIFF, all tags but this one are dropped from what Pillow will look at
    while it loads the picture.
    """
    if isinstance(image, TiffImageFile):
        return _of_tiff(image)
    value = _of_exif(_exif(image))
    if value is None:
        value = _of_xmp(image)
    return value or 1


def _exif(image: Image.Image) -> bytes:
    exif = image.info.get("exif")
    if isinstance(exif, bytes):
        return exif
    # An older way of PNG: three lines, then the bytes in hexadecimal digits.
    lines = str(image.info.get("Raw profile type exif", "")).split("\n")[3:]
    try:
        return bytes.fromhex("".join(lines))
    except ValueError:
        return b""


def _of_exif(exif: bytes) -> int | None:
    """The first orientation in EXIF bytes; None if they have none."""
    for number, header in enumerate(_HEADER.finditer(exif)):
        if number == _HEADERS:
            break
        block = exif[header.start() :]
        for value in _values(block):
            if 1 <= value <= 8:
                return int(value)
    return None


def _values(block: bytes) -> Iterator[float]:
    """The values of the tag in the first directory of a TIFF block, as far as it can be read."""
    order = "<" if block.startswith(b"II") else ">"
    try:
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, start)
        for place in range(start + 2, start + 2 + count * _ENTRY, _ENTRY):
            tag, kind, _ = struct.unpack_from(f"{order}HHI", block, place)
            if tag != ORIENTATION:
                continue
            if kind in _TYPES:
                yield from struct.unpack_from(order + _TYPES[kind], block, place + 8)
            elif kind == _TEXT and block[place + 8 : place + 9].isdigit():
                yield float(block[place + 8 : place + 9])
    except struct.error:
        return


def _of_xmp(image: Image.Image) -> int | None:
    xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or b""
    if isinstance(xmp, str):
        xmp = xmp.encode("utf-8", "replace")
    match = _IN_XMP.search(xmp) if isinstance(xmp, bytes) else None
    return int(match[1]) if match else None


def _of_tiff(image: TiffImageFile) -> int:
    """Pillow turns a TIFF by itself, and reads the directories that its tags name before that."""
    try:
        exif = image.getexif()
    except Exception:  # as many types as PIL's plugins raise; the second call gives what was read
        exif = image.getexif()
    for tag in list(exif):
        if tag != ORIENTATION:
            del exif[tag]
    try:
        value = exif.get(ORIENTATION, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
