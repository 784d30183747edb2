"""Region pooling: against a naive implementation in float64, on faces whose points are known, and
with points that are none.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ageray.faces import geometry
from ageray.models.dhaa import Trunk
from ageray.models.regions import (
    REGIONS,
    RegionPooling,
    affine,
    inverse,
    sample,
    targets,
    template,
    to_unit,
    usable_points,
)
from ageray.synthetic.faces import draw_face

NAMES = list(REGIONS)
UPRIGHT: dict[str, Any] = {"roll": 0.0, "yaw": 0.0, "shift": (0.0, -0.05), "scale": 0.2}
TURNED: dict[str, Any] = {**UPRIGHT, "roll": 20.0, "shift": (0.05, -0.03)}
SIDE = 128  # of the drawn faces


def picture(seed: int, pose: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """A drawn face as a feature map (1, 3, SIDE, SIDE), and its points (1, 5, 2)."""
    face = draw_face(seed, 45, size=SIDE, **pose)
    return torch.from_numpy(face.pixels).permute(2, 0, 1)[None].float(), torch.from_numpy(face.points)[None]


def some_points(count: int, seed: int = 0, spread: float = 0.05) -> Tensor:
    """Frontal faces turned, scaled, moved and distorted a little, normalised: (count, 5, 2),
    float64.
    """
    rng = np.random.default_rng(seed)
    angle, zoom = rng.uniform(-0.6, 0.6, count), rng.uniform(0.5, 1.2, count)
    turn = (
        np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], -1).reshape(count, 2, 2)
        * zoom[:, None, None]
    )
    points = template().double().numpy() @ turn.transpose(0, 2, 1) + rng.uniform(-0.2, 0.2, (count, 1, 2))
    return torch.from_numpy(points + rng.normal(0, spread, points.shape))


# --- against naive implementations ----------------------------------------------------------------


def naive_affine(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Eq. 1 by numpy's solver: (2, 3)."""
    design = np.concatenate([source, np.ones((len(source), 1))], 1)
    return np.linalg.lstsq(design, target, rcond=None)[0].T


def naive_sample(
    features: NDArray[np.float64], matrix: NDArray[np.float64], size: int
) -> NDArray[np.float64]:
    """Bilinear sampling of each cell; outermost cells repeat outside the map: (C, size, size)."""
    channels, height, width = features.shape
    out = np.zeros((channels, size, size))
    for row in range(size):
        for column in range(size):
            x, y = matrix @ ((2 * column + 1) / size - 1, (2 * row + 1) / size - 1, 1)
            u = min(max(((x + 1) * width - 1) / 2, 0), width - 1)
            v = min(max(((y + 1) * height - 1) / 2, 0), height - 1)
            left, top = min(int(u), width - 2), min(int(v), height - 2)
            for dy, share_y in ((0, top + 1 - v), (1, v - top)):
                for dx, share_x in ((0, left + 1 - u), (1, u - left)):
                    out[:, row, column] += share_y * share_x * features[:, top + dy, left + dx]
    return out


def test_the_affine_map_is_that_of_numpys_solver() -> None:
    source, target_points = some_points(40), targets(NAMES).double()
    ours = affine(source[:, None], target_points)
    assert ours.shape == (40, 5, 2, 3)
    for face, points in enumerate(source.numpy()):
        for region, target in enumerate(target_points.numpy()):
            np.testing.assert_allclose(ours[face, region], naive_affine(points, target), rtol=1e-9, atol=1e-9)


def test_the_affine_map_is_no_similarity() -> None:
    """A face twice as wide is squeezed back; a similarity could not."""
    wide = template() * torch.tensor([2.0, 1.0])
    torch.testing.assert_close(
        affine(wide[None], template())[0], torch.tensor([[0.5, 0, 0], [0, 1, 0]]), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("size", [1, 5, 12])
def test_aligned_region_pooling_equals_a_naive_one(size: int) -> None:
    """Eq. 1, its inverse and the resampling, in float64; the regions reach beyond the map."""
    features = torch.rand(3, 2, 9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    points = (some_points(3, seed=2) + 1) * 9 / 2 - 0.5
    pooled = RegionPooling(NAMES).double()(features, points, size)
    assert list(pooled) == NAMES
    beyond = False
    for name, target in zip(NAMES, targets(NAMES).double().numpy(), strict=True):
        for face in range(3):
            matrix = naive_affine((2 * points[face].numpy() + 1) / 9 - 1, target)
            back = np.linalg.inv(np.concatenate([matrix, [[0, 0, 1]]]))[:2]
            beyond |= bool((np.abs(back @ [[-1, 1], [-1, 1], [1, 1]]) > 1).any())
            np.testing.assert_allclose(
                pooled[name][face], naive_sample(features[face].numpy(), back, size), atol=1e-6
            )
    assert beyond


def test_upright_squares_equal_naive_ones() -> None:
    features = torch.rand(2, 2, 11, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    unit = some_points(2, seed=3)
    pooled = RegionPooling(NAMES, "roi").double()(features, (unit + 1) * 11 / 2 - 0.5, 6)
    for face, points in enumerate(unit.numpy()):
        left, right, nose, mouth = points[0], points[1], points[2], points[3:].mean(0)
        centres = {
            "G-2": nose,
            "G-3": nose,
            "L-1": left,
            "L-2": (nose + (left + right) / 2) / 2,
            "L-3": mouth,
        }
        p, q = (set_ - set_.mean(0) for set_ in (points, template().double().numpy()))
        zoom = abs(np.vdot(p @ [1, 1j], q @ [1, 1j])) / np.square(p).sum()
        for name, half in {"G-2": 1, "G-3": 1 / 1.2, "L-1": 0.5, "L-2": 0.5, "L-3": 0.5}.items():
            matrix = np.column_stack([np.eye(2) * half / zoom, centres[name]])
            np.testing.assert_allclose(
                pooled[name][face], naive_sample(features[face].numpy(), matrix, 6), atol=1e-6
            )


# --- templates ------------------------------------------------------------------------------------


def test_the_template_and_the_central_regions_are_symmetric() -> None:
    mirrored = torch.tensor([-1.0, 1.0])
    for points in (template(), *targets(["G-2", "G-3", "L-2", "L-3"])):
        torch.testing.assert_close(points[list(geometry.MIRRORED)] * mirrored, points, atol=1e-6, rtol=0)


def test_regions_show_what_their_names_say() -> None:
    at = dict(zip(NAMES, targets(NAMES), strict=True))
    centre = torch.zeros(2)
    torch.testing.assert_close(at["G-2"], template())
    torch.testing.assert_close(at["G-3"], 1.2 * template())
    torch.testing.assert_close(at["L-1"][0], centre)
    torch.testing.assert_close((at["L-2"][2] + at["L-2"][:2].mean(0)) / 2, centre, atol=1e-6, rtol=0)
    torch.testing.assert_close(at["L-3"][3:].mean(0), centre, atol=1e-6, rtol=0)
    assert bool((at["G-3"].abs() < 1).all())


# --- the paper's argument -------------------------------------------------------------------------


def likeness(first: Tensor, second: Tensor) -> float:
    """Correlation over space of two regions, each channel about its own mean."""
    a, b = (x - x.mean((2, 3), keepdim=True) for x in (first, second))
    return float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt())


@pytest.mark.parametrize("seed", [1, 2, 4])
def test_a_turned_and_shifted_face_has_the_same_aligned_regions_but_not_the_same_squares(seed: int) -> None:
    """The raw picture as the feature map, as in the paper's Figure 2."""
    upright, turned = picture(seed, UPRIGHT), picture(seed, TURNED)
    aligned = [RegionPooling(NAMES)(*face, 56) for face in (upright, turned)]
    squares = [RegionPooling(NAMES, "roi")(*face, 56) for face in (upright, turned)]
    for name in NAMES:
        assert likeness(aligned[0][name], aligned[1][name]) > 0.93
        assert likeness(squares[0][name], squares[1][name]) < 0.87
        apart = [float((pair[0][name] - pair[1][name]).abs().mean()) for pair in (aligned, squares)]
        assert apart[1] > 2 * apart[0]


@torch.inference_mode()
def test_aligned_features_of_the_first_block_agree_better_than_squares() -> None:
    """Random filters see a turned face otherwise, yet regions cut along the turn agree better, each
    of them.
    """
    torch.manual_seed(0)
    trunk = Trunk(32).eval()
    like: dict[str, list[float]] = {}
    for seed in (1, 2, 3, 4):
        maps = [(trunk(face), points) for face, points in (picture(seed, UPRIGHT), picture(seed, TURNED))]
        for pooling in ("arp", "roi"):
            pooled = [RegionPooling(NAMES, pooling, stride=4)(*pair, 28) for pair in maps]
            like.setdefault(pooling, []).extend(likeness(pooled[0][name], pooled[1][name]) for name in NAMES)
    assert all(arp > roi + 0.02 for arp, roi in zip(like["arp"], like["roi"], strict=True))
    assert np.mean(like["arp"]) > 0.8
    assert np.mean(like["roi"]) < 0.65


@pytest.mark.parametrize("pooling", ["arp", "roi"])
def test_only_alignment_follows_an_affine_change_of_the_face(pooling: str) -> None:
    """If points p go to T p, an aligned region's map goes to T after it: exactly, whatever the five
    points.
    """
    change = torch.tensor([[1.1, -0.3, 0.1], [0.2, 0.8, -0.05]], dtype=torch.float64)
    points = some_points(20, seed=5)
    pool = RegionPooling(NAMES, pooling).double()
    maps = pool.aligned if pooling == "arp" else pool.upright
    apart = (
        (maps(geometry.apply(change, points)) - geometry.compose(change, maps(points))).abs().amax((-1, -2))
    )
    assert bool((apart < 1e-9).all() if pooling == "arp" else (apart > 0.05).all())


@pytest.mark.parametrize("pooling", ["arp", "roi"])
def test_the_mirror_image_gives_mirrored_regions_and_the_other_eye(pooling: str) -> None:
    face, points = picture(3, TURNED)
    face, points = face.double(), points.double()
    pool = RegionPooling(NAMES, pooling).double()
    direct, mirrored = pool(face, points, 40), pool(face.flip(-1), geometry.mirror_points(points, SIDE), 40)
    for name in ("G-2", "G-3", "L-2", "L-3"):
        torch.testing.assert_close(mirrored[name].flip(-1), direct[name], atol=1e-3, rtol=0)
    assert likeness(mirrored["L-1"].flip(-1), direct["L-1"]) < 0.5
    # what the left eye's region shows of the mirror image lies, in the picture itself, about the
    # right eye
    pool.targets[2, :, 0] -= 2 * template()[1, 0] / 0.5
    pool.anchors[2] = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(mirrored["L-1"].flip(-1), pool(face, points, 40)["L-1"], atol=1e-3, rtol=0)


# --- points that are none -------------------------------------------------------------------------

NAN, INF = math.nan, math.inf
TEMPLATE = template()
LINE = torch.linspace(-0.5, 0.5, 5)[:, None]
NONE = {
    "all NaN": torch.full((5, 2), NAN),
    "one NaN": TEMPLATE.clone().index_fill_(0, torch.tensor([3]), NAN),
    "infinite": TEMPLATE.clone().index_fill_(0, torch.tensor([1]), INF),
    "coincident": torch.full((5, 2), 0.3),
    "nearly coincident": 0.3 + 1e-4 * TEMPLATE,
    "enormous": 1e30 * TEMPLATE,
    "larger than any face": 10 * TEMPLATE,
}
FLAT = {
    "horizontal": LINE * torch.tensor([1.0, 0.0]),
    "vertical": LINE * torch.tensor([0.0, 1.0]),
    "diagonal": LINE * torch.tensor([0.7, 0.4]) + 0.1,
    "profile": TEMPLATE * torch.tensor([0.02, 1.0]),
    "stretched too far": TEMPLATE * torch.tensor([0.2, 1.0]),
    "mirrored": TEMPLATE * torch.tensor([-1.0, 1.0]) + LINE * torch.tensor([0.0, 1.0]),
}


@pytest.mark.parametrize("points", NONE.values(), ids=NONE.keys())
def test_points_that_are_none_give_way_to_the_templates(points: Tensor) -> None:
    batch = torch.stack([TEMPLATE + 0.1, points, 0.9 * TEMPLATE])
    usable = usable_points(batch, TEMPLATE)
    assert torch.equal(usable[1], TEMPLATE)
    assert torch.equal(usable[[0, 2]], batch[[0, 2]])


@pytest.mark.parametrize("points", FLAT.values(), ids=FLAT.keys())
def test_points_that_fix_no_affine_map_take_the_similarity(points: Tensor) -> None:
    target_points = targets(NAMES)
    torch.testing.assert_close(
        affine(points[None, None], target_points),
        geometry.similarity(points.expand(1, 5, 5, 2), target_points),
    )
    near = template() * torch.tensor([0.3, 1.0])  # a three-quarter view is still an affine one
    torch.testing.assert_close(affine(near[None], template())[0, 0, 0], torch.tensor(1 / 0.3))


@pytest.mark.parametrize("pooling", ["arp", "roi"])
@pytest.mark.parametrize("points", [*NONE.values(), *FLAT.values()], ids=[*NONE.keys(), *FLAT.keys()])
def test_no_points_give_a_region_that_is_not_finite(points: Tensor, pooling: str) -> None:
    features = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for region in RegionPooling(NAMES, pooling)(features, (points[None] + 1) * 8 - 0.5, 7).values():
        assert bool(torch.isfinite(region).all())
        assert float(region.std()) > 0.01


def test_a_face_without_points_is_cut_where_alignment_would_have_put_it() -> None:
    features = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pool = RegionPooling(NAMES)
    expected, regions = (
        pool(features, geometry.template(32)[None], 9),
        pool(features, torch.full((1, 5, 2), NAN), 9),
    )
    for name in NAMES:
        torch.testing.assert_close(regions[name], expected[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("pooling", ["arp", "roi"])
def test_a_map_of_every_fourth_pixel_is_cut_where_the_picture_is(pooling: str) -> None:
    """A picture of a slope, and its every fourth pixel, the first one first: the same values at the
    same places.
    """
    down, across = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    slope = (2 * down + across)[None, None]
    for points in (0.6 * geometry.template(64)[None] + 14, torch.full((1, 5, 2), NAN)):
        fine = RegionPooling(["L-1", "L-2"], pooling)(slope, points, 9)
        coarse = RegionPooling(["L-1", "L-2"], pooling, stride=4)(slope[..., ::4, ::4], points, 9)
        for name, region in fine.items():
            torch.testing.assert_close(coarse[name], region, atol=1e-3, rtol=0)


# --- sampling -------------------------------------------------------------------------------------


def test_the_identity_gives_the_map_itself() -> None:
    features = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    identity = torch.eye(2, 3).expand(2, 1, 2, 3)
    torch.testing.assert_close(sample(features, identity, 8)[0], features, atol=1e-6, rtol=0)
    assert to_unit(torch.tensor([0.0, 7.0, 3.5]), 8).tolist() == [-1 + 1 / 8, 1 - 1 / 8, 0]


def test_the_inverse_undoes_a_map() -> None:
    maps = affine(some_points(9), template().double())
    torch.testing.assert_close(
        geometry.compose(inverse(maps), maps), torch.eye(2, 3).double().expand(9, 2, 3)
    )


def test_gradient_goes_to_the_features_and_not_to_the_points() -> None:
    features = torch.rand(
        1, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    points = ((some_points(1) + 1) * 3 - 0.5).requires_grad_()
    pool = RegionPooling(NAMES).double()
    assert torch.autograd.gradcheck(lambda x: tuple(pool(x, points.detach(), 4).values()), (features,))
    sum(region.sum() for region in pool(features, points, 4).values()).backward()
    assert points.grad is None
    assert features.grad is not None


@pytest.mark.parametrize("pooling", ["arp", "roi"])
def test_places_keep_their_precision_under_bf16(pooling: str) -> None:
    """A position in a 64-cell map is off by up to a quarter cell in bf16; the regions are not."""
    face, points = picture(2, TURNED)
    pool, exact = RegionPooling(NAMES, pooling), RegionPooling(NAMES, pooling)(face, points, 40)
    with torch.autocast("cpu", torch.bfloat16):
        rough = pool(face.bfloat16(), points, 40)
    for name in NAMES:
        assert rough[name].dtype == torch.bfloat16
        torch.testing.assert_close(rough[name].float(), exact[name], atol=0.6, rtol=2**-7)


@torch.inference_mode()
def test_memory_format_and_neighbours_in_the_batch_change_nothing() -> None:
    faces, points = (
        torch.cat(parts) for parts in zip(*(picture(seed, TURNED) for seed in (1, 2, 3)), strict=True)
    )
    pool = RegionPooling(NAMES)
    together = pool(faces.contiguous(memory_format=torch.channels_last), points, 20)
    for row in range(3):
        alone = pool(faces[[row]], points[[row]], 20)
        for name in NAMES:
            torch.testing.assert_close(together[name][[row]], alone[name], atol=1e-3, rtol=0)
