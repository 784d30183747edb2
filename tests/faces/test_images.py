"""A picture file becomes upright RGB pixels at known positions; other bytes an ImageError."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ageray.faces import jpeg
from ageray.faces.images import ImageError, Photo, decode

WIDTH, HEIGHT = (
    403,
    266,
)  # the last pixel of a shrunk picture reaches past the edge, another way across than down
DOTS = np.array([[60.3, 50.8], [341.6, 70.2], [180.5, 200.1]], np.float32)
SPREAD = 9.0


def picture(width: int = WIDTH, height: int = HEIGHT, dots: NDArray[np.float32] = DOTS) -> NDArray[np.uint8]:
    """Gray with soft bright dots."""
    y, x = np.mgrid[:height, :width]
    light = sum(np.exp(-((x - dot[0]) ** 2 + (y - dot[1]) ** 2) / (2 * SPREAD**2)) for dot in dots)
    return np.repeat((60 + 180 * np.asarray(light))[..., None], 3, 2).clip(0, 255).round().astype(np.uint8)


def stored(upright: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """What a camera stores for `upright` under an EXIF orientation, by the standard's wording:
    which visual side its first row and its first column show."""
    turned = upright.transpose(1, 0, 2)
    return {
        1: upright,
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: turned,  # left, top
        6: turned[::-1],  # right, top
        7: turned[::-1, ::-1],  # right, bottom
        8: turned[:, ::-1],  # left, bottom
    }[orientation]


def encode(
    pixels: NDArray[np.generic] | Image.Image,
    form: str = "PNG",
    orientation: int | None = None,
    **options: object,
) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.ascontiguousarray(pixels))
    if orientation is not None:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def brightest(photo: Photo, near: NDArray[np.float32]) -> NDArray[np.float32]:
    """Centre of mass of the dot around a place of `photo.pixels`."""
    reach = round(4.5 * SPREAD / photo.scale)
    x, y = np.round(near).astype(int)
    window = (
        photo.pixels[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1, 1].astype(float)
        - 64
    )
    weight = window.clip(0)
    rows, columns = np.mgrid[: weight.shape[0], : weight.shape[1]]
    place = np.array([(columns * weight).sum(), (rows * weight).sum()]) / weight.sum()
    return np.asarray(place + [max(0, x - reach), max(0, y - reach)], np.float32)


# --- orientation and shrinking --------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_gives_the_same_pixels(orientation: int, form: str) -> None:
    upright = picture()
    options = {"lossless": True} if form == "WEBP" else {}
    photo = decode(encode(stored(upright, orientation), form, orientation, **options))
    np.testing.assert_array_equal(photo.pixels, upright)
    assert (photo.width, photo.height, photo.scale) == (WIDTH, HEIGHT, 1)


@pytest.mark.parametrize("orientation", [None, 0, 9, 77])
def test_no_orientation_is_upright(orientation: int | None) -> None:
    np.testing.assert_array_equal(decode(encode(picture(), "PNG", orientation)).pixels, picture())


def test_a_broken_orientation_does_not_lose_the_photo() -> None:
    for exif in (b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"):
        data = encode(picture(), "JPEG", exif=exif)
        with warnings.catch_warnings():  # Pillow warns of some when it opens the file
            warnings.simplefilter("ignore", UserWarning)
            assert decode(data).pixels.shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(("scale", "max_side"), [(1, 300), (2, 190), (4, 95), (8, 45)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_places_survive_orientation_and_shrinking(orientation: int, scale: int, max_side: int) -> None:
    photo = decode(encode(stored(picture(), orientation), "JPEG", orientation, quality=98), max_side)
    assert (photo.scale, photo.width, photo.height) == (scale, WIDTH, HEIGHT)
    assert photo.pixels.shape == (-(-HEIGHT // scale), -(-WIDTH // scale), 3)
    for dot in DOTS:
        place = photo.shrink(dot)
        assert np.abs(photo.grow(brightest(photo, place)) - dot).max() < 0.2
        np.testing.assert_allclose(photo.grow(place), dot, atol=1e-3)


@pytest.mark.parametrize(
    ("width", "height", "max_side", "scale"),
    [
        (1280, 960, 640, 2),
        (1280, 960, 641, 1),
        (1280, 853, 640, 2),  # the shorter side is odd
        (1281, 961, 640, 2),
        (853, 1280, 320, 4),
        (4000, 2667, 500, 8),
        (4000, 100, 500, 8),
        (1500, 1001, 5000, 1),
        (1279, 960, 640, 1),
    ],
)
def test_shrinks_as_far_as_the_longer_side_allows(width: int, height: int, max_side: int, scale: int) -> None:
    photo = decode(encode(Image.new("RGB", (width, height)), "JPEG"), max_side)
    assert photo.scale == scale
    assert (photo.width, photo.height) == (width, height)
    assert max(photo.pixels.shape) >= min(max_side, max(width, height))


@pytest.mark.parametrize("side", [1, 2, 9, 17, 33, 57, 65, 97])
def test_scale_of_small_pictures(side: int) -> None:
    """The scale is the decoder's, also for pictures of a few pixels."""
    for most in (1, 2, 4, 8):
        photo = decode(encode(Image.new("RGB", (side, side)), "JPEG"), max(1, side // most))
        assert photo.scale in (1, 2, 4, 8)
        assert photo.pixels.shape[:2] == (-(-side // photo.scale),) * 2


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "WEBP", "GIF"])
def test_only_jpeg_is_shrunk(form: str) -> None:
    photo = decode(encode(picture(), form), max_side=50)
    assert photo.pixels.shape == (HEIGHT, WIDTH, 3)
    assert photo.scale == 1


def test_grow_undoes_shrink() -> None:
    rng = np.random.default_rng(0)
    for scale in (1, 2, 4, 8):
        for offset in ((0, 0), (scale - 1, 0), (1, 3)):
            photo = Photo(np.zeros((1, 1, 3), np.uint8), scale, 5000, 5000, offset)
            points = rng.uniform(-100, 5000, (7, 5, 2)).astype(np.float32)
            np.testing.assert_allclose(photo.grow(photo.shrink(points)), points, atol=1e-3)
            assert photo.grow(points).dtype == photo.shrink(points).dtype == np.float32
            # A pixel of the small picture is the block of full-size pixels around its centre.
            block = np.stack(np.meshgrid(np.arange(scale), np.arange(scale)), -1).reshape(-1, 2) - offset
            np.testing.assert_allclose(photo.shrink(block.astype(np.float32)).mean(0), [0, 0], atol=1e-6)


# --- libjpeg-turbo and Pillow ---------------------------------------------------------------------


def by_pillow(data: bytes, scale: int, monkeypatch: pytest.MonkeyPatch) -> Photo:
    with monkeypatch.context() as patch:
        patch.setattr(jpeg, "upright_pixels", lambda *_: None)
        return decode(data, scale=scale)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_pillows(mode: str, subsampling: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every bit: shrunk or not, turned, progressive, of any size."""
    noise = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    for number, size in enumerate([(403, 266), (9, 7), (33, 97), (64, 48)]):
        image = Image.fromarray(noise).resize(size).convert(mode)
        options = {"quality": (30, 95)[number % 2], "subsampling": subsampling, "progressive": number == 2}
        for orientation in (1, 2 + number, 5 + number):
            data = encode(image, "JPEG", orientation, **options)
            for scale in (1, 2, 4, 8):
                photo, other = decode(data, scale=scale), by_pillow(data, scale, monkeypatch)
                np.testing.assert_array_equal(photo.pixels, other.pixels)
                assert photo.pixels.flags.c_contiguous
                one, two = replace(photo, pixels=noise), replace(other, pixels=noise)
                assert one == two


def test_real_photos_have_pillows_pixels(fgnet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in sorted((fgnet / "images").iterdir())[::40]:
        for scale in (1, 2):
            data = file.read_bytes()
            expected = by_pillow(data, scale, monkeypatch).pixels
            np.testing.assert_array_equal(decode(data, scale=scale).pixels, expected)


def test_which_pictures_pillow_decodes() -> None:
    """CMYK, other formats, and everything that libjpeg warns of."""
    noise = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    whole = encode(noise, "JPEG")
    for data, straight in (
        (whole, True),
        (encode(noise, "PNG"), False),
        (encode(Image.fromarray(noise).convert("CMYK"), "JPEG"), False),
        (whole[:-100], False),
        (whole[: len(whole) // 2] + b"\xff\xd0" + whole[len(whole) // 2 :], False),
    ):
        with Image.open(io.BytesIO(data)) as image:
            assert (jpeg.upright_pixels(image, 1, 1) is not None) == straight


def test_a_header_of_another_size_is_left_to_pillow() -> None:
    """What Pillow's checks allowed is all that is decoded."""
    with Image.open(io.BytesIO(encode(picture(), "JPEG"))) as image:
        image._size = (WIDTH // 2, HEIGHT // 2)
        assert jpeg.upright_pixels(image, 1, 1) is None


# --- modes ----------------------------------------------------------------------------------------


def test_gray_palette_and_alpha() -> None:
    rgb = np.zeros((20, 30, 3), np.uint8)
    rgb[:10], rgb[10:, :15], rgb[10:, 15:] = (200, 30, 60), (20, 220, 90), (10, 40, 240)
    gray = np.tile(np.arange(30, dtype=np.uint8) * 8, (20, 1))
    alpha = np.dstack([rgb, np.full((20, 30), 255, np.uint8)])
    palette = Image.fromarray(rgb).convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    for data, expected in (
        (encode(gray), np.repeat(gray[..., None], 3, 2)),
        (encode(Image.fromarray(gray).convert("LA")), np.repeat(gray[..., None], 3, 2)),
        (encode(Image.fromarray(gray > 100)), np.repeat((gray > 100)[..., None], 3, 2) * np.uint8(255)),
        (encode(alpha), rgb),
        (encode(palette), rgb),
        (encode(palette, "GIF"), rgb),
        (encode(rgb, "BMP"), rgb),
    ):
        photo = decode(data)
        assert photo.pixels.dtype == np.uint8
        np.testing.assert_array_equal(photo.pixels, expected)


def test_cmyk_and_gray_jpeg() -> None:
    for colour in ((200, 30, 60), (250, 250, 250), (5, 5, 5)):
        image = Image.new("RGB", (64, 48), colour)
        for mode in ("CMYK", "RGB"):
            pixels = decode(encode(image.convert(mode), "JPEG", quality=95), max_side=32).pixels
            assert pixels.shape == (24, 32, 3)
            assert np.abs(pixels.astype(int) - colour).max() <= 4, mode
    gray = decode(encode(Image.new("L", (64, 48), 90), "JPEG"), max_side=32).pixels
    assert gray.shape == (24, 32, 3)
    assert np.abs(gray.astype(int) - 90).max() <= 1


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_sixteen_bit_gray_keeps_its_range_and_orientation(form: str, orientation: int) -> None:
    upright = (np.arange(20 * 30, dtype=np.uint16) * 109).reshape(20, 30)
    photo = decode(encode(stored(upright[..., None], orientation)[..., 0], form, orientation))
    np.testing.assert_array_equal(photo.pixels, np.repeat((upright >> 8).astype(np.uint8)[..., None], 3, 2))
    assert (photo.width, photo.height) == (30, 20)
    assert int(photo.pixels.max()) > 250


def test_first_frame() -> None:
    red, blue = Image.new("RGB", (16, 12), (250, 0, 0)), Image.new("RGB", (16, 12), (0, 0, 250))
    for form in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if form == "WEBP" else {}
        pixels = decode(encode(red, form, save_all=True, append_images=[blue], **options)).pixels
        assert pixels.shape == (12, 16, 3)
        assert pixels[6, 8].tolist() == [250, 0, 0], form


# --- what cannot be read --------------------------------------------------------------------------


def blank_png(width: int, height: int) -> bytes:
    """A valid one-bit PNG of that size: some kilobytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header, rows = (
        struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0),
        zlib.compress(bytes((1 + -(-width // 8)) * height), 1),
    )
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(10_001, 10_000), (14_000, 14_000)])
def test_over_a_hundred_megapixels(width: int, height: int) -> None:
    data = blank_png(width, height)
    assert len(data) < 200_000
    with pytest.raises(ImageError, match="megapixels|exceeds limit"):
        decode(data)
    with pytest.raises(ImageError):
        decode(data, max_side=640)


def test_blank_png_is_readable_where_small_enough() -> None:
    assert decode(blank_png(1001, 1000)).pixels.shape == (1000, 1001, 3)


def test_what_is_no_picture() -> None:
    for data, reason in (
        (b"", "empty file"),
        (b"no photo", "not an image"),
        (b"<html><body>404</body></html>", "not an image"),
        (bytes(5000), "not an image"),
        (encode(picture(), "PNG")[:8], "not an image|cannot decode"),
        (encode(picture(), "JPEG")[:3], "not an image|cannot decode"),
    ):
        with pytest.raises(ImageError, match=reason) as caught:
            decode(data, 100)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "GIF", "BMP", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated(form: str, share: float) -> None:
    """Half a picture is none: its lower part would be gray, and a face in it wrong."""
    noisy = picture() ^ np.random.default_rng(0).integers(0, 32, (HEIGHT, WIDTH, 3), np.uint8)
    whole = encode(noisy, form)
    assert decode(whole).pixels.shape == (HEIGHT, WIDTH, 3)
    for max_side in (None, 100):
        with pytest.raises(ImageError):
            decode(whole[: int(len(whole) * share)], max_side)


def test_damaged_bytes_give_pixels_or_an_image_error() -> None:
    rng = np.random.default_rng(0)
    for form in ("JPEG", "PNG", "WEBP", "GIF", "TIFF"):
        whole = np.frombuffer(encode(picture(90, 60, DOTS / 5), form), np.uint8)
        for _ in range(15):
            damaged = whole.copy()
            damaged[rng.integers(0, len(whole), 6)] = rng.integers(0, 256, 6)
            try:
                photo = decode(damaged.tobytes(), 40)
            except ImageError:
                continue
            assert photo.pixels.ndim == 3
            assert photo.pixels.dtype == np.uint8
