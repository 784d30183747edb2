"""Random changes of training faces: a map that joins the alignment's, and changes of the aligned pixels.

All random numbers come from one CPU generator in a fixed order, so a run is the same on every device. Shape letters: B faces, S side of the
aligned face.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from kornia.enhance import jpeg_codec_differentiable
from kornia.filters import gaussian_blur2d
from torch import Generator, Tensor
from torch.nn import functional as F

from ageray.experiment import Augment
from ageray.faces import geometry

_LUMA = (0.299, 0.587, 0.114)


def _uniform(count: int, low: float, high: float, generator: Generator) -> Tensor:
    return torch.rand(count, generator=generator) * (high - low) + low


def geometric_map(count: int, size: int, augment: Augment, generator: Generator) -> Tensor:
    """A random map of the aligned crop for each face: mirror, then zoom and turn about the centre, then shift; (B, 2, 3) on CPU."""
    angle = _uniform(count, -augment.rotation, augment.rotation, generator) * (math.pi / 180)
    zoom = 1 + _uniform(count, -augment.scale, augment.scale, generator)
    shift_B2 = _uniform(2 * count, -augment.translation, augment.translation, generator).view(count, 2) * size
    mirrored_B = torch.rand(count, generator=generator) < augment.flip
    cosine, sine = zoom * angle.cos(), zoom * angle.sin()
    linear = torch.stack([torch.stack([cosine, -sine], -1), torch.stack([sine, cosine], -1)], -2)
    centre = torch.full((2,), (size - 1) / 2)
    turn = torch.cat([linear, (centre + shift_B2 - linear @ centre).unsqueeze(-1)], -1)
    identity = torch.eye(2, 3)
    mirror = torch.where(mirrored_B[:, None, None], geometry.mirror_map(size), identity)
    return geometry.compose(turn, mirror)


def photometric(face_B3SS: Tensor, augment: Augment, generator: Generator) -> Tensor:
    """Aligned faces in 0..255 with random colour, sharpness and compression; same shape and range."""
    count, device = len(face_B3SS), face_B3SS.device
    luma = torch.tensor(_LUMA, device=device).view(1, 3, 1, 1)

    def factors(spread: float) -> Tensor:
        return (1 + _uniform(count, -spread, spread, generator)).view(-1, 1, 1, 1).to(device)

    saturation = factors(augment.saturation)
    colourless = (torch.rand(count, generator=generator) < augment.gray).view(-1, 1, 1, 1).to(device)
    contrast, brightness = factors(augment.contrast), factors(augment.brightness)
    gray = (face_B3SS * luma).sum(1, keepdim=True)
    face_B3SS = torch.lerp(gray.expand_as(face_B3SS), face_B3SS, torch.where(colourless, 0.0, saturation))
    mean = gray.mean((2, 3), keepdim=True)
    face_B3SS = ((face_B3SS - mean) * contrast + mean) * brightness
    face_B3SS = _tint_and_gamma(face_B3SS.clamp(0, 255), augment, generator)
    changes: tuple[tuple[float, Callable[[Tensor, Generator], Tensor]], ...] = (
        (augment.blur, _blur),
        (augment.downscale, _downscale),
        (augment.noise, _noise),
        (augment.jpeg, _jpeg),
        (augment.erase, _erase),
    )
    for probability, change in changes:
        chosen = (torch.rand(count, generator=generator) < probability).nonzero().squeeze(-1)
        if len(chosen):
            chosen_device = chosen.to(device)
            face_B3SS = face_B3SS.index_copy(0, chosen_device, change(face_B3SS[chosen_device], generator).to(face_B3SS.dtype))
    return face_B3SS.clamp(0, 255)


def _tint_and_gamma(face_B3SS: Tensor, augment: Augment, generator: Generator) -> Tensor:
    """Colour cast and exposure, for faces in 0..255."""
    count = len(face_B3SS)
    cast = 1 + _uniform(3 * count, -augment.tint, augment.tint, generator).view(count, 3, 1, 1)
    spread = -math.log(1 - augment.gamma)
    exponent = _uniform(count, -spread, spread, generator).exp().view(-1, 1, 1, 1)
    if augment.tint:
        face_B3SS = (face_B3SS * cast.to(face_B3SS)).clamp(0, 255)
    if augment.gamma:
        face_B3SS = (face_B3SS / 255).pow(exponent.to(face_B3SS)) * 255
    return face_B3SS


def _blur(face_B3SS: Tensor, generator: Generator) -> Tensor:
    size = face_B3SS.shape[-1]
    sigma = _uniform(len(face_B3SS), 0.3, 2.0, generator) * (size / 128)
    kernel = 2 * math.ceil(2.5 * 2.0 * size / 128) + 1
    blurred: Tensor = gaussian_blur2d(face_B3SS, kernel, sigma.view(-1, 1).expand(-1, 2).to(face_B3SS))
    return blurred


def _downscale(face_B3SS: Tensor, generator: Generator) -> Tensor:
    """One size for all faces chosen in this batch: sizes of their own would need a resampling each."""
    size = face_B3SS.shape[-1]
    small = max(8, round(size * float(_uniform(1, 0.3, 0.8, generator))))
    shrunk = F.interpolate(face_B3SS, (small, small), mode="bilinear", antialias=True, align_corners=False)
    return F.interpolate(shrunk, (size, size), mode="bilinear", align_corners=False)


def _noise(face_B3SS: Tensor, generator: Generator) -> Tensor:
    deviation = _uniform(len(face_B3SS), 0, 8, generator).view(-1, 1, 1, 1)
    return face_B3SS + (torch.randn(face_B3SS.shape, generator=generator) * deviation).to(face_B3SS)


def _jpeg(face_B3SS: Tensor, generator: Generator) -> Tensor:
    quality = _uniform(len(face_B3SS), 20, 90, generator).to(face_B3SS)
    height = face_B3SS.shape[-1]
    margin = -height % 16
    padded = F.pad(face_B3SS, (0, margin, 0, margin), mode="replicate") / 255
    coded: Tensor = jpeg_codec_differentiable(padded, quality)
    return coded[..., :height, :height] * 255


def _erase(face_B3SS: Tensor, generator: Generator) -> Tensor:
    count, size = len(face_B3SS), face_B3SS.shape[-1]
    area, aspect = _uniform(count, 0.02, 0.15, generator), _uniform(count, -0.7, 0.7, generator).exp()
    half_B2 = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], -1) * size / 2
    centre_B2 = torch.rand(count, 2, generator=generator) * size
    level = (torch.rand(count, generator=generator) * 255).view(-1, 1, 1, 1).to(face_B3SS)
    line = torch.arange(size)
    inside_B2S = (line - centre_B2[..., None]).abs() <= half_B2[..., None]
    hidden = (inside_B2S[:, 0, None, :] & inside_B2S[:, 1, :, None]).unsqueeze(1).to(face_B3SS.device)
    return torch.where(hidden, level, face_B3SS)
