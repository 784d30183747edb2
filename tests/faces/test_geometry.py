"""Least squares against an independent solver and against its own definition; the laws of maps;
mirroring.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ageray.experiment import Align
from ageray.faces import geometry
from ageray.faces.align import crop_map
from ageray.prepare import sources

QUICK = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**32 - 1)
# The points that ArcFace publishes for a 112 x 112 crop (Deng et al. 2019), slightly asymmetric.
ARCFACE = torch.tensor(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)


def draw(seed: int, *shape: int, spread: float = 100.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread


def similarity_map(scale: float, degrees: float, shift: tuple[float, float]) -> Tensor:
    angle = np.deg2rad(degrees)
    rows = [
        [np.cos(angle), -np.sin(angle), shift[0] / scale],
        [np.sin(angle), np.cos(angle), shift[1] / scale],
    ]
    return torch.tensor(rows, dtype=torch.float64) * scale


def solved(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The same least squares as a linear system in a, b, tx, ty: x' = a x - b y + tx, y' = b x + a
    y + ty.
    """
    x, y, one, nil = source[:, 0], source[:, 1], np.ones(len(source)), np.zeros(len(source))
    system = np.concatenate([np.stack([x, -y, one, nil], 1), np.stack([y, x, nil, one], 1)])
    a, b, tx, ty = np.linalg.lstsq(system, np.concatenate([target[:, 0], target[:, 1]]), rcond=None)[0]
    return np.array([[a, -b, tx], [b, a, ty]])


def residual(matrix: Tensor, source: Tensor, target: Tensor) -> Tensor:
    return (geometry.apply(matrix, source) - target).square().sum((-1, -2))


# --- the template ---------------------------------------------------------------------------------


def test_template_is_that_of_arcface_made_symmetric() -> None:
    fitted = geometry.similarity(ARCFACE[None], geometry.template(112))
    distances = (geometry.apply(fitted, ARCFACE[None]) - geometry.template(112)).norm(dim=-1)
    eyes = (geometry.template(112)[1] - geometry.template(112)[0]).norm()
    assert float(distances.max() / eyes) < 0.01


@pytest.mark.parametrize(("size", "coverage"), [(128, 1.0), (97, 1.0), (256, 1.7), (16, 0.5)])
def test_template_is_symmetric_and_scales_about_the_middle(size: int, coverage: float) -> None:
    points = geometry.template(size, coverage)
    torch.testing.assert_close(geometry.mirror_points(points, size), points)
    assert float(points[1, 0] - points[0, 0]) == pytest.approx(
        size / (geometry.TEMPLATE_SIDE * coverage), rel=1e-5
    )
    assert points[0, 1] < points[2, 1] < points[3, 1]
    middle = (size - 1) / 2
    torch.testing.assert_close((points - middle) * coverage, geometry.template(size) - middle)
    # In crops of two sizes the points share the place as a share of the side: pixel centres lie at
    # halves.
    torch.testing.assert_close((geometry.template(2 * size, coverage) + 0.5) / 2, points + 0.5)


# --- least squares --------------------------------------------------------------------------------


@QUICK
@given(seeds, st.integers(2, 12))
def test_similarity_equals_an_independent_solver(seed: int, count: int) -> None:
    source, target = draw(seed, 3, count, 2), draw(seed + 1, count, 2)
    maps = geometry.similarity(source, target)
    for matrix, points in zip(maps, source, strict=True):
        np.testing.assert_allclose(matrix, solved(points.numpy(), target.numpy()), rtol=1e-9, atol=1e-9)


@QUICK
@given(seeds, st.floats(-3, 3), st.integers(0, 10**6))
def test_no_other_similarity_is_closer(seed: int, size: float, direction: int) -> None:
    source, target = draw(seed, 1, 5, 2), draw(seed + 1, 5, 2)
    best = geometry.similarity(source, target)
    a, b, tx, ty = draw(direction, 4, spread=1) * 10**size
    # A change of scale and angle moves the points by hundreds of pixels where the same change of
    # the shift moves them by one.
    other = best + torch.stack([torch.stack([a / 100, -b / 100, tx]), torch.stack([b / 100, a / 100, ty])])
    assert float(residual(other, source, target)) > float(residual(best, source, target)) * (1 - 1e-12)


@pytest.mark.parametrize("scale", [0.01, 1.0, 50.0])
@pytest.mark.parametrize("degrees", [-170.0, 0.0, 33.0, 90.0])
def test_an_exact_similarity_is_recovered_in_float32(scale: float, degrees: float) -> None:
    """Also far from the origin, as in a corner of a large photo."""
    target = geometry.template(128).double()
    source = geometry.apply(
        geometry.invert(similarity_map(scale, degrees, (-3000.0 * scale, -2000.0 * scale))), target
    )
    maps = geometry.similarity(source[None].float(), target.float())
    landed = geometry.apply(maps.double(), source[None])
    assert float((landed - target).abs().max()) < 0.05
    assert float(geometry.scale_of(maps)) == pytest.approx(scale, rel=1e-3)


@QUICK
@given(seeds)
def test_never_a_reflection(seed: int) -> None:
    source = draw(seed, 1, 5, 2)
    mirrored = source * torch.tensor([-1.0, 1.0], dtype=torch.float64)
    assert float(torch.linalg.det(geometry.similarity(source, mirrored[0])[..., :2])) >= 0
    # A mirror image of a face is not brought onto the face, though a reflection would do it without
    # error.
    face = geometry.template(100).double()[None]
    matrix = geometry.similarity(face * torch.tensor([-1.0, 1.0], dtype=torch.float64), face[0])
    assert float(residual(matrix, face, face[0])) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coincident_points_give_zeros_and_the_mean(dtype: torch.dtype) -> None:
    target = geometry.template(64).to(dtype)
    maps = geometry.similarity(torch.full((2, 5, 2), 7.0, dtype=dtype), target)
    assert maps[..., :2].abs().max() == 0
    torch.testing.assert_close(maps[..., 2], target.mean(0).expand(2, 2))
    assert bool((geometry.scale_of(maps) == 0).all())


def test_missing_points_stay_missing() -> None:
    source = geometry.template(64).repeat(2, 1, 1)
    source[1, 3, 0] = torch.nan
    maps = geometry.similarity(source, geometry.template(64))
    assert bool(maps[0].isfinite().all())
    assert bool(maps[1].isnan().any())


def test_gradients() -> None:
    source, target = draw(1, 2, 5, 2, spread=1).requires_grad_(), draw(2, 5, 2, spread=1).requires_grad_()
    assert torch.autograd.gradcheck(geometry.similarity, (source, target))
    matrix, points = draw(3, 2, 2, 3, spread=1).requires_grad_(), draw(4, 2, 5, 2, spread=1).requires_grad_()
    assert torch.autograd.gradcheck(geometry.apply, (matrix, points))
    assert torch.autograd.gradcheck(geometry.invert, (matrix,))
    assert torch.autograd.gradcheck(geometry.compose, (matrix, matrix.detach().flip(0).requires_grad_()))


def test_hand_placed_points_land_as_near_to_the_template_as_can_be(fgnet: Path) -> None:
    texts = [file.read_text() for file in sorted((fgnet / "points").iterdir())]
    points = torch.tensor([sources.five_points(text) for text in texts], dtype=torch.float64).reshape(
        -1, 5, 2
    )
    target = geometry.template(128).double()
    maps = geometry.similarity(points, target)
    best = torch.tensor(np.stack([solved(face.numpy(), target.numpy()) for face in points]))
    torch.testing.assert_close(
        residual(maps, points, target), residual(best, points, target), rtol=1e-9, atol=0
    )
    # The pipeline's precision costs nothing that shows.
    landed = geometry.apply(geometry.similarity(points.float(), target.float()), points.float())
    assert float((landed.double() - geometry.apply(best, points)).abs().max()) < 1e-3
    # And the template is one of real faces: its points lie within a sixth of the eye distance for
    # half of them.
    eyes = float((target[1] - target[0]).norm())
    assert float((landed.double() - target).norm(dim=-1).mean(-1).median()) / eyes < 1 / 6


# --- maps -----------------------------------------------------------------------------------------


@QUICK
@given(seeds)
def test_laws_of_maps(seed: int) -> None:
    first, second, third = draw(seed, 3, 4, 2, 3, spread=1) + torch.eye(2, 3, dtype=torch.float64) * 3
    points = draw(seed + 1, 4, 5, 2)
    together = geometry.compose(second, first)
    torch.testing.assert_close(
        geometry.apply(together, points), geometry.apply(second, geometry.apply(first, points))
    )
    torch.testing.assert_close(
        geometry.compose(third, together), geometry.compose(geometry.compose(third, second), first)
    )
    identity = torch.eye(2, 3, dtype=torch.float64).expand(4, 2, 3)
    torch.testing.assert_close(geometry.compose(identity, first), first)
    torch.testing.assert_close(geometry.compose(geometry.invert(first), first), identity, rtol=0, atol=1e-7)
    torch.testing.assert_close(
        geometry.apply(geometry.invert(first), geometry.apply(first, points)), points, rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(
        geometry.scale_of(together), geometry.scale_of(first) * geometry.scale_of(second)
    )
    torch.testing.assert_close(geometry.closed_form_inverse(first), geometry.invert(first))
    torch.testing.assert_close(geometry.closed_form_determinant(first), geometry.determinant(first))


def test_scale_is_by_area() -> None:
    stretched = torch.tensor([[[2.0, 0, 5], [0, 8, 5]]])
    assert float(geometry.scale_of(stretched)) == 4
    assert float(geometry.scale_of(geometry.mirror_map(9)[None])) == 1


@pytest.mark.parametrize("size", [64, 65])
def test_mirrored_twice_is_the_identity(size: int) -> None:
    points = draw(0, 3, 5, 2).float()
    mirrored = geometry.mirror_points(points, size)
    torch.testing.assert_close(geometry.mirror_points(mirrored, size), points)
    twice = geometry.compose(geometry.mirror_map(size), geometry.mirror_map(size))
    torch.testing.assert_close(twice, torch.eye(2, 3))
    # The map moves the places, the points change their names as well.
    torch.testing.assert_close(
        geometry.apply(geometry.mirror_map(size), points)[:, [1, 0, 2, 4, 3]], mirrored
    )
    torch.testing.assert_close(mirrored[:, 0], torch.stack([size - 1 - points[:, 1, 0], points[:, 1, 1]], -1))
    # On pixels: column x goes to column size - 1 - x.
    assert geometry.apply(geometry.mirror_map(size), torch.tensor([[[0.0, 3.0]]])).tolist() == [
        [[size - 1.0, 3.0]]
    ]


@QUICK
@given(
    st.floats(-500, 500), st.floats(-500, 500), st.floats(2, 3000), st.floats(2, 3000), st.integers(16, 512)
)
def test_rectangle_fills_the_square(x: float, y: float, width: float, height: float, size: int) -> None:
    box = torch.tensor([[x, y, x + width, y + height]], dtype=torch.float64)
    matrix = geometry.rectangle_to_square(box, size)
    corners = geometry.apply(matrix, box.view(1, 2, 2))[0]
    torch.testing.assert_close(
        corners,
        torch.tensor([[-0.5, -0.5], [size - 0.5, size - 0.5]], dtype=torch.float64),
        rtol=0,
        atol=1e-6,
    )
    assert float(geometry.scale_of(matrix)) == pytest.approx(size / (width * height) ** 0.5)


def test_a_whole_picture_of_the_right_size_stays_as_it_is() -> None:
    whole = geometry.rectangle_to_square(torch.tensor([[-0.5, -0.5, 63.5, 63.5]]), 64)
    torch.testing.assert_close(whole[0], torch.eye(2, 3))


def test_two_points_fix_the_map_of_eyes_and_mouth() -> None:
    """The eyes' centre and the mouth's middle land where the template has them, whatever the
    nose."""
    points = geometry.template(200)[None] * 0.4 + torch.tensor([31.0, 9.0])
    points = points + draw(3, 1, 5, 2, spread=4.0).float()
    target = geometry.eyes_and_mouth(geometry.template(96, 1.2))
    align = Align(mode="eyes_mouth", size=96, coverage=1.2)
    matrix = crop_map(points, torch.full((1, 4), torch.nan), align)
    torch.testing.assert_close(
        geometry.apply(matrix, geometry.eyes_and_mouth(points)), target[None], rtol=1e-4, atol=1e-3
    )
    moved = points.clone()
    moved[:, 2] += 20
    torch.testing.assert_close(crop_map(moved, torch.full((1, 4), torch.nan), align), matrix)
