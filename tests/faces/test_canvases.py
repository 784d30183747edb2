"""Canvases: always of one size, as sharp as the crop needs, the same whoever decoded the photo."""

from __future__ import annotations

import io
import warnings
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from ageray.experiment import Align
from ageray.faces import canvases as faces_canvases
from ageray.faces import geometry
from ageray.faces import images as faces_images
from ageray.faces.align import align_faces, crop_map
from ageray.faces.canvases import Canvases, canvas_side, face_canvases, to_tensors
from ageray.faces.images import ImageError, decode
from ageray.synthetic import faces

Floats = NDArray[np.float32]
MODES = ("similarity", "eyes", "box", "none")


def encode(pixels: NDArray[np.uint8], form: str = "JPEG") -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, form)
    return data.getvalue()


def texture(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    """Noise of many sizes, so that any shift or blur shows."""
    rng = np.random.default_rng(seed)
    total = sum(
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (height // n + 1, width // n + 1, 3), np.uint8)).resize(
                (width, height)
            ),
            float,
        )
        for n in (1, 4, 16)
    )
    return (np.asarray(total) / 3).astype(np.uint8)


def face(align: Align, span: float, centre: tuple[float, float], tilt: float = 0.0) -> Floats:
    """Five points whose aligned crop has pixels of `span` photo pixels and lies at `centre`."""
    angle = np.deg2rad(tilt)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    figure = (geometry.template(align.size, align.coverage).numpy() - (align.size - 1) / 2) @ turn.T
    return np.asarray(figure * span + centre, np.float32)


def square(span: float, size: int, centre: tuple[float, float]) -> Floats:
    half = span * size / 2
    return np.array([centre[0] - half, centre[1] - half, centre[0] + half, centre[1] + half], np.float32)


def aligned(canvases: Canvases, align: Align) -> torch.Tensor:
    pixels = torch.from_numpy(canvases.pixels).permute(0, 3, 1, 2)
    return align_faces(pixels, torch.from_numpy(canvases.points), torch.from_numpy(canvases.box), align)[0]


def same(one: Canvases, other: Canvases) -> None:
    np.testing.assert_array_equal(one.pixels, other.pixels)
    np.testing.assert_array_equal(one.points, other.points)
    np.testing.assert_array_equal(one.box, other.box)


# --- shape ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [16, 63, 128])
def test_one_size_for_every_face(mode: Any, size: int) -> None:
    align = Align(mode=mode, size=size)
    side = canvas_side(align)
    assert side >= 2 * size
    for width, height, span in ((20, 30, 0.3), (300, 200, 1.0), (300, 200, 3.0), (700, 500, 9.0)):
        points, box = (
            face(align, span, (width / 2, height / 2))[None],
            square(span, size, (width / 2, height / 2))[None],
        )
        canvases = face_canvases(encode(texture(width, height)), points, box, align)
        assert canvases.pixels.shape == (1, side, side, 3)
        assert canvases.pixels.dtype == np.uint8
        assert (canvases.points.shape, canvases.points.dtype) == ((1, 5, 2), np.float32)
        assert (canvases.box.shape, canvases.box.dtype) == ((1, 4), np.float32)


def test_no_faces_at_all() -> None:
    align = Align(size=32)
    canvases = face_canvases(encode(texture(50, 50)), np.zeros((0, 5, 2), np.float32), None, align)
    assert canvases.pixels.shape == (0, canvas_side(align), canvas_side(align), 3)
    assert canvases.points.shape == (0, 5, 2)
    assert canvases.box.shape == (0, 4)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_canvas_is_as_sharp_as_the_crop_needs(form: str) -> None:
    """A pixel of the crop spans one to two canvas pixels: fewer would blur, more would alias."""
    align = Align(size=64)
    data, centre = encode(texture(900, 900), form), (450.0, 440.0)
    for span in (1.0, 1.5, 1.95, 2.0, 2.6, 3.1, 3.9, 4.5, 5.5, 6.1, 7.3, 7.9, 8.5, 10.1, 12.5, 13.9):
        canvases = face_canvases(data, face(align, span, centre)[None], None, align)
        matrix = crop_map(torch.from_numpy(canvases.points), torch.from_numpy(canvases.box), align)
        across = 1 / float(geometry.scale_of(matrix))
        assert 0.999 < across < 2.001, f"{span} photo pixels a crop pixel are {across} of the canvas"


@pytest.mark.parametrize("size", [16, 33, 128])
def test_the_crop_fits_into_its_canvas(size: int) -> None:
    """Also a turned one, whose corners reach furthest."""
    align = Align(size=size)
    data, side = encode(texture(64, 64)), canvas_side(align)
    edge = torch.tensor([[0.0, 0], [size - 1, 0], [0, size - 1], [size - 1, size - 1]])[None]
    rng = np.random.default_rng(size)
    for span in (0.6, 1.3, 1.9, 1.99, 2.7, 2.99, 3.6, 3.99, 5.99, 6.9, 7.99, 9.0, 11.9, 15.9, 29.0):
        for tilt in (0.0, 20.0, 45.0, 135.0):
            centre = tuple(rng.uniform(30, 40, 2).tolist())
            canvases = face_canvases(data, face(align, span, centre, tilt)[None], None, align)
            matrix = crop_map(torch.from_numpy(canvases.points), torch.from_numpy(canvases.box), align)
            corners = geometry.apply(geometry.invert(matrix), edge)
            assert float(corners.min()) >= 0, (span, tilt)
            assert float(corners.max()) <= side - 1, (span, tilt)


def test_small_faces_are_not_enlarged_before_the_warp() -> None:
    align, pixels = Align(size=64), texture(80, 90)
    canvases = face_canvases(encode(pixels, "PNG"), face(align, 0.5, (40, 45))[None], None, align)
    first = np.round(face(align, 0.5, (40, 45))[0] - canvases.points[0, 0]).astype(int)
    piece = canvases.pixels[0][-first[1] : 90 - first[1], -first[0] : 80 - first[0]]
    np.testing.assert_array_equal(piece, pixels)


# --- several faces, photos decoded before ---------------------------------------------------------


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("mode", ["similarity", "eyes", "box"])
def test_faces_of_one_photo_are_those_of_each_alone(form: str, mode: Any) -> None:
    """Of very different sizes, so that one needs the photo whole and another a quarter of it."""
    align = Align(mode=mode, size=48)
    data = encode(texture(801, 603), form)
    places = [(1.1, (200.0, 150.0)), (5.2, (500.0, 320.0)), (2.4, (700.0, 500.0)), (0.7, (30.0, 590.0))]
    points = np.stack([face(align, *place) for place in places])
    boxes = np.stack([square(span, 48, centre) for span, centre in places])
    together = face_canvases(data, points, boxes, align)
    for row in range(len(places)):
        alone = face_canvases(data, points[row : row + 1], boxes[row : row + 1], align)
        same(
            Canvases(*(part[row : row + 1] for part in (together.pixels, together.points, together.box))),
            alone,
        )
    backwards = face_canvases(data, points[::-1].copy(), boxes[::-1].copy(), align)
    np.testing.assert_array_equal(backwards.pixels[::-1], together.pixels)
    assert len({canvas.tobytes() for canvas in together.pixels}) == len(places)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("width", "height"), [(1280, 960), (1282, 961), (1281, 853), (641, 1279), (700, 500)]
)
def test_a_photo_decoded_before_gives_the_same_canvases(form: str, width: int, height: int) -> None:
    """What the detector decoded is used again, at any scale: training and scoring see the same
    pixels.
    """
    data = encode(texture(width, height), form)
    for mode, span in (
        ("similarity", 1.2),
        ("similarity", 2.5),
        ("similarity", 4.4),
        ("box", 2.1),
        ("none", 1.0),
    ):
        align = Align(mode=mode, size=64)
        points, box = (
            face(align, span, (width / 2, height / 2), 10)[None],
            square(span, 64, (width / 2, height / 2))[None],
        )
        fresh = face_canvases(data, points, box, align)
        for max_side in (None, 640, 320, 160):
            same(face_canvases(data, points, box, align, decode(data, max_side)), fresh)


@pytest.mark.parametrize(("form", "span", "decodings"), [("JPEG", 1.0, 1), ("JPEG", 4.5, 1), ("PNG", 4.5, 1)])
def test_a_photo_is_decoded_once(
    monkeypatch: pytest.MonkeyPatch, form: str, span: float, decodings: int
) -> None:
    align, seen = Align(size=64), list[int]()

    def counted(*arguments: Any, **options: Any) -> Any:
        photo = decode(*arguments, **options)
        seen.append(photo.scale)
        return photo

    monkeypatch.setattr(faces_canvases, "decode", counted)
    places = np.stack([face(align, span, (200, 200)), face(align, span, (220, 260))])
    face_canvases(encode(texture(500, 451), form), places, None, align)
    assert len(seen) == decodings, f"decoded at scales {seen}"


def test_the_decoders_shrinking_is_that_of_blocks() -> None:
    """The same scene as JPEG (shrunk by the decoder) and as PNG (in blocks) gives nearly the same
    face.
    """
    align = Align(size=64)
    pixels = np.asarray(
        Image.fromarray(texture(150, 120, seed=3)).resize((900, 720), Image.Resampling.BICUBIC)
    )
    for span in (2.0, 2.9, 4.0, 5.5, 8.2):
        points = face(align, span, (450, 350), 5)[None]
        jpeg, png = (
            aligned(face_canvases(encode(pixels, form), points, None, align), align)
            for form in ("JPEG", "PNG")
        )
        assert float((jpeg - png).abs().mean()) < 4


# --- edges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize(("width", "height"), [(447, 447), (448, 448), (451, 400), (1001, 1003)])
def test_a_whole_photo_keeps_its_last_rows_and_columns(form: str, width: int, height: int) -> None:
    """Where the blocks do not divide the photo, its last pixels count all the same and no fill
    shows.
    """
    align = Align(mode="none", size=64, fill=0)
    crops = aligned(
        face_canvases(encode(np.full((height, width, 3), 200, np.uint8), form), None, None, align), align
    )
    assert float((crops - 200).abs().max()) < 2


@pytest.mark.parametrize("fill", [0, 200])
def test_beyond_the_photo_the_canvas_is_filled(fill: int) -> None:
    align = Align(mode="box", size=32, fill=fill)
    pixels = texture(60, 50)
    canvases = face_canvases(encode(pixels, "PNG"), None, square(1.0, 32, (58, 3))[None], align)
    first = np.round(square(1.0, 32, (58, 3))[:2] - canvases.box[0, :2]).astype(int)
    whole = np.full((200, 200, 3), fill, np.uint8)
    whole[70:120, 70:130] = pixels
    side = canvas_side(align)
    expected = whole[70 + first[1] : 70 + first[1] + side, 70 + first[0] : 70 + first[0] + side]
    np.testing.assert_array_equal(canvases.pixels[0], expected)


def test_a_face_far_outside_gets_an_empty_canvas() -> None:
    align = Align(size=32, fill=9)
    for form in ("JPEG", "PNG"):
        for span, centre in ((1.0, (5000.0, -3000.0)), (50.0, (9000.0, 9000.0)), (1.0, (-90.0, 20.0))):
            canvases = face_canvases(
                encode(texture(60, 50), form), face(align, span, centre)[None], None, align
            )
            assert np.unique(canvases.pixels).tolist() == [9]
            assert np.isfinite(canvases.points).all()


@pytest.mark.parametrize("size", [1e4, 1e8, 1e15, 1e25, 1e38])
def test_an_absurd_box_gives_a_canvas_or_an_image_error(size: float) -> None:
    align = Align(mode="box", size=32)
    try:
        canvases = face_canvases(
            encode(texture(60, 50)), None, np.array([[0, 0, size, size]], np.float32), align
        )
    except ImageError:
        return
    assert canvases.pixels.shape[1] == canvas_side(align)


@pytest.mark.parametrize("mode", ["similarity", "eyes", "box"])
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e15, 1e25, 1e36, 3e36])
def test_absurd_points_give_an_image_error(mode: Literal["similarity", "eyes", "box"], scale: float) -> None:
    """float32 goes up to 3e38: not an OverflowError, and no warning of numpy's."""
    align = Align(mode=mode, size=32)
    face_52 = face(align, 1, (50, 50))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for point in range(5):
            points = face_52.copy()
            points[point] *= scale
            for absurd in (face_52 * np.float32(scale), points, -points):
                if scale < 1 < np.abs(absurd).max() or (mode == "eyes" and np.abs(absurd[:2]).max() < 1000):
                    continue  # the points that it reads are sound
                with pytest.raises(ImageError, match="far beyond|coincide|no box"):
                    face_canvases(encode(texture(60, 50)), absurd[None], None, align)


# --- what is missing ------------------------------------------------------------------------------


def test_what_is_not_given_stays_nan() -> None:
    data = encode(texture(90, 80))
    align = Align(size=32)
    canvases = face_canvases(data, face(align, 1.0, (40, 40))[None], None, align)
    assert np.isfinite(canvases.points).all()
    assert np.isnan(canvases.box).all()
    canvases = face_canvases(data, None, square(1.0, 32, (40, 40))[None], Align(mode="box", size=32))
    assert np.isfinite(canvases.box).all()
    assert np.isnan(canvases.points).all()
    canvases = face_canvases(data, None, None, Align(mode="none", size=32))
    assert np.isnan(canvases.points).all()
    np.testing.assert_allclose(
        canvases.box[0, 2:] - canvases.box[0, :2], np.array([90, 80]) / 2, atol=1e-4
    )  # shrunk by 2


def test_corners_of_similar_faces_are_those_of_the_map() -> None:
    """They are computed twice: in numpy for speed, by the map that aligns the face as a check."""
    rng = np.random.default_rng(0)
    for size, coverage in ((160, 1.0), (97, 1.5)):
        align = Align(mode="similarity", size=size, coverage=coverage)
        points = []
        for _ in range(50):
            drawn = face(align, rng.uniform(0.2, 9), tuple(rng.uniform(0, 3000, 2)), rng.uniform(-180, 180))
            points.append(drawn + rng.normal(0, 2, (5, 2)).astype(np.float32))
        stacked = np.stack(points)
        unknown = np.full((50, 4), np.nan, np.float32)
        corners, spans = faces_canvases._similar_corners(stacked, align)
        expected, expected_spans = faces_canvases._mapped_corners(stacked, unknown, align)
        np.testing.assert_allclose(spans, expected_spans, rtol=1e-5)
        np.testing.assert_allclose(corners, expected, atol=0.01)  # of up to 3000 pixels, in float32
        assert corners.dtype == spans.dtype == np.float32


def test_eyes_need_no_mouth() -> None:
    align = Align(mode="eyes", size=32)
    points = face(align, 1.0, (40, 40))[None]
    points[0, 2:] = np.nan
    canvases = face_canvases(encode(texture(90, 80)), points, None, align)
    assert np.isfinite(canvases.points[0, :2]).all()
    assert np.isnan(canvases.points[0, 2:]).all()


@pytest.mark.parametrize(
    ("mode", "points", "box", "reason"),
    [
        ("similarity", None, [1, 1, 40, 40], "no landmarks"),
        ("similarity", [np.nan] * 10, None, "no landmarks"),
        ("similarity", [9, 9, 30, 9, 20, 20, np.nan, 30, 28, 30], None, "no landmarks"),
        ("similarity", [np.inf, 9, 30, 9, 20, 20, 9, 30, 28, 30], None, "no landmarks"),
        ("eyes", [np.nan, 9, 30, 9, 20, 20, 9, 30, 28, 30], None, "no landmarks"),
        ("eyes", None, None, "no landmarks"),
        ("box", [9, 9, 30, 9, 20, 20, 9, np.nan, 28, 30], None, "no box"),
        ("box", None, [1, 1, np.nan, 40], "no box"),
        ("similarity", [20] * 10, None, "no face to align"),
        ("similarity", [20.1, 33.3] * 5, None, "no face to align"),
        ("similarity", [123.4, 1017.3] * 5, None, "no face to align"),
        ("eyes", [9, 9, 9, 9, 20, 20, 9, 30, 28, 30], None, "no face to align"),
        ("box", None, [20, 20, 20, 20], "no face to align"),
        ("box", None, [40, 40, 10, 10], "no face to align"),
    ],
)
def test_what_cannot_be_aligned(
    mode: Any, points: list[float] | None, box: list[float] | None, reason: str
) -> None:
    landmarks = None if points is None else np.array(points, np.float32).reshape(1, 5, 2)
    edges = None if box is None else np.array([box], np.float32)
    with pytest.raises(ImageError, match=reason):
        face_canvases(encode(texture(60, 50)), landmarks, edges, Align(mode=mode, size=32))


@pytest.mark.parametrize("mode", MODES)
def test_undecodable_photos(mode: Any) -> None:
    align = Align(mode=mode, size=32)
    points, box = face(align, 1.0, (40, 40))[None], square(1.0, 32, (40, 40))[None]
    for data in (b"", b"no photo", encode(texture(90, 80))[:900]):
        with pytest.raises(ImageError):
            face_canvases(data, points, box, align)


# --- to the device --------------------------------------------------------------------------------


def test_to_tensors_converts_and_copies_nothing() -> None:
    canvas = np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3), np.uint8)
    columns = {
        "canvas": canvas,
        "points": np.zeros((3, 5, 2), np.float32),
        "age": np.arange(3, dtype=np.float32),
    }
    moved = to_tensors(columns, torch.device("cpu"))
    assert {name: tuple(tensor.shape) for name, tensor in moved.items()} == {
        "canvas": (3, 3, 20, 20),
        "points": (3, 5, 2),
        "age": (3,),
    }
    assert [moved[name].dtype for name in columns] == [torch.uint8, torch.float32, torch.float32]
    np.testing.assert_array_equal(moved["canvas"].permute(0, 2, 3, 1), canvas)
    assert moved["canvas"].is_contiguous(memory_format=torch.channels_last)
    assert moved["canvas"].data_ptr() == canvas.ctypes.data


@pytest.mark.filterwarnings("error")
def test_to_tensors_takes_read_only_memory_and_tensors() -> None:
    canvas = np.zeros((2, 8, 8, 3), np.uint8)
    canvas.flags.writeable = False
    moved = to_tensors({"canvas": canvas, "points": torch.ones(2, 5, 2)}, torch.device("cpu"))
    assert moved["canvas"].data_ptr() == canvas.ctypes.data  # a view: the stages only read it
    assert moved["points"].shape == (2, 5, 2)


def test_a_face_without_a_box_takes_the_one_that_its_points_suggest() -> None:
    """FG-NET with its own points; `align.mode: box` used to refuse it."""
    face = next(faces.faces(1, seed=3, size=120))
    align = Align(mode="box", size=48, coverage=1.2)
    with_points = face_canvases(face.jpeg(), face.points[None], None, align)
    side = np.linalg.norm(face.points[1] - face.points[0])
    box = geometry.box_of_points(torch.from_numpy(face.points[None]).float())[0].numpy()
    assert (box[2] - box[0]) / side == pytest.approx(2.35, rel=0.1)
    assert (box[3] - box[1]) / side == pytest.approx(3.03, rel=0.1)
    assert box[0] < face.points[:, 0].min() < face.points[:, 0].max() < box[2]
    assert box[1] < face.points[:, 1].min() < face.points[:, 1].max() < box[3]
    same = face_canvases(face.jpeg(), face.points[None], box[None], align)
    np.testing.assert_array_equal(with_points.pixels, same.pixels)
    np.testing.assert_allclose(with_points.box, same.box)
    own = face_canvases(face.jpeg(), face.points[None], np.array([[3, 3, 90, 90]], np.float32), align)
    assert not np.array_equal(own.box, same.box)  # a box of its own counts


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("mode", ["similarity", "eyes", "box"])
def test_a_turned_photo_gives_the_crop_of_the_upright_one(mode: Any, turns: int) -> None:
    align = Align(mode=mode, size=32)
    pixels = texture(160, 120)
    points, box = face(align, 1.5, (70.0, 60.0), 20.0), np.array([40, 30, 100, 96], np.float32)
    upright = face_canvases(encode(pixels, "PNG"), points[None], box[None], align)
    width, height = 160, 120
    for _ in range(turns):
        points = np.stack([points[:, 1], width - 1 - points[:, 0]], -1)
        x0, y0, x1, y1 = box
        box = np.array([y0, width - 1 - x1, y1, width - 1 - x0], np.float32)
        width, height = height, width
    turned = face_canvases(encode(np.rot90(pixels, turns).copy(), "PNG"), points[None], box[None], align)
    faces, others = aligned(turned, align), aligned(upright, align)
    assert float((faces - others).abs().mean()) < 2.5  # `texture` has a deviation of 40
    if mode != "similarity":  # it turns the face itself
        sides = [canvases.box[0, 2:] - canvases.box[0, :2] for canvases in (turned, upright)]
        np.testing.assert_allclose(*sides)


def test_a_photo_of_too_many_pixels_gives_a_canvas_of_a_smaller_scale(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    align, pixels = Align(size=32), texture(400, 300)
    points = face(align, 1.2, (200.0, 150.0))
    fine = aligned(face_canvases(encode(pixels), points[None], None, align), align)
    monkeypatch.setattr(faces_images, "MAX_PIXELS", 100_000)
    photo = decode(encode(pixels), max_side=100)
    coarse = face_canvases(encode(pixels), points[None], None, align, photo)
    assert float((aligned(coarse, align) - fine).abs().mean()) < 12
    expected = decode(encode(pixels), scale=1).shrink(points)
    np.testing.assert_allclose(np.diff(coarse.points[0], axis=0), np.diff(expected, axis=0), atol=1e-3)
