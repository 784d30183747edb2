"""Any bytes at all: a photo's reader gives pixels or an ImageError, and nothing else."""

from __future__ import annotations

import io
from contextlib import suppress

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ageray.faces import limits
from ageray.faces.images import ImageError, decode, upright_size
from ageray.serve.errors import ApiError
from ageray.serve.uploads import parse_json
from ageray.storage.errors import is_passing

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")


def _photo(kind: str) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.arange(24 * 16 * 3, dtype=np.uint8).reshape(16, 24, 3)).save(content, kind)
    return content.getvalue()


PHOTOS = {kind: _photo(kind) for kind in FORMATS}


@st.composite
def damaged_photos(draw: st.DrawFn) -> bytes:
    data = bytearray(PHOTOS[draw(st.sampled_from(FORMATS))])
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 8))
        data[place : place + length] = draw(st.binary(max_size=12))
    return bytes(data)


@given(st.one_of(st.binary(max_size=200), damaged_photos()))
@settings(max_examples=150, deadline=None)
def test_a_photo_is_read_or_refused(data: bytes) -> None:
    upright_size(data)
    limits.problem_of_header(data)
    try:
        photo = decode(data, 64)
    except ImageError:
        return
    assert photo.pixels.dtype == np.uint8
    assert photo.pixels.ndim == 3


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_scans_are_never_more_than_their_marks(data: bytes) -> None:
    assert 0 <= limits.count_scans(b"\xff\xd8" + data) <= data.count(b"\xff\xda") + 1


@given(st.one_of(st.binary(max_size=100), st.text(alphabet='{}[],:"a1\\ ').map(str.encode)))
@settings(max_examples=150, deadline=None)
def test_json_is_parsed_or_refused(body: bytes) -> None:
    with suppress(ApiError):
        parse_json(body, 50)


@given(st.from_type(OSError), st.integers(-5, 200))
@settings(max_examples=50, deadline=None)
def test_every_error_of_a_store_has_an_answer(error: OSError, number: int) -> None:
    error.errno = number
    assert is_passing(error) in (True, False)
