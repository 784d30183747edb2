"""Augmentation of training faces: a random map composed with the alignment's, and random changes
of the aligned pixels.

All random numbers come from one CPU generator in a fixed order, so a run is the same on every
device. For the noise that is a key for each face, from which the device makes the numbers of the
pixels (`ageray.faces.noise`). They are drawn for the whole batch. A worker's faces may be a part of
it (`Draws`), so that N workers change their faces as one worker would.

Shape letters: B faces of this worker, S side of the aligned face.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ageray.experiment import Augment
from ageray.faces import compression, geometry, noise

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

    def key(self) -> Tensor:
        """A number for each face from which its device makes others: (B,) int64."""
        return torch.randint(-(2**63), 2**63 - 1, (self.total,), generator=self.generator)[self.rows]

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
    `generator` does not change.
    """
    copy, no_faces = Generator(), torch.empty(0, 3, size, size)
    copy.set_state(generator.get_state())
    maps = [torch.empty(0, count, 2, 3)]
    for _ in range(steps):
        maps.append(geometric_map(count, size, augment, copy, rank, world)[None])
        _changed(no_faces, augment, Draws(copy, world * count, torch.empty(0, dtype=torch.int64)))
    return torch.cat(maps)


@dataclass(frozen=True)
class _Numbers:
    """The random numbers of a batch, on the CPU.

    floats: by name, (B, ...) for all faces or (n, ...) for the n faces of a change. integers: by
    the name of the change, the n faces (n,) that it is for; also the noise's `key` (n,). side: to
    which `downscale` shrinks.
    """

    floats: dict[str, Tensor]
    integers: dict[str, Tensor]
    side: int

    def to(self, device: torch.device) -> _Numbers:
        """On the device, with one copy of all floats and one of all integers."""
        if device.type == "cpu":
            return self
        return _Numbers(_together(self.floats, device), _together(self.integers, device), self.side)


def _together(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The tensors on the device, moved with one copy."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors.values()])
    if device.type == "cuda":
        flat = flat.pin_memory()
    counts = [tensor.numel() for tensor in tensors.values()]
    parts = torch.split(flat.to(device, non_blocking=True), counts)
    moved = {}
    for (name, tensor), part in zip(tensors.items(), parts, strict=True):
        moved[name] = part.view(tensor.shape)
    return moved


def _draw(augment: Augment, draws: Draws, size: int) -> _Numbers:
    """All random numbers of `_changed`, for faces of `size` pixels, in a fixed order."""

    def factors(spread: float) -> Tensor:
        return 1 + draws.uniform(-spread, spread)

    floats = {"luma": torch.tensor(_LUMA)}
    saturation = factors(augment.saturation)
    floats["saturation"] = torch.where(draws.uniform(0, 1) < augment.gray, 0.0, saturation)
    floats["contrast"], floats["brightness"] = factors(augment.contrast), factors(augment.brightness)
    floats["cast"] = 1 + draws.uniform(-augment.tint, augment.tint, 3)
    spread = -math.log(1 - augment.gamma)
    floats["exponent"] = draws.uniform(-spread, spread).exp()
    integers, side = {}, size
    integers["blur"], some = draws.subset(augment.blur)
    if some.total:
        floats["taps"] = _gaussian_taps(some.uniform(0.3, 2.0) * (size / 128), size)
    integers["downscale"], some = draws.subset(augment.downscale)
    if some.total:
        # All faces take one size, because different sizes would need a resampling for each face.
        side = max(8, round(size * some.shared(0.3, 0.8)))
    integers["noise"], some = draws.subset(augment.noise)
    if some.total:
        floats["deviation"], integers["key"] = some.uniform(0, 8, 1, 1, 1), some.key()
    integers["jpeg"], some = draws.subset(augment.jpeg)
    if some.total:
        floats["table"] = compression.tables(some.uniform(20, 90))
    integers["erase"], some = draws.subset(augment.erase)
    if some.total:
        area, aspect = some.uniform(0.02, 0.15), some.uniform(-0.7, 0.7).exp()
        floats["half"] = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], -1) * size / 2
        floats["centre"] = some.uniform(0, 1, 2) * size
        floats["level"] = some.uniform(0, 1) * 255
    return _Numbers(floats, integers, side)


def _changed(face_B3SS: Tensor, augment: Augment, draws: Draws) -> Tensor:
    """`photometric`, with numbers from `draws`. For no faces it draws the same numbers."""
    size = face_B3SS.shape[-1]
    drawn = _draw(augment, draws, size)
    if not len(face_B3SS):
        return face_B3SS
    numbers = drawn.to(face_B3SS.device)
    each = {}
    for name in ("saturation", "contrast", "brightness", "exponent"):
        each[name] = numbers.floats[name].view(-1, 1, 1, 1)
    gray = (face_B3SS * numbers.floats["luma"].view(1, 3, 1, 1)).sum(1, keepdim=True)
    face_B3SS = torch.lerp(gray.expand_as(face_B3SS), face_B3SS, each["saturation"])
    mean = gray.mean((2, 3), keepdim=True)
    face_B3SS = ((face_B3SS - mean) * each["contrast"] + mean) * each["brightness"]
    face_B3SS = face_B3SS.clamp(0, 255)
    if augment.tint:
        face_B3SS = (face_B3SS * numbers.floats["cast"].view(-1, 3, 1, 1)).clamp(0, 255)
    if augment.gamma:
        face_B3SS = (face_B3SS / 255).pow(each["exponent"]) * 255
    for name, change in _CHANGES.items():
        if len(drawn.integers[name]):
            rows = numbers.integers[name]
            changed = change(face_B3SS[rows], numbers, drawn)
            face_B3SS = face_B3SS.index_copy(0, rows, changed.to(face_B3SS.dtype))
    return face_B3SS.clamp(0, 255)


def _gaussian_taps(sigma_n: Tensor, size: int) -> Tensor:
    """The blur of a line for each of three channels, for faces of `size` pixels: (3 n, taps)."""
    radius = math.ceil(2.5 * 2.0 * size / 128)
    place = torch.arange(-radius, radius + 1)
    taps = (-((place / sigma_n[:, None]) ** 2) / 2).exp()
    return (taps / taps.sum(1, keepdim=True)).repeat_interleave(3, 0)


def _blur(face_B3SS: Tensor, numbers: _Numbers, drawn: _Numbers) -> Tensor:
    """As Kornia's `gaussian_blur2d`, which makes its taps on the device in many kernels."""
    taps = numbers.floats["taps"]
    channels, radius = len(taps), taps.shape[1] // 2
    padded = F.pad(face_B3SS, (radius, radius, radius, radius), mode="reflect").flatten(0, 1)[None]
    rows = F.conv2d(padded, taps[:, None, None, :], groups=channels)
    return F.conv2d(rows, taps[:, None, :, None], groups=channels).view(face_B3SS.shape)


def _downscale(face_B3SS: Tensor, numbers: _Numbers, drawn: _Numbers) -> Tensor:
    """Shrinks and enlarges."""
    size, small = face_B3SS.shape[-1], (drawn.side, drawn.side)
    shrunk = F.interpolate(face_B3SS, small, mode="bilinear", antialias=True, align_corners=False)
    return F.interpolate(shrunk, (size, size), mode="bilinear", align_corners=False)


def _noise(face_B3SS: Tensor, numbers: _Numbers, drawn: _Numbers) -> Tensor:
    normal = noise.normal(numbers.integers["key"], face_B3SS[0].numel()).view(face_B3SS.shape)
    return torch.addcmul(face_B3SS, normal, numbers.floats["deviation"])


def _jpeg(face_B3SS: Tensor, numbers: _Numbers, drawn: _Numbers) -> Tensor:
    return compression.compressed(face_B3SS, numbers.floats["table"])


def _erase(face_B3SS: Tensor, numbers: _Numbers, drawn: _Numbers) -> Tensor:
    line = torch.arange(face_B3SS.shape[-1], device=face_B3SS.device)
    centre_B2, half_B2 = numbers.floats["centre"], numbers.floats["half"]
    inside_B2S = (line - centre_B2[..., None]).abs() <= half_B2[..., None]
    hidden = (inside_B2S[:, 0, None, :] & inside_B2S[:, 1, :, None]).unsqueeze(1)
    return torch.where(hidden, numbers.floats["level"].view(-1, 1, 1, 1), face_B3SS)


_CHANGES: dict[str, Callable[[Tensor, _Numbers, _Numbers], Tensor]] = {
    "blur": _blur,
    "downscale": _downscale,
    "noise": _noise,
    "jpeg": _jpeg,
    "erase": _erase,
}
"""In their order. Each takes the chosen faces (n, 3, S, S), the numbers on their device, and those
on the CPU."""
