"""Pictures that any viewer shows and Pillow refuses: a JPEG without its end mark, a PNG with
damaged texts.
"""

from __future__ import annotations

import struct
import zlib

import simplejpeg

_JPEG = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_PNG_EXIF = b"eXIf"


def mend(data: bytes) -> bytes | None:
    """The bytes of a picture that Pillow could not decode, so that it can; None if that is not to
    be had.

    Nothing is made up: every pixel of the result is in `data`.
    """
    if data.startswith(_JPEG):
        whole = data.rstrip(b"\0")
        if not whole.endswith(_JPEG_END) and _is_whole(whole + _JPEG_END):
            return whole + _JPEG_END
    if data.startswith(_PNG):
        return _pixels_of_png(data)
    return None


def _is_whole(jpeg: bytes) -> bool:
    """Whether a JPEG has all its pixels: libjpeg warns of what it has to fill with gray."""
    try:
        simplejpeg.decode_jpeg(jpeg, "GRAY", min_factor=8, min_height=1, min_width=1)
    except ValueError:
        return False
    return True


def _pixels_of_png(data: bytes) -> bytes | None:
    """The PNG with nothing but its pixels and its EXIF; None if a chunk of pixels is damaged."""
    chunks, place = [_PNG], len(_PNG)
    while place + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, place)
        kind, end = data[place + 4 : place + 8], place + 12 + size
        sound = end <= len(data) and zlib.crc32(data[place + 4 : end - 4]) == int.from_bytes(
            data[end - 4 : end]
        )
        if kind in _PNG_PIXELS and not sound:
            return None
        if kind in _PNG_PIXELS or (kind == _PNG_EXIF and sound):
            chunks.append(data[place:end])
        if kind == b"IEND":
            return b"".join(chunks)
        place = end
    return None
