"""Small files that would occupy a decoder for minutes."""

from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ageray.faces import limits
from ageray.faces.images import ImageError, decode, upright_size


def progressive(side: int = 64) -> bytes:
    content = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
    Image.fromarray(noise).save(content, "JPEG", progressive=True, quality=60)
    return content.getvalue()


def with_scans(data: bytes, more: int) -> bytes:
    """The JPEG with its last scan `more` times again."""
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * more + data[-2:]


def claims(data: bytes, side: int) -> bytes:
    """The JPEG with another size in its header."""
    frame = data.index(b"\xff\xc2")
    return data[: frame + 5] + struct.pack(">HH", side, side) + data[frame + 9 :]


def refused(data: bytes) -> str:
    started = time.process_time()
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert time.process_time() - started < 3
    upright_size(data)
    assert time.process_time() - started < 3
    return str(caught.value)


def test_scans_are_counted_as_the_decoder_meets_them() -> None:
    data = progressive()
    assert limits.count_scans(data) == 10
    assert limits.count_scans(with_scans(data, 7)) == 17
    assert limits.count_scans(data + data) == 10  # a second picture, as phones append
    assert limits.count_scans(data[: len(data) // 2]) <= 10
    thumbnail = b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data
    assert limits.count_scans(data[:2] + thumbnail + data[2:]) == 10


def test_a_bomb_of_scans_is_refused() -> None:
    bomb = with_scans(progressive(), 300)
    assert "scans of 0.0 megapixels are too much work" in refused(bomb)
    assert "50 scans of 64.0 megapixels" in refused(claims(with_scans(progressive(), 40), 8000))


def test_progressive_photos_and_what_follows_them_are_not_refused() -> None:
    data = progressive()
    marks_by_chance = data + b"\xff\xda" * 5000
    assert decode(marks_by_chance).pixels.shape == (64, 64, 3)
    assert limits.problem(data, Image.open(io.BytesIO(data))) is None


def test_a_jpeg_with_many_small_segments_is_read() -> None:
    data = progressive()
    assert decode(data[:2] + b"\xff\xe5\x00\x02" * 50_000 + data[2:]).pixels.shape == (64, 64, 3)


@pytest.mark.parametrize(
    "header",
    [b"\xff\xe3\x00\x02" * 300_000, b"\xff" * 2_000_000, b"\xff\x00" * 1_000_000],
    ids=["segments", "filling", "stuffing"],
)
def test_a_jpeg_header_without_end(header: bytes) -> None:
    data = progressive()
    assert "more than" in refused(data[:2] + header + data[2:])


def png(chunk: bytes, count: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "PNG")
    data = content.getvalue()
    return data[:33] + chunk * count + data[33:]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_a_png_of_many_chunks_and_one_whose_texts_unpack_to_gigabytes() -> None:
    assert "more than 100000 chunks" in refused(png(chunk(b"tEXt", b"a\0b"), 300_000))
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50 * 2**20), 9))
    started = time.process_time()
    for data in (png(text, 20), png(chunk(b"iCCP", text[8:-4]), 1)):
        try:
            decode(data)
        except ImageError:
            continue
    assert time.process_time() - started < 3


def test_a_tiff_of_huge_tiles_or_many_scans() -> None:
    content = io.BytesIO()
    Image.new("L", (64, 64)).save(content, "TIFF", compression="tiff_adobe_deflate")
    image = Image.open(io.BytesIO(content.getvalue()))
    assert limits.problem(content.getvalue(), image) is None
    image.tag_v2[322], image.tag_v2[323] = 60_000, 60_000  # type: ignore[attr-defined]
    assert "tiles are too large" in str(limits.problem(content.getvalue(), image))
    del image.tag_v2[322]  # type: ignore[attr-defined]
    image.tag_v2[273] = (8,) * 300_000  # type: ignore[attr-defined]
    assert "300000 strips" in str(limits.problem(content.getvalue(), image))


def test_a_process_that_computes_for_too_long_is_ended() -> None:
    code = "from ageray.faces.limits import cpu_limit\nwith cpu_limit(0.3):\n    sum(range(10**12))"
    environment = os.environ | {"PYTHONPATH": str(Path(limits.__file__).parents[2])}
    process = subprocess.run([sys.executable, "-c", code], check=False, env=environment, timeout=60)
    assert process.returncode == -signal.SIGPROF
    with limits.cpu_limit(0.2):
        time.sleep(0.5)  # waiting does not count
