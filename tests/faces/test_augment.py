"""Each random change does what its setting says, to the faces it says, and nothing else."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from kornia.filters import gaussian_blur2d
from PIL import Image
from torch import Generator, Tensor

from ageray.experiment import Augment
from ageray.faces import geometry
from ageray.faces.augment import Draws, geometric_map, photometric
from ageray.synthetic import faces as synthetic_faces

SIZE = 64
NOTHING: dict[str, Any] = dict.fromkeys(
    ("flip", "rotation", "scale", "translation", "brightness", "contrast", "saturation"), 0
)
PROBABILITIES = ("gray", "blur", "downscale", "jpeg", "noise", "erase")
SPREADS = ("brightness", "contrast", "saturation", "tint", "gamma")
EVERYTHING = dict.fromkeys(PROBABILITIES, 0.5) | dict.fromkeys(SPREADS, 0.4)


def only(**settings: float) -> Augment:
    return Augment(**{**NOTHING, **settings})


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def faces(count: int, size: int = SIZE) -> Tensor:
    return torch.stack(
        [
            torch.from_numpy(face.pixels).permute(2, 0, 1).float()
            for face in synthetic_faces.faces(count, seed=1, size=size)
        ]
    )


def copies(count: int, size: int = SIZE) -> Tensor:
    return faces(1, size).repeat(count, 1, 1, 1)


def roughness(face_B3SS: Tensor) -> Tensor:
    """Energy of the differences between neighbours: (B,)."""
    return face_B3SS.diff(dim=-1).square().mean((1, 2, 3)) + face_B3SS.diff(dim=-2).square().mean((1, 2, 3))


def distance(one: Tensor, other: Tensor) -> Tensor:
    """Root mean square difference of each face: (B,)."""
    return (one - other).square().mean((1, 2, 3)).sqrt()


def uniform(values: Tensor, low: float, high: float) -> None:
    """Of hundreds of draws none leaves the range, and they fill it evenly."""
    assert low <= float(values.min())
    assert float(values.max()) <= high
    quarters = torch.histc(values.float(), 4, low, high) / len(values)
    assert float((quarters - 0.25).abs().max()) < 0.08, quarters


# --- the map --------------------------------------------------------------------------------------


def parts(matrix_B23: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mirrored or not, angle in degrees, zoom and shift of the centre over the size, of maps that
    mirror first.
    """
    linear = matrix_B23[:, :, :2]
    mirrored = torch.linalg.det(linear) < 0
    turn = torch.where(mirrored[:, None, None], linear * torch.tensor([-1.0, 1.0]), linear)
    angle = torch.atan2(turn[:, 1, 0], turn[:, 0, 0]) * 180 / math.pi
    zoom = turn[:, :, 0].norm(dim=-1)
    rotation = torch.stack(
        [torch.stack([turn[:, 0, 0], -turn[:, 1, 0]], -1), torch.stack([turn[:, 1, 0], turn[:, 0, 0]], -1)],
        -2,
    )
    torch.testing.assert_close(turn, rotation, rtol=0, atol=1e-5)  # neither sheared nor stretched
    centre = torch.full((len(matrix_B23), 1, 2), (size - 1) / 2)
    return mirrored, angle, zoom, (geometry.apply(matrix_B23, centre) - centre)[:, 0] / size


@pytest.mark.parametrize("size", [64, 225])
def test_ranges_of_the_map(size: int) -> None:
    augment = Augment(flip=0.3, rotation=25, scale=0.2, translation=0.07)
    mirrored, angle, zoom, shift = parts(geometric_map(800, size, augment, seeded()), size)
    assert 0.25 < float(mirrored.float().mean()) < 0.35
    uniform(angle, -25, 25)
    uniform(zoom, 0.8, 1.2)
    uniform(shift[:, 0], -0.07, 0.07)
    uniform(shift[:, 1], -0.07, 0.07)
    # One says nothing about another, nor about the next face.
    drawn = torch.stack(
        [mirrored.float(), angle, zoom, shift[:, 0], shift[:, 1], angle.roll(1), shift[:, 0].roll(1)]
    )
    assert float((torch.corrcoef(drawn) - torch.eye(7)).abs().max()) < 0.15


@pytest.mark.parametrize("name", ["rotation", "scale", "translation", "flip"])
def test_each_part_of_the_map_alone(name: str) -> None:
    mirrored, angle, zoom, shift = parts(geometric_map(50, SIZE, only(**{name: 0.5}), seeded()), SIZE)
    spreads = {"flip": mirrored.float(), "rotation": angle, "scale": zoom - 1, "translation": shift}
    for other, values in spreads.items():
        assert (float(values.abs().max()) > 0.1) == (other == name), other


def test_no_change_is_the_identity() -> None:
    matrix = geometric_map(4, SIZE, only(), seeded())
    torch.testing.assert_close(matrix, torch.eye(2, 3).expand(4, 2, 3), rtol=0, atol=1e-4)
    mirror = geometric_map(4, SIZE, only(flip=1), seeded())
    torch.testing.assert_close(mirror, geometry.mirror_map(SIZE).expand(4, 2, 3), rtol=0, atol=1e-4)


# --- pixels ---------------------------------------------------------------------------------------


def test_nothing_chosen_changes_nothing() -> None:
    before = faces(4)
    torch.testing.assert_close(photometric(before, only(), seeded()), before, rtol=0, atol=1e-3)


def test_the_generator_alone_decides() -> None:
    augment, before = Augment(**EVERYTHING), faces(6)
    once = photometric(before, augment, seeded(5))
    torch.testing.assert_close(photometric(before, augment, seeded(5)), once, rtol=0, atol=0)
    torch.manual_seed(1)
    torch.testing.assert_close(photometric(before, augment, seeded(5)), once, rtol=0, atol=0)
    assert float(distance(photometric(before, augment, seeded(6)), once).min()) > 1
    torch.testing.assert_close(
        geometric_map(6, SIZE, augment, seeded(5)), geometric_map(6, SIZE, augment, seeded(5)), rtol=0, atol=0
    )


@pytest.mark.parametrize("size", [32, 65, 100])
@pytest.mark.parametrize("count", [1, 5])
def test_shape_range_and_type(size: int, count: int) -> None:
    before = faces(count, size)
    original = before.clone()
    for seed, settings in enumerate(
        (dict.fromkeys(PROBABILITIES, 1.0), dict.fromkeys(PROBABILITIES, 0.5), {"noise": 1.0})
    ):
        after = photometric(before, Augment(**settings, **dict.fromkeys(SPREADS, 0.9)), seeded(seed))
        assert after.shape == before.shape
        assert after.dtype == torch.float32
        assert bool(after.isfinite().all())
        assert float(after.min()) >= 0
        assert float(after.max()) <= 255
    torch.testing.assert_close(before, original, rtol=0, atol=0)  # the faces given are left alone


def test_black_and_white_faces_survive() -> None:
    flat = torch.stack([torch.zeros(3, SIZE, SIZE), torch.full((3, SIZE, SIZE), 255.0)])
    after = photometric(
        flat, Augment(**dict.fromkeys(PROBABILITIES, 1.0), **dict.fromkeys(SPREADS, 0.9)), seeded()
    )
    assert bool(after.isfinite().all())


@pytest.mark.parametrize("name", [*SPREADS, *PROBABILITIES])
def test_faces_do_not_depend_on_each_other(name: str) -> None:
    """Another face in the same place of the batch gets the same draws, and its neighbours come out
    the same.
    """
    before = faces(6)
    other = before.clone()
    other[2] = 255 - other[2].flip(-1)
    one, two = (
        photometric(before, only(**{name: 0.5}), seeded(3)),
        photometric(other, only(**{name: 0.5}), seeded(3)),
    )
    rows = [0, 1, 3, 4, 5]
    torch.testing.assert_close(one[rows], two[rows], rtol=0, atol=1e-3)
    assert float(distance(one[2:3], two[2:3])) > 5


@pytest.mark.parametrize("name", PROBABILITIES)
def test_probability_is_the_share_of_changed_faces(name: str) -> None:
    before = copies(200, 128 if name == "blur" else 32)  # on a small face the narrowest blur does nothing
    changed = distance(photometric(before, only(**{name: 0.3}), seeded()), before) > 0.01
    assert 0.2 < float(changed.float().mean()) < 0.4
    assert bool((distance(photometric(before, only(**{name: 1.0}), seeded()), before) > 0.001).all())


def test_brightness_is_a_factor() -> None:
    before = faces(1).clamp(20, 180).repeat(400, 1, 1, 1)[..., ::8, ::8]
    after = photometric(before, only(brightness=0.3), seeded())
    factor = after.mean((1, 2, 3)) / before.mean((1, 2, 3))
    torch.testing.assert_close(after, before * factor.view(-1, 1, 1, 1), rtol=0, atol=0.05)
    uniform(factor, 0.7, 1.3)


def test_contrast_keeps_the_mean() -> None:
    before = faces(1).clamp(100, 150).repeat(400, 1, 1, 1)[..., ::8, ::8]
    after = photometric(before, only(contrast=0.3), seeded())
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    torch.testing.assert_close(
        (after * luma).sum(1).mean((1, 2)), (before * luma).sum(1).mean((1, 2)), rtol=0, atol=0.05
    )
    uniform(after.std((1, 2, 3)) / before.std((1, 2, 3)), 0.7, 1.3)


def test_saturation_keeps_the_gray_value() -> None:
    before = faces(1).clamp(60, 190).repeat(400, 1, 1, 1)[..., ::8, ::8]
    after = photometric(before, only(saturation=0.3), seeded())
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    torch.testing.assert_close((after * luma).sum(1), (before * luma).sum(1), rtol=0, atol=0.05)
    uniform((after[:, 0] - after[:, 2]).std((1, 2)) / (before[:, 0] - before[:, 2]).std((1, 2)), 0.7, 1.3)


def test_tint_is_a_factor_for_each_channel() -> None:
    before = faces(1).clamp(20, 150).repeat(400, 1, 1, 1)[..., ::8, ::8]
    factor = photometric(before, only(tint=0.4), seeded()).mean((2, 3)) / before.mean((2, 3))
    for channel in range(3):
        uniform(factor[:, channel], 0.6, 1.4)
    assert float((torch.corrcoef(factor.T) - torch.eye(3)).abs().max()) < 0.15


def test_gamma_is_an_exponent() -> None:
    before = faces(1).clamp(20, 200).repeat(400, 1, 1, 1)[..., ::8, ::8]
    after = photometric(before, only(gamma=0.5), seeded())
    exponent = (after / 255).log() / (before / 255).log()
    assert float((exponent - exponent.mean((1, 2, 3), keepdim=True)).abs().max()) < 1e-2
    uniform(exponent.mean((1, 2, 3)).log(), -math.log(2), math.log(2))


def test_gray_has_equal_channels() -> None:
    before = faces(4)
    after = photometric(before, only(gray=1), seeded())
    assert float((after - after.mean(1, keepdim=True)).abs().max()) < 1e-3
    assert float((before - before.mean(1, keepdim=True)).abs().max()) > 10
    # No colour comes back from the saturation, and its brightness is that of the face.
    assert float(photometric(before, only(gray=1, saturation=1), seeded()).std(1).max()) < 1e-3
    assert float((after.mean((1, 2, 3)) - before.mean((1, 2, 3))).abs().max()) < 15


@pytest.mark.parametrize("name", ["blur", "downscale"])
def test_blurred_faces_are_smoother(name: str) -> None:
    before = copies(40, 128)
    after = photometric(before, only(**{name: 1}), seeded())
    share = roughness(after) / roughness(before)
    assert float(share.max()) < 1
    assert float(share.min()) < 0.6
    torch.testing.assert_close(after.mean((1, 2, 3)), before.mean((1, 2, 3)), rtol=0, atol=1.5)
    # Nothing is moved: the face turned, blurred and turned back is the face blurred.
    turned = photometric(before.flip(-1).flip(-2), only(**{name: 1}), seeded()).flip(-1).flip(-2)
    torch.testing.assert_close(turned, after, rtol=0, atol=0.05)


def test_blur_is_as_wide_as_it_says() -> None:
    """A dot spreads to a Gaussian of 0.3 to 2 pixels at 128, of half that at 64."""
    for size in (128, 64):
        dot = torch.zeros(60, 3, size, size)
        dot[..., size // 2, size // 2] = 255
        after = photometric(dot, only(blur=1), seeded())[:, 1].double()
        x = torch.arange(size) - size // 2
        line = after.sum(1)
        sigma = ((line * x**2).sum(1) / line.sum(1)).sqrt() * 128 / size
        assert 1.7 < float(sigma.max()) < 2.05
        assert float(sigma.min()) < 0.6


@pytest.mark.parametrize("size", [48, 128])
def test_blur_is_that_of_kornia(size: int) -> None:
    before, generator = faces(5, size), seeded()
    after = photometric(before, only(blur=1), generator)
    drawn = Draws.of(5, seeded())
    for _ in range(4):  # saturation, gray, contrast, brightness
        drawn.uniform(0, 1)
    drawn.uniform(0, 1, 3)  # tint
    drawn.uniform(0, 1)  # gamma
    some = drawn.subset(1)[1]
    sigma = some.uniform(0.3, 2.0) * (size / 128)
    taps = 2 * math.ceil(5 * size / 128) + 1
    expected = gaussian_blur2d(before, taps, sigma[:, None].expand(-1, 2))
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-3)


def test_noise_is_centred_and_bounded() -> None:
    before = torch.full((300, 3, 32, 32), 127.0)
    change = photometric(before, only(noise=1), seeded()) - before
    uniform(change.std((1, 2, 3)), 0, 8.15)
    assert float(change.mean().abs()) < 0.1


def test_jpeg_is_that_of_an_encoder() -> None:
    """The loss lies between those of Pillow's encoder at quality 90 and 20, and near both."""
    before = copies(40, 96)
    pixels = before[0].permute(1, 2, 0).round().byte().numpy()

    def loss(quality: int) -> float:
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "JPEG", quality=quality)
        return float(np.sqrt(np.mean((np.asarray(Image.open(data), float) - pixels) ** 2)))

    lost = distance(photometric(before, only(jpeg=1), seeded()), before)
    assert loss(92) * 0.7 < float(lost.min()) < loss(85) * 1.2
    assert loss(30) * 0.8 < float(lost.max()) < loss(18) * 1.2


@pytest.mark.parametrize("size", [50, 64])
def test_jpeg_reaches_the_edge_of_any_size(size: int) -> None:
    """The coder pads sizes that 16 does not divide; the padding must not show."""
    before = torch.full((8, 3, size, size), 100.0)
    assert float((photometric(before, only(jpeg=1), seeded()) - before).abs().max()) < 4


def test_erase_hides_a_rectangle() -> None:
    after = photometric(torch.full((300, 3, SIZE, SIZE), 127.3), only(erase=1), seeded())
    hidden = ((after - 127.3).abs() > 1e-3).any(1)
    rows, columns = hidden.any(2).sum(1), hidden.any(1).sum(1)
    assert bool((hidden.sum((1, 2)) == rows * columns).all())  # a full rectangle
    share = hidden.float().mean((1, 2))
    assert 0.13 < float(share.max()) < 0.17
    assert float(share.median()) > 0.03
    levels = torch.stack(
        [face[0][where].unique() for face, where in zip(after, hidden, strict=True) if where.any()]
    )
    assert levels.shape[1] == 1  # one gray value in each
    uniform(levels[:, 0], 0, 255)


def test_no_faces() -> None:
    empty = torch.zeros(0, 3, SIZE, SIZE)
    assert photometric(empty, Augment(**EVERYTHING), seeded()).shape == empty.shape
    assert geometric_map(0, SIZE, Augment(), seeded()).shape == (0, 2, 3)
