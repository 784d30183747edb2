"""Photos that any viewer shows, however odd they are: damaged EXIF, deep gray, no end mark, very
many pixels, rare formats.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ageray.faces import images
from ageray.faces.gray import to_eight_bits
from ageray.faces.images import ImageError, decode, upright_size

SIX = (0x0112, 3, 1, struct.pack("<HH", 6, 0))
"""The tag of orientation 6, as little-endian EXIF has it."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Pillow warns of some of these files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def wide(width: int = 40, height: int = 24) -> Image.Image:
    """A picture that is dark on the left and bright on the right."""
    row = np.linspace(20, 230, width).astype(np.uint8)
    return Image.fromarray(np.tile(row, (height, 1))).convert("RGB")


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def tags(*entries: tuple[int, int, int, bytes], behind: bytes = b"") -> bytes:
    """EXIF with one directory; `behind` are the bytes after it."""
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    start = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries))
    return start + body + bytes(4) + behind


def is_turned(data: bytes) -> bool:
    """Whether the picture of `wide` came out as orientation 6 says: high, dark at the top."""
    photo = decode(data)
    assert upright_size(data) == (photo.width, photo.height)
    return photo.pixels.shape == (40, 24, 3) and bool(photo.pixels[0].mean() < photo.pixels[-1].mean())


# --- EXIF -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "exif",
    [
        tags(SIX),
        tags(SIX, (0x011A, 10, 1, struct.pack("<I", 38)), behind=struct.pack("<ii", -1, 0)),
        tags(SIX, (0x0128, 5, 1, struct.pack("<I", 38)), behind=struct.pack("<II", 2, 1)),
        tags(SIX, (0x011A, 2, 4, b"72\0\0")),
        tags(SIX, (0x8769, 4, 1, struct.pack("<I", 8))),
        tags((0x0112, 4, 1, struct.pack("<I", 6))),
        tags((0x0112, 2, 2, b"6\0\0\0")),
        tags((0x0112, 7, 4, b"\6\0\0\0")),
        tags((0x0112, 11, 1, struct.pack("<f", 6))),
        tags((0x0112, 3, 2, struct.pack("<HH", 6, 6))),
        tags(SIX)[:-4],
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0),
        tags() + tags(SIX)[6:],
    ],
    ids=[
        *("plain", "negative-rational", "rational", "text", "directory-of-itself", "long", "digit"),
        *("bytes", "float", "two", "cut", "big-endian", "second-block"),
    ],
)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_the_orientation_is_read_beside_odd_tags(exif: bytes, form: str) -> None:
    assert is_turned(encode(wide(), form, exif=exif))


@pytest.mark.parametrize("value", [0, 9, 77, 65535])
def test_an_orientation_that_does_not_exist_is_upright(value: int) -> None:
    exif = tags((0x0112, 3, 1, struct.pack("<HH", value, 0)))
    assert decode(encode(wide(), "JPEG", exif=exif)).pixels.shape == (24, 40, 3)


@pytest.mark.parametrize("form", ["TIFF", "JPEG"])
def test_orientation_of_xmp_and_of_a_tiff_with_odd_tags(form: str) -> None:
    if form == "JPEG":
        data = encode(wide(), "JPEG", xmp=b'<x tiff:Orientation="6"/>')
    else:
        exif = Image.Exif()
        exif[0x0112], exif[0x011A] = 6, 72.0
        data = encode(wide(), "TIFF", exif=exif)
        place = data.index(struct.pack("<HH", 0x011A, 5))
        data = data[: place + 2] + struct.pack("<HI", 4, 1) + struct.pack("<I", 2**31) + data[place + 12 :]
    assert is_turned(data)


def test_random_exif_loses_no_photo() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + rng.bytes(int(rng.integers(0, 90)))
        assert sum(decode(encode(wide(), "JPEG", exif=exif)).pixels.shape) == 67


# --- whole photos that Pillow refuses -------------------------------------------------------------


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_png_with_damaged_texts_and_exif() -> None:
    png = encode(wide(), "PNG")
    head, rest = png[:33], png[33:]
    text = png_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n    4\nzzzz\n")
    torn = png_chunk(b"tEXt", b"Comment\0hello")[:-1] + b"\0"
    bomb = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(8 * 2**20)))
    for chunk in (png_chunk(b"eXIf", b"\0\x08\0\x02\x01\x12\0\x03"), text, torn, bomb):
        np.testing.assert_array_equal(decode(head + chunk + rest).pixels, np.asarray(wide()))
    turned = png_chunk(b"eXIf", tags(SIX)[6:])
    assert decode(head + torn + turned + rest).pixels.shape == (40, 24, 3)
    pixels = png.index(b"IDAT") + 10
    with pytest.raises(ImageError):
        decode(head + torn + png[33:pixels] + b"\0\0" + png[pixels + 2 :])


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_jpeg_without_its_end_mark_is_whole_and_half_a_jpeg_is_not(options: dict[str, object]) -> None:
    rng = np.random.default_rng(1)
    noisy = Image.fromarray(rng.integers(0, 256, (90, 130, 3), np.uint8))
    jpeg = encode(noisy, "JPEG", quality=80, **options)
    assert jpeg.endswith(b"\xff\xd9")
    for data in (jpeg[:-2], jpeg[:-2] + bytes(500)):
        np.testing.assert_array_equal(decode(data).pixels, decode(jpeg).pixels)
    for share in (0.5, 0.8, 0.97):
        with pytest.raises(ImageError, match="truncated"):
            decode(jpeg[: int(len(jpeg) * share)])


# --- gray -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "factor"),
    [(np.float32, 1 / 255), (np.float32, 1), (np.int32, 257), (np.uint16, 257), (np.uint16, 16)],
    ids=["float01", "float255", "int32", "uint16", "twelve-bits"],
)
def test_deep_gray_is_scaled_by_its_range(kind: type[np.generic], factor: float) -> None:
    gray = np.asarray(wide().convert("L"))
    deep = (gray.astype(np.float64) * factor).astype(kind)
    photo = decode(encode(Image.fromarray(deep), "TIFF"))
    assert np.abs(photo.pixels.astype(int) - gray[..., None]).max() <= 1


def test_values_that_are_no_numbers_and_negative_ones() -> None:
    gray = np.array([[np.nan, np.inf, -np.inf, 0.5]], np.float32)
    assert to_eight_bits(gray).tolist() == [[0, 255, 0, 127]]
    assert to_eight_bits(np.full((2, 2), np.nan, np.float32)).tolist() == [[0, 0], [0, 0]]
    assert to_eight_bits(np.array([[-1.0, 0.0, 1.0]], np.float32)).tolist() == [[0, 1, 2]]
    assert to_eight_bits(np.array([[0, 2**32 - 1]], np.int64)).tolist() == [[0, 255]]


# --- pixels ---------------------------------------------------------------------------------------


def test_a_jpeg_of_too_many_pixels_is_shrunk_by_its_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 10_000)
    monkeypatch.setattr(images, "MAX_JPEG_PIXELS", 300_000)
    jpeg = encode(wide(400, 300), "JPEG")
    photo = decode(jpeg)
    assert (photo.scale, photo.width, photo.height, photo.pixels.shape) == (4, 400, 300, (75, 100, 3))
    assert decode(jpeg, max_side=50).scale == 8
    for data in (
        encode(wide(400, 300), "JPEG", progressive=True),
        encode(wide(400, 300), "PNG"),
        encode(wide(800, 600), "JPEG"),
    ):
        with pytest.raises(ImageError, match="megapixels"):
            decode(data, max_side=50)


# --- formats --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["GIF", "AVIF", "BMP", "WEBP", "MPO"])
def test_formats_that_are_read(form: str) -> None:
    photo = decode(encode(wide(), form))
    assert np.abs(photo.pixels.astype(int) - np.asarray(wide())).mean() < 6


def test_heic_is_read_with_its_package_and_named_without(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    data = encode(wide(128, 64), "HEIF", quality=90)
    assert decode(data).pixels.shape == (64, 128, 3)
    monkeypatch.setattr(images, "_reads_heic", lambda: False)
    with pytest.raises(ImageError, match="ageray\\[heic\\]"):
        decode(data)


def test_only_named_formats_reach_pillow(tmp_path: Path) -> None:
    """An EPS would start ghostscript."""
    image = wide()
    for form in ("EPS", "PPM", "TGA", "ICO", "PCX", "SGI", "DDS", "JPEG2000"):
        with pytest.raises(ImageError, match="not an image"):
            decode(encode(image, form))
    assert upright_size(encode(image, "EPS")) is None


def test_what_a_tiffs_upright_size_is() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert upright_size(encode(wide(), "TIFF", exif=exif)) == (24, 40)
