"""How much work a photo may be before it is decoded, by its bytes and its header.

A small file can occupy a decoder for hours: a progressive JPEG of thousands of scans over 50
megapixels, a PNG of millions of empty chunks. The decoders have no limit for that. What is counted
here costs an ordinary photo some microseconds.
"""

from __future__ import annotations

import re
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

MAX_SCANS = 100
"""A progressive JPEG has about 10 scans."""
MAX_SCANNED = 2000.0
"""Scans times megapixels: an empty scan takes 0.5 ms a megapixel, a full one 10 ms."""
CPU_SECONDS = 30.0
"""A process that needs more for one photo is ended. A photo of 100 megapixels needs 3."""

_MAX_SEGMENTS = 100_000  # of a JPEG's header, or of a PNG besides its pixels
_MAX_FILLING = 65_536  # bytes between segments
_MAX_STRIPS = 200_000  # of a TIFF
_MAX_TILE = 2**26  # pixels of a TIFF's tile
_MAX_RLE_BYTES = 8 * 2**20  # of a run-length coded BMP, which Pillow decodes in Python

_SCAN = b"\xff\xda"
_END = 0xD9
_ALONE = (0x01, *range(0xD0, 0xD9))  # JPEG markers without a length
_NEXT_MARKER = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")  # in the coded data behind a scan's header
_FILLING = re.compile(rb"\xff*")
_STRIP_OFFSETS, _TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS = 273, 322, 323, 324


def problem(data: bytes, image: Image.Image) -> str | None:
    """Why a photo is too much work for a decoder; None if it is not.

    data: the encoded photo. image: the same, opened by Pillow, of which no pixel is decoded yet.
    """
    megapixels = image.width * image.height / 1e6
    match image.format:
        case "JPEG" | "MPO":
            return _problem_of_jpeg(data, megapixels)
        case "TIFF":
            return _problem_of_tiff(data, image, megapixels)
        case "BMP" | "DIB" if image.info.get("compression") in (1, 2) and len(data) > _MAX_RLE_BYTES:
            return f"run-length coded, with more than {_MAX_RLE_BYTES >> 20} MiB"
    return None


def problem_of_header(data: bytes) -> str | None:
    """Why a photo's header is too much work for Pillow, which reads it in Python; None if it is
    not.
    """
    if data.startswith(b"\xff\xd8"):
        return _problem_of_segments(data)
    if data.startswith(b"\x89PNG") and len(data) > 2**20:
        return _problem_of_chunks(data)
    return None


def _problem_of_jpeg(data: bytes, megapixels: float) -> str | None:
    # The mark of a scan is also found in thumbnails and by chance: this count is an upper bound.
    most = data.count(_SCAN)
    if most <= MAX_SCANS and most * megapixels <= MAX_SCANNED:
        return None
    scans = count_scans(data)
    if scans > MAX_SCANS or scans * megapixels > MAX_SCANNED:
        return f"{scans} scans of {megapixels:.1f} megapixels are too much work"
    return None


def count_scans(data: bytes) -> int:
    """Scans of a JPEG up to its end mark, or up to the first that is over MAX_SCANS."""
    scans, place = 0, 2
    while scans <= MAX_SCANS:
        match = _NEXT_MARKER.search(data, place)
        if match is None:
            break
        marker, place = data[match.end() - 1], match.end()
        if marker == _END:
            break
        scans += marker == _SCAN[1]
        if marker not in _ALONE:
            place += int.from_bytes(data[place : place + 2], "big")
    return scans


def _problem_of_segments(data: bytes) -> str | None:
    place, filling = 2, 0
    for _ in range(_MAX_SEGMENTS):
        match = _FILLING.match(data, place)
        assert match is not None
        if match.end() == place or match.end() >= len(data):
            return None  # no marker: Pillow says so
        filling += match.end() - place - 1
        if filling > _MAX_FILLING:
            return f"more than {_MAX_FILLING} bytes of filling between its segments"
        marker, place = data[match.end()], match.end() + 1
        if marker in (_SCAN[1], _END):
            return None
        if marker == 0:
            filling += 2
        elif marker not in _ALONE:
            place += int.from_bytes(data[place : place + 2], "big")
    return f"more than {_MAX_SEGMENTS} segments"


def _problem_of_chunks(data: bytes) -> str | None:
    place, others = 8, 0
    while place + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"IEND":
            return None
        if kind != b"IDAT" or not size:
            others += 1
        if others > _MAX_SEGMENTS:
            return f"more than {_MAX_SEGMENTS} chunks"
        place += 12 + size
    return None


def _problem_of_tiff(data: bytes, image: Any, megapixels: float) -> str | None:
    tags = image.tag_v2
    strips = 1
    for tag in (_STRIP_OFFSETS, _TILE_OFFSETS):
        offsets = tags.get(tag)
        if isinstance(offsets, tuple):
            strips = max(strips, len(offsets))
    if strips > _MAX_STRIPS:
        return f"{strips} strips"
    width, length = tags.get(_TILE_WIDTH, 1), tags.get(_TILE_LENGTH, 1)
    sized = isinstance(width, int) and isinstance(length, int)
    if not sized or width * length > _MAX_TILE:
        return "its tiles are too large"
    scans = data.count(_SCAN) - strips  # of JPEGs in the TIFF, each of which needs one
    if scans > MAX_SCANS and scans * megapixels > MAX_SCANNED:
        return f"{scans} scans of {megapixels:.1f} megapixels are too much work"
    return None


@contextmanager
def cpu_limit(seconds: float = CPU_SECONDS) -> Iterator[None]:
    """Ends this process, by a signal of the kernel, if the block needs more CPU time.

    It works while a decoder computes without returning to Python. For processes that do one photo
    at a time and whose end is noticed: the CPU time of all threads counts.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
