"""Measures of pictures, and pictures that are spoilt on purpose: each degradation moves the measure
that should tell it."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ageray.experiment import Align
from ageray.faces import degrade, quality
from ageray.faces.align import align_faces
from ageray.faces.canvases import face_canvases
from ageray.synthetic import faces as synthetic_faces

ALIGN = Align(size=64)
Pixels = NDArray[np.uint8]
Points = NDArray[np.float32]


@cache
def photo() -> tuple[Pixels, Points, Points]:
    (face,) = synthetic_faces.faces(1, seed=3, size=200)
    pixels = cv2.cvtColor(cv2.imdecode(np.frombuffer(face.jpeg(), np.uint8), 1), cv2.COLOR_BGR2RGB)
    grain = np.random.default_rng(0).normal(0, 4, pixels.shape)
    return np.clip(pixels + grain, 0, 255).astype(np.uint8), face.points, face.box


def measures(pixels: Pixels, points: Points, box: Points) -> dict[str, float]:
    data = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()
    canvas = face_canvases(data, points[None], box[None], ALIGN)
    pixel, place, frame = (
        torch.from_numpy(canvas.pixels),
        torch.from_numpy(canvas.points),
        torch.from_numpy(canvas.box),
    )
    aligned, moved = align_faces(pixel.permute(0, 3, 1, 2), place, frame, ALIGN)
    row = quality.measure(aligned, moved, place, frame, ALIGN)
    assert row.shape == (1, len(quality.MEASURES))
    return dict(zip(quality.MEASURES, row[0].tolist(), strict=True))


def spoilt(kind: str) -> dict[str, float]:
    pixels, points, box = photo()
    changed = degrade.degrade(pixels, points, kind)
    ratio = changed.shape[1] / pixels.shape[1]
    return measures(changed, points * ratio, box * ratio)


@pytest.mark.parametrize(
    ("kind", "measure", "sign"),
    [
        ("small_20", "resolution", -1),
        ("blur", "grain", -1),
        ("blur", "sharpness", -1),
        ("noise", "grain", 1),
        ("gray", "colour", -1),
        ("dark", "contrast", -1),
        ("dark", "brightness", 1),
        ("scan", "contrast", -1),
    ],
)
def test_a_degradation_moves_its_measure_to_the_hard_side(kind: str, measure: str, sign: int) -> None:
    good, bad = measures(*photo()), spoilt(kind)
    assert sign * (bad[measure] - good[measure]) > 0.1


def test_resolution_by_hand() -> None:
    """A face of 16 pixels, hairline to chin, is enlarged fourfold to 64; a large one is not
    enlarged."""
    pixels, points, box = photo()
    side = degrade.face_side(points)
    ratio = 16 / side
    size = (round(pixels.shape[1] * ratio), round(pixels.shape[0] * ratio))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    real = size[0] / pixels.shape[1]
    about = measures(np.asarray(small, np.uint8), points * real, box * real)
    assert about["resolution"] == pytest.approx(-2, abs=0.15)
    assert measures(*photo())["resolution"] == 0


def test_a_turned_face_by_hand() -> None:
    """The nose tip a quarter of the distance of the eyes beside the middle."""
    pixels, points, box = photo()
    moved = points.copy()
    middle = (points[0] + points[1]) / 2
    across = points[1] - points[0]
    down = np.array([-across[1], across[0]])
    moved[3], moved[4] = middle + 1.155 * down - 0.414 * across, middle + 1.155 * down + 0.414 * across
    moved[2] = middle + 0.571 * down + 0.25 * across
    about = measures(pixels, moved, box)
    assert about["turn"] == pytest.approx(0.25, abs=0.01)
    assert about["nod"] == pytest.approx(0, abs=0.01)
    straight = moved.copy()
    straight[2] = middle + 0.571 * down
    assert measures(pixels, straight, box)["turn"] == pytest.approx(0, abs=0.01)
    assert measures(pixels, straight, box)["misfit"] == pytest.approx(0, abs=0.005)
    assert about["misfit"] > 0.02


def test_a_face_without_points_has_numbers_all_the_same() -> None:
    face, nowhere = torch.full((1, 3, 64, 64), 90.0), torch.full((1, 5, 2), torch.nan)
    box = torch.tensor([[10.0, 10.0, 60.0, 60.0]])
    row = quality.measure(face, nowhere, nowhere, box, Align(size=64, mode="box"))
    assert torch.isfinite(row).all()


@pytest.mark.parametrize("kind", sorted(degrade.KINDS))
def test_degradations_repeat_and_leave_the_photo_alone(kind: str) -> None:
    pixels, points, _ = photo()
    before = pixels.copy()
    first, second = (degrade.degrade(pixels, points, kind, seed=5) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.array_equal(pixels, before)
    assert first.dtype == np.uint8
    assert (first.shape != pixels.shape) == kind.startswith("small")
    if kind != "none" and first.shape == pixels.shape:
        assert float(np.abs(first.astype(float) - pixels).mean()) > 1


def test_a_mask_covers_the_mouth_and_not_the_eyes() -> None:
    pixels, points, _ = photo()
    changed = degrade.degrade(pixels, points, "masked")

    def at(place: Points) -> bool:
        x, y = np.round(place).astype(int)
        return bool((changed[y, x] == pixels[y, x]).all())

    assert [at(place) for place in points] == [True, True, False, False, False]


def test_side_of_a_turned_face_comes_from_its_height() -> None:
    frontal = np.array([[0, 0], [40, 0], [20, 22.84], [3.44, 46.2], [36.56, 46.2]], np.float32)
    turned = frontal * np.array([0.3, 1], np.float32)
    assert degrade.face_side(frontal) == pytest.approx(100)
    assert degrade.face_side(turned) == pytest.approx(100)
