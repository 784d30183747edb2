"""Augmentation of training faces: a random map composed with the alignment's, and random changes
of the aligned pixels.

All random numbers come from one CPU generator in a fixed order, so a run is the same on every
device. They are drawn for the whole batch. A worker's faces may be a part of it (`Draws`), so that
N workers change their faces as one worker would.

Shape letters: B faces of this worker, S side of the aligned face.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from kornia.enhance import jpeg_codec_differentiable
from kornia.filters import gaussian_blur2d
from torch import Generator, Tensor
from torch.nn import functional as F

from ageray.experiment import Augment
from ageray.faces import geometry

_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Draws:
    """Draws random numbers for `total` faces and returns those of `rows` (B,)."""

    generator: Generator
    total: int
    rows: Tensor

    @classmethod
    def of(cls, count: int, generator: Generator, rank: int = 0, world: int = 1) -> Draws:
        """Draws for the `count` faces of part `rank` of `world` equal parts of a batch."""
        return cls(generator, world * count, torch.arange(rank * count, (rank + 1) * count))

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform numbers in low..high: (B, *shape)."""
        numbers = torch.rand(self.total * math.prod(shape), generator=self.generator) * (high - low) + low
        return numbers.view(self.total, *shape)[self.rows]

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers: (B, *shape)."""
        return torch.randn((self.total, *shape), generator=self.generator)[self.rows]

    def shared(self, low: float, high: float) -> float:
        """One number for all faces."""
        return float(torch.rand(1, generator=self.generator) * (high - low) + low)

    def subset(self, probability: float) -> tuple[Tensor, Draws]:
        """A random subset of the faces, each with the same probability.

        Returns the indices of this worker's faces in it, and draws for the subset of the whole
        batch.
        """
        selected = torch.rand(self.total, generator=self.generator) < probability
        position = selected.cumsum(0) - 1
        own = selected[self.rows]
        draws = Draws(self.generator, int(selected.sum()), position[self.rows][own])
        return own.nonzero().squeeze(-1), draws


def geometric_map(
    count: int, size: int, augment: Augment, generator: Generator, rank: int = 0, world: int = 1
) -> Tensor:
    """A random map of the aligned crop for each face: (B, 2, 3) on CPU.

    It mirrors, then zooms and rotates about the centre, then shifts. The `count` faces are part
    `rank` of `world` equal parts of a batch.
    """
    draws = Draws.of(count, generator, rank, world)
    angle = draws.uniform(-augment.rotation, augment.rotation) * (math.pi / 180)
    zoom = 1 + draws.uniform(-augment.scale, augment.scale)
    shift_B2 = draws.uniform(-augment.translation, augment.translation, 2) * size
    mirrored_B = draws.uniform(0, 1) < augment.flip
    cosine, sine = zoom * angle.cos(), zoom * angle.sin()
    linear = torch.stack([torch.stack([cosine, -sine], -1), torch.stack([sine, cosine], -1)], -2)
    centre = torch.full((2,), (size - 1) / 2)
    turn = torch.cat([linear, (centre + shift_B2 - linear @ centre).unsqueeze(-1)], -1)
    identity = torch.eye(2, 3)
    mirror = torch.where(mirrored_B[:, None, None], geometry.mirror_map(size), identity)
    return geometry.compose(turn, mirror)


def photometric(
    face_B3SS: Tensor, augment: Augment, generator: Generator, rank: int = 0, world: int = 1
) -> Tensor:
    """Aligned faces in 0..255 with random colour, sharpness and compression.

    Same shape and range. rank, world: as in `geometric_map`.
    """
    return _changed(face_B3SS, augment, Draws.of(len(face_B3SS), generator, rank, world))


def upcoming_maps(
    steps: int, count: int, size: int, augment: Augment, generator: Generator, rank: int = 0, world: int = 1
) -> Tensor:
    """The maps that `geometric_map` will give in the next `steps` training steps: (steps, B, 2, 3).

    `photometric` draws random numbers between two of them, so these are drawn as well. The state of
    `generator` does not change. Most of the time goes into the random numbers of `augment.noise`.
    """
    copy, no_faces = Generator(), torch.empty(0, 3, size, size)
    copy.set_state(generator.get_state())
    maps = [torch.empty(0, count, 2, 3)]
    for _ in range(steps):
        maps.append(geometric_map(count, size, augment, copy, rank, world)[None])
        _changed(no_faces, augment, Draws(copy, world * count, torch.empty(0, dtype=torch.int64)))
    return torch.cat(maps)


def _changed(face_B3SS: Tensor, augment: Augment, draws: Draws) -> Tensor:
    """`photometric`, with numbers from `draws`. For no faces it draws the same numbers."""
    device = face_B3SS.device
    luma = torch.tensor(_LUMA, device=device).view(1, 3, 1, 1)

    def factors(spread: float) -> Tensor:
        return (1 + draws.uniform(-spread, spread)).view(-1, 1, 1, 1).to(device)

    saturation = factors(augment.saturation)
    colourless = (draws.uniform(0, 1) < augment.gray).view(-1, 1, 1, 1).to(device)
    contrast, brightness = factors(augment.contrast), factors(augment.brightness)
    gray = (face_B3SS * luma).sum(1, keepdim=True)
    face_B3SS = torch.lerp(gray.expand_as(face_B3SS), face_B3SS, torch.where(colourless, 0.0, saturation))
    mean = gray.mean((2, 3), keepdim=True)
    face_B3SS = ((face_B3SS - mean) * contrast + mean) * brightness
    face_B3SS = _tint_and_gamma(face_B3SS.clamp(0, 255), augment, draws)
    changes: tuple[tuple[float, Callable[[Tensor, Draws], Tensor]], ...] = (
        (augment.blur, _blur),
        (augment.downscale, _downscale),
        (augment.noise, _noise),
        (augment.jpeg, _jpeg),
        (augment.erase, _erase),
    )
    for probability, change in changes:
        subset, subset_draws = draws.subset(probability)
        if subset_draws.total:
            subset = subset.to(device)
            changed = change(face_B3SS[subset], subset_draws)
            face_B3SS = face_B3SS.index_copy(0, subset, changed.to(face_B3SS.dtype))
    return face_B3SS.clamp(0, 255)


def _tint_and_gamma(face_B3SS: Tensor, augment: Augment, draws: Draws) -> Tensor:
    """Colour cast and exposure, for faces in 0..255."""
    cast = 1 + draws.uniform(-augment.tint, augment.tint, 3, 1, 1)
    spread = -math.log(1 - augment.gamma)
    exponent = draws.uniform(-spread, spread).exp().view(-1, 1, 1, 1)
    if augment.tint:
        face_B3SS = (face_B3SS * cast.to(face_B3SS)).clamp(0, 255)
    if augment.gamma:
        face_B3SS = (face_B3SS / 255).pow(exponent.to(face_B3SS)) * 255
    return face_B3SS


def _blur(face_B3SS: Tensor, draws: Draws) -> Tensor:
    size = face_B3SS.shape[-1]
    sigma = draws.uniform(0.3, 2.0) * (size / 128)
    if not len(face_B3SS):  # after the draw, which every worker makes
        return face_B3SS
    kernel = 2 * math.ceil(2.5 * 2.0 * size / 128) + 1
    blurred: Tensor = gaussian_blur2d(face_B3SS, kernel, sigma.view(-1, 1).expand(-1, 2).to(face_B3SS))
    return blurred


def _downscale(face_B3SS: Tensor, draws: Draws) -> Tensor:
    """Shrinks and enlarges. All faces take one size, because different sizes would need a
    resampling for each face.
    """
    size = face_B3SS.shape[-1]
    small = max(8, round(size * draws.shared(0.3, 0.8)))
    if not len(face_B3SS):
        return face_B3SS
    shrunk = F.interpolate(face_B3SS, (small, small), mode="bilinear", antialias=True, align_corners=False)
    return F.interpolate(shrunk, (size, size), mode="bilinear", align_corners=False)


def _noise(face_B3SS: Tensor, draws: Draws) -> Tensor:
    deviation = draws.uniform(0, 8, 1, 1, 1)
    return face_B3SS + (draws.normal(*face_B3SS.shape[1:]) * deviation).to(face_B3SS)


def _jpeg(face_B3SS: Tensor, draws: Draws) -> Tensor:
    quality = draws.uniform(20, 90).to(face_B3SS)
    if not len(face_B3SS):
        return face_B3SS
    height = face_B3SS.shape[-1]
    margin = -height % 16
    padded = F.pad(face_B3SS, (0, margin, 0, margin), mode="replicate") / 255
    coded: Tensor = jpeg_codec_differentiable(padded, quality)
    return coded[..., :height, :height] * 255


def _erase(face_B3SS: Tensor, draws: Draws) -> Tensor:
    size = face_B3SS.shape[-1]
    area, aspect = draws.uniform(0.02, 0.15), draws.uniform(-0.7, 0.7).exp()
    half_B2 = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], -1) * size / 2
    centre_B2 = draws.uniform(0, 1, 2) * size
    level = (draws.uniform(0, 1) * 255).view(-1, 1, 1, 1).to(face_B3SS)
    line = torch.arange(size)
    inside_B2S = (line - centre_B2[..., None]).abs() <= half_B2[..., None]
    hidden = (inside_B2S[:, 0, None, :] & inside_B2S[:, 1, :, None]).unsqueeze(1).to(face_B3SS.device)
    return torch.where(hidden, level, face_B3SS)
