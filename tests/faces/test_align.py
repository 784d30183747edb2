"""Where a point of the photo lands in the aligned face: drawn dots, measured by their centre of
mass, against formulas written out here.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ageray.experiment import Align
from ageray.faces import geometry
from ageray.faces.align import align_faces, crop_map, resample, standardize, warp
from ageray.faces.canvases import face_canvases
from ageray.synthetic import faces as synthetic_faces

Points = NDArray[np.float32]
FILL = 117
# A face-like figure as shares of the crop's side; the dots stand far enough apart to be weighed one
# by one.
FIGURE = np.array([[0.31, 0.33], [0.68, 0.31], [0.52, 0.53], [0.34, 0.76], [0.66, 0.78]])
MODES = [
    *(
        {"mode": "similarity", "size": size, "coverage": coverage}
        for size, coverage in ((64, 1.0), (128, 1.0), (97, 1.5), (128, 0.85))
    ),
    *(
        {"mode": "eyes", "size": size, "eyes_scale": scale}
        for size, scale in ((64, 3.2), (128, 2.6), (99, 4.0))
    ),
    *(
        {"mode": "box", "size": size, "coverage": coverage}
        for size, coverage in ((64, 1.0), (101, 1.0), (128, 1.4))
    ),
    *({"mode": "none", "size": size} for size in (64, 111, 128)),
]


def name(options: dict[str, Any]) -> str:
    return "-".join(str(value) for value in options.values())


class Scene:
    """A photo of five dots, its points and box, and where the alignment must bring the dots; a
    pixel of the crop spans `span` of the photo.
    """

    def __init__(self, align: Align, span: float, seed: int, tilt: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        self.align = align
        extent = align.size * span
        width, height = int(extent * 1.9) + 3, int(extent * 1.7) + 8
        corner = np.array([extent * 0.4, extent * 0.3]) + rng.random(2)
        if align.mode == "none":
            width, height, corner = round(extent * 1.2), round(extent * 0.9), np.zeros(2)
        figure = FIGURE
        if align.mode == "similarity":  # the template itself, turned: the only points that can all be met
            distance = 1 / (2.5 * align.coverage)
            figure = 0.5 + distance * np.array(
                [[-0.5, -0.5], [0.5, -0.5], [0, 0.071], [-0.414, 0.655], [0.414, 0.655]]
            )
        if align.mode == "eyes":
            figure = 0.5 + (FIGURE - 0.5) / (np.linalg.norm(FIGURE[1] - FIGURE[0]) * align.eyes_scale)
        angle = np.deg2rad(tilt)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        points = ((figure - 0.5) @ turn.T + 0.5) * extent + corner
        if align.mode == "none":
            points = FIGURE * [width, height] + rng.random(2)
        self.points = points.astype(np.float32)
        middle, half = corner + extent / 2, extent / align.coverage * np.array([0.4, 0.5])
        self.box = np.concatenate([middle - half, middle + half]).astype(np.float32)
        self.expected = self._expected(figure, width, height)
        y, x = np.mgrid[:height, :width]
        light = sum(
            np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * (self.spread * span) ** 2))
            for px, py in self.points.astype(float)
        )
        self.pixels = np.repeat((FILL + 130 * np.asarray(light)).round()[..., None], 3, 2).astype(np.uint8)

    @property
    def spread(self) -> float:
        """Standard deviation of a dot, about, in pixels of the crop."""
        return self.align.size / 45

    def _expected(self, figure: NDArray[np.float64], width: int, height: int) -> NDArray[np.float64]:
        points, size = self.points.astype(float), self.align.size
        if self.align.mode == "similarity":
            return figure * size - 0.5
        if self.align.mode == "eyes":
            eye_distance = np.linalg.norm(points[1] - points[0])
            side = self.align.eyes_scale * eye_distance
            start = points[:2].mean(0) + [0, eye_distance / 2] - side / 2
            return (points - start) * size / side - 0.5
        if self.align.mode == "box":
            side = max(self.box[2] - self.box[0], self.box[3] - self.box[1]) * self.align.coverage
            start = np.array([self.box[0] + self.box[2], self.box[1] + self.box[3]]) / 2 - side / 2
            return (points - start) * size / side - 0.5
        return (points + 0.5) * size / [width, height] - 0.5

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """The whole photo as a canvas."""
        box = np.array([-0.5, -0.5, self.pixels.shape[1] - 0.5, self.pixels.shape[0] - 0.5], np.float32)
        chosen = box if self.align.mode == "none" else self.box
        return (
            torch.from_numpy(self.pixels).permute(2, 0, 1)[None],
            torch.from_numpy(self.points)[None],
            torch.from_numpy(chosen)[None],
        )


def centroids(face_3SS: Tensor, expected: NDArray[np.float64], spread: float) -> NDArray[np.float64]:
    """Centres of mass of the dots of one channel within 4.5 standard deviations of where they
    should be.
    """
    light = (face_3SS[1].numpy().astype(float) - FILL - 2).clip(0)
    centres = []
    for x, y in expected:
        rows, columns = np.mgrid[: light.shape[0], : light.shape[1]]
        weight = light * (((columns - x) ** 2 + (rows - y) ** 2) < (4.5 * spread) ** 2)
        assert weight.sum() > 100, "no dot near where it should be"
        centres.append([(columns * weight).sum() / weight.sum(), (rows * weight).sum() / weight.sum()])
    return np.array(centres)


def encode(pixels: NDArray[np.uint8], form: str) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, form, **({"quality": 98} if form == "JPEG" else {}))
    return data.getvalue()


def canvas_tensors(scene: Scene, data: bytes) -> tuple[Tensor, Tensor, Tensor]:
    canvases = face_canvases(data, scene.points[None], scene.box[None], scene.align)
    return (
        torch.from_numpy(canvases.pixels).permute(0, 3, 1, 2),
        torch.from_numpy(canvases.points),
        torch.from_numpy(canvases.box),
    )


# --- pixel centres --------------------------------------------------------------------------------


@pytest.mark.parametrize("options", MODES, ids=name)
@pytest.mark.parametrize("tilt", [0.0, 17.0])
def test_points_land_where_they_should(options: dict[str, Any], tilt: float) -> None:
    for seed, span in enumerate((0.8, 1.0, 1.7)):
        scene = Scene(Align(**options), span, seed, tilt)
        face, points = align_faces(*scene.tensors(), scene.align)
        np.testing.assert_allclose(points[0], scene.expected, atol=0.01)
        assert np.abs(centroids(face[0], scene.expected, scene.spread) - scene.expected).max() < 0.05, span


@pytest.mark.parametrize("options", MODES, ids=name)
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_points_land_where_they_should_through_canvases(options: dict[str, Any], form: str) -> None:
    """Photos shrunk by 1, 2, 3, 5 and 8: in whole blocks, and by the JPEG decoder at 1/2, 1/4 and
    1/8.
    """
    for seed, span in enumerate((0.7, 1.4, 2.3, 3.4, 5.3, 8.6)):
        if span * options["size"] > 600:
            continue
        scene = Scene(Align(**options), span, seed, tilt=6.0 * seed)
        face, points = align_faces(*canvas_tensors(scene, encode(scene.pixels, form)), scene.align)
        np.testing.assert_allclose(points[0], scene.expected, atol=0.01)
        assert np.abs(centroids(face[0], scene.expected, scene.spread) - scene.expected).max() < 0.05, span


def test_similarity_brings_the_points_to_the_template() -> None:
    for size, coverage in ((128, 1.0), (97, 1.5)):
        scene = Scene(Align(size=size, coverage=coverage), 1.3, 5, tilt=-25)
        _, points = align_faces(*scene.tensors(), scene.align)
        np.testing.assert_allclose(points[0], geometry.template(size, coverage), atol=0.01)


def test_faces_of_a_batch_do_not_touch_each_other() -> None:
    scenes = [Scene(Align(size=64), 1.0, seed, tilt) for seed, tilt in ((0, 0.0), (1, 40.0), (2, -120.0))]
    tensors = [torch.cat(parts) for parts in zip(*(scene.tensors() for scene in scenes), strict=True)]
    together, points = align_faces(*tensors, scenes[0].align)
    for row, scene in enumerate(scenes):
        alone, own = align_faces(*scene.tensors(), scene.align)
        torch.testing.assert_close(together[row], alone[0], rtol=0, atol=1e-3)
        torch.testing.assert_close(points[row], own[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("mode", ["similarity", "eyes", "box"])
def test_the_warp_of_a_gpu_is_that_of_kornia(mode: Any) -> None:
    """Within 0.01 gray values, for turned and mirrored faces and beyond the canvas's edges."""
    align = Align(size=96, mode=mode)
    faces = list(synthetic_faces.faces(6, seed=2, size=140))
    pieces = [face_canvases(face.jpeg(), face.points[None], face.box[None], align) for face in faces]
    canvas, points, box = (
        torch.from_numpy(np.concatenate([getattr(piece, name) for piece in pieces]))
        for name in ("pixels", "points", "box")
    )
    canvas = canvas.permute(0, 3, 1, 2)
    turned = torch.tensor([[-0.9, 0.5, 60.0], [0.4, 1.3, -30.0]]).expand(6, 2, 3)
    straight = crop_map(points, box, align)
    for matrix in (straight, geometry.compose(turned, straight)):
        own = resample(canvas.float() - align.fill, matrix, align.size) + align.fill
        torch.testing.assert_close(own, warp(canvas, matrix, align), rtol=0, atol=0.01)


def test_no_faces() -> None:
    face, points = align_faces(
        torch.zeros(0, 3, 50, 50, dtype=torch.uint8), torch.zeros(0, 5, 2), torch.zeros(0, 4), Align(size=32)
    )
    assert face.shape == (0, 3, 32, 32)
    assert points.shape == (0, 5, 2)


# --- the one warp ---------------------------------------------------------------------------------


def smooth(height: int, width: int) -> Tensor:
    """Slow waves, another in each channel: two resamplings of it differ little from one."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([127 + 100 * torch.sin(x / a + y / b) for a, b in ((17, 23), (29, -19), (21, 40))])[
        None
    ]


def augmentation(
    size: int, degrees: float, zoom: float, shift: tuple[float, float], mirrored: bool
) -> Tensor:
    angle, centre = np.deg2rad(degrees), (size - 1) / 2
    linear = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn = np.concatenate(
        [linear, ([centre, centre] + np.array(shift) - linear @ [centre, centre])[:, None]], 1
    )
    matrix = torch.tensor(turn, dtype=torch.float32)[None]
    return geometry.compose(matrix, geometry.mirror_map(size)[None]) if mirrored else matrix


@pytest.mark.parametrize("mode", ["similarity", "eyes", "box"])
@pytest.mark.parametrize("mirrored", [False, True])
def test_one_warp_equals_two(mode: Any, mirrored: bool) -> None:
    align = Align(mode=mode, size=96)
    scene = Scene(align, 1.2, 3, tilt=9)
    canvas, (_, points, box) = smooth(*scene.pixels.shape[:2]), scene.tensors()
    augment = augmentation(96, 12, 1.1, (4.3, -2.6), mirrored)
    once, moved = align_faces(canvas, points, box, align, augment)
    aligned, aligned_points = align_faces(canvas, points, box, align)
    twice = warp(aligned, augment, align)
    # Only where the second warp reads inside the aligned face, which has lost what lies around it.
    inside = warp(torch.full_like(aligned, 1000.0), augment, align) > 999
    assert 0.5 < float(inside.float().mean()) < 1
    assert float((once - twice)[inside].abs().max()) < 0.6
    expected = geometry.apply(augment, aligned_points)
    expected = expected[:, [1, 0, 2, 4, 3]] if mirrored else expected
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-3)


def test_mirroring_in_the_map_equals_mirrored_pixels() -> None:
    for size in (64, 65):
        scene = Scene(Align(size=size), 1.1, 2, tilt=14)
        aligned, points = align_faces(*scene.tensors(), scene.align)
        mirrored, moved = align_faces(*scene.tensors(), scene.align, geometry.mirror_map(size)[None])
        torch.testing.assert_close(mirrored, aligned.flip(-1), rtol=0, atol=0.02)
        torch.testing.assert_close(moved, geometry.mirror_points(points, size), rtol=0, atol=1e-4)
        assert float(moved[0, 0, 0]) < float(moved[0, 1, 0])
        assert float(moved[0, 3, 0]) < float(moved[0, 4, 0])


def test_left_and_right_change_names_only_where_the_face_is_mirrored() -> None:
    scene = Scene(Align(size=64), 1.0, 0)
    canvas, points, box = (torch.cat([part, part]) for part in scene.tensors())
    augment = torch.cat([augmentation(64, 200, 1, (0, 0), mirrored) for mirrored in (False, True)])
    _, moved = align_faces(canvas, points, box, scene.align, augment)
    plain = geometry.apply(augment, geometry.template(64).expand(2, 5, 2))
    torch.testing.assert_close(moved[0], plain[0], rtol=0, atol=1e-3)
    torch.testing.assert_close(moved[1], plain[1, [1, 0, 2, 4, 3]], rtol=0, atol=1e-3)


def test_gradients_reach_the_pixels() -> None:
    scene = Scene(Align(size=32), 1.0, 0)
    canvas, points, box = scene.tensors()
    canvas = canvas.float().requires_grad_()
    align_faces(canvas, points, box, scene.align)[0].sum().backward()
    assert canvas.grad is not None
    assert float(canvas.grad.sum()) == pytest.approx(3 * 32 * 32, rel=1e-3)


# --- outside --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", [0, 117, 255])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_outside_the_photo_lies_the_fill_value(fill: int, form: str) -> None:
    align = Align(mode="box", size=64, fill=fill)
    for span in (0.8, 2.0, 4.0):
        side = 64 * span
        photo = np.full((round(side * 1.5), round(side * 1.5), 3), 50, np.uint8)
        box = np.array([[-side / 2, -side / 4, side / 2, side * 3 / 4]], np.float32)
        canvases = face_canvases(encode(photo, form), None, box, align)
        face, _ = align_faces(
            torch.from_numpy(canvases.pixels).permute(0, 3, 1, 2),
            *map(torch.from_numpy, (canvases.points, canvases.box)),
            align,
        )
        # The photo starts at half the crop's width and a quarter of its height.
        assert face[0, :, :, :30].unique().tolist() == [fill]
        assert face[0, :, :14].unique().tolist() == [fill]
        assert float((face[0, :, 18:, 34:] - 50).abs().max()) <= 1


@pytest.mark.parametrize("options", [option for option in MODES if option["mode"] != "none"], ids=name)
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_where_the_canvas_ends_does_not_show(options: dict[str, Any], form: str) -> None:
    """The crop from a canvas equals the crop from the whole photo, also at the photo's edges and in
    a turned face.
    """
    align = Align(**options)
    # the canvas of a photo that lies on its side is turned, except where the map turns each face
    lying = -100.0 if align.mode == "similarity" else -55.0
    for seed, span, tilt in ((0, 1.0, 0.0), (1, 1.9, 8.0), (2, 1.5, 45.0), (3, 1.2, lying)):
        scene = Scene(align, span, seed, tilt)
        scene.points += np.float32(align.size * span * (0.3 if seed == 3 else 0))
        scene.box += np.float32(align.size * span * (0.3 if seed == 3 else 0))
        rng = np.random.default_rng(seed)
        scene.pixels = rng.integers(0, 256, scene.pixels.shape, np.uint8)
        data = encode(scene.pixels, form)
        scene.pixels = np.array(Image.open(io.BytesIO(data)))
        whole, _ = align_faces(*scene.tensors(), align)
        cut, _ = align_faces(*canvas_tensors(scene, data), align)
        assert float((whole - cut).abs().max()) < 1


def test_a_shrunk_canvas_is_the_photo_seen_from_afar() -> None:
    """Blocks of a large photo: the crop is that of the photo shrunk as a whole, up to their
    different kernels.
    """
    face = synthetic_faces.draw_face(4, 50, size=512)
    align = Align(size=64, coverage=1.0)
    data = encode(face.pixels, "PNG")
    canvases = face_canvases(data, face.points[None], face.box[None], align)
    ours, _ = align_faces(
        torch.from_numpy(canvases.pixels).permute(0, 3, 1, 2),
        *map(torch.from_numpy, (canvases.points, canvases.box)),
        align,
    )
    small = np.asarray(Image.fromarray(face.pixels).resize((512 // 3, 512 // 3), Image.Resampling.BOX))
    points = torch.from_numpy((face.points + 0.5) * (512 // 3) / 512 - 0.5)[None]
    theirs, _ = align_faces(
        torch.from_numpy(small.copy()).permute(2, 0, 1)[None], points, torch.zeros(1, 4), align
    )
    assert float((ours - theirs).abs().mean()) < 3
    assert float(ours.std()) > 20


def test_missing_points_give_no_map() -> None:
    points, box = torch.full((1, 5, 2), torch.nan), torch.full((1, 4), torch.nan)
    for mode in ("similarity", "eyes", "box", "none"):
        assert bool(crop_map(points, box, Align(mode=mode)).isnan().any())
    # Each mode reads only what it needs.
    assert bool(crop_map(geometry.template(64)[None], box, Align(mode="similarity")).isfinite().all())
    assert bool(crop_map(geometry.template(64)[None], box, Align(mode="eyes")).isfinite().all())
    assert bool(crop_map(points, torch.tensor([[0.0, 0, 9, 9]]), Align(mode="box")).isfinite().all())


# --- standardize ----------------------------------------------------------------------------------


def faces(size: int) -> Tensor:
    drawn = [
        torch.from_numpy(face.pixels).permute(2, 0, 1) for face in synthetic_faces.faces(3, seed=1, size=size)
    ]
    return torch.stack(drawn).float()


@pytest.mark.parametrize("size", [64, 97])
def test_standardized_statistics(size: int) -> None:
    result = standardize(faces(size), Align(size=size, standardize=True))
    edge = round(size * 0.2)
    middle = result[..., edge : size - edge, edge : size - edge].double().flatten(2)
    torch.testing.assert_close(
        middle.mean(-1), torch.full((3, 3), 117.0, dtype=torch.float64), rtol=0, atol=1e-2
    )
    torch.testing.assert_close(
        middle.std(-1), torch.full((3, 3), 55.0, dtype=torch.float64), rtol=0, atol=1e-2
    )


def test_standardized_faces_know_no_gain_or_offset() -> None:
    align, before = Align(size=64, standardize=True), faces(64)
    gain, offset = (
        torch.tensor([0.5, 1.4, 0.9]).view(1, 3, 1, 1),
        torch.tensor([60.0, -30.0, 5.0]).view(1, 3, 1, 1),
    )
    torch.testing.assert_close(
        standardize(before * gain + offset, align), standardize(before, align), rtol=0, atol=0.01
    )
    # What lies around the middle has no say in it.
    edge = before.clone()
    edge[..., :8, :] = 0
    torch.testing.assert_close(standardize(edge, align)[..., 8:, :], standardize(before, align)[..., 8:, :])


def test_standardize_leaves_other_faces_and_flat_ones_alone() -> None:
    before = faces(64)
    assert standardize(before, Align(size=64)) is before
    align = Align(size=64, standardize=True)
    alone = torch.cat([standardize(face[None], align) for face in before])
    torch.testing.assert_close(standardize(before, align), alone)
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.1 + 200
    flat = standardize(noise, align)
    assert float((flat - 117).abs().max()) < 10  # not blown up to the contrast of a face
