"""JPEG compression of many faces at once, simulated: what an encoder and a decoder make of the
pixels, without the bytes between them.

It is `jpeg_codec_differentiable` of Kornia (Reich et al., Differentiable JPEG, WACV 2024): chroma
at half the size, the tables of the standard, and a soft rounding. Kornia takes some 360 kernels for
it. All steps but the rounding are linear in the rows and in the columns of a plane: padding, the
halved and doubled chroma, and the cosine transform of each 8 x 8 block. So one matrix for each
direction takes their place. Faces are equal within 0.001 gray values, except where a coefficient
lies half way between two steps and rounds the other way.

Shape letters: B faces, S side of a face, P that side up to the next multiple of 16, N pixels, C
planes, H rows and columns of a plane's coefficients.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from ageray.faces.constants import constant

_MIXTURE = (
    (0.299, 0.587, 0.114),
    (-0.299 * 0.564, -0.587 * 0.564, 0.886 * 0.564),
    (0.701 * 0.713, -0.587 * 0.713, -0.114 * 0.713),
)
"""From red, green and blue to Y, Cb and Cr."""
_LEVELS = (128.0, 0.5, 0.5)
"""What is taken from Y, Cb and Cr, so that a middle gray is about 0."""
_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)


def tables(quality_B: Tensor) -> Tensor:
    """The quantisation steps of luma and chroma at each quality in 1..95: (B, 2, 8, 8)."""
    base = torch.tensor([_LUMA, _CHROMA], dtype=torch.float32)
    scale = _soft_floor(torch.where(quality_B < 50, 5000 / quality_B, 200 - 2 * quality_B))
    table = (base * scale[:, None, None, None] + 50) / 100
    over = (table - 255).clamp(min=0)
    return _soft_floor(table.clamp(max=255) + 0.02 * (1 - (-over).exp()))


def _soft_floor(values: Tensor) -> Tensor:
    """`floor`, plus a cube that gives it a gradient everywhere."""
    below = values.floor()
    return below + (values - 0.5 - below) ** 3


def compressed(face_B3SS: Tensor, table_B288: Tensor) -> Tensor:
    """The faces in 0..255, encoded with these tables and decoded: same shape."""
    count, _, size, _ = face_B3SS.shape
    mix, unmix, zero, middle = (constant(part, like=face_B3SS) for part in (_mix, _unmix, _zero, _middle))
    plane_B3N = torch.baddbmm(zero, mix.expand(count, 3, 3), face_B3SS.flatten(2))
    plane_B3SS = plane_B3N.view(face_B3SS.shape)
    luma_B1SS = _coded(plane_B3SS[:, :1], table_B288[:, :1], constant(luma_matrices, size, like=face_B3SS))
    chroma_B2SS = _coded(
        plane_B3SS[:, 1:], table_B288[:, 1:], constant(chroma_matrices, size, like=face_B3SS)
    )
    plane_B3SS = torch.cat([luma_B1SS, chroma_B2SS], 1)
    decoded_B3N = torch.baddbmm(middle, unmix.expand(count, 3, 3), plane_B3SS.flatten(2))
    return decoded_B3N.view(face_B3SS.shape).clamp(0, 255)


def _coded(plane_BCSS: Tensor, table_B188: Tensor, matrices_2HS: Tensor) -> Tensor:
    """Planes to coefficients, rounded to the table's steps, and back: (B, C, S, S)."""
    to_HS, from_HS = matrices_2HS
    coefficient_BCHH = to_HS @ plane_BCSS @ to_HS.T
    blocks = coefficient_BCHH.unflatten(3, (-1, 8)).unflatten(2, (-1, 8))
    step = table_B188[:, :, None, :, None, :]
    number = blocks / step
    whole = number.round()
    blocks = (whole + (number - whole) ** 3) * step
    decoded_BCSS: Tensor = from_HS.T @ blocks.flatten(4, 5).flatten(2, 3) @ from_HS
    return decoded_BCSS


def _mix() -> Tensor:
    return torch.tensor(_MIXTURE, dtype=torch.float64)


def _unmix() -> Tensor:
    return _mix().inverse()


def _zero() -> Tensor:
    """What is added to Y, Cb and Cr before their transform: (3, 1)."""
    return -torch.tensor(_LEVELS)[:, None]


def _middle() -> Tensor:
    """The colour where all three are 0: (3, 1)."""
    return _unmix() @ -_zero().double()


@cache  # on a CPU `constant` makes them anew in each call
def luma_matrices(size: int) -> Tensor:
    """From a line of pixels to the coefficients of its blocks, and the transpose of the way back:
    (2, P, S).
    """
    padded = size + -size % 16
    cosines = _block_cosines(padded)
    return torch.stack([cosines @ _padding(size), cosines[:, :size]])


@cache
def chroma_matrices(size: int) -> Tensor:
    """`luma_matrices` for a line that is halved before and doubled afterwards: (2, P / 2, S)."""
    padded = size + -size % 16
    cosines, lines = _block_cosines(padded // 2), torch.eye(padded, dtype=torch.float64)[:, None]
    taps = torch.tensor([math.exp(-2), 1, math.exp(-2)], dtype=torch.float64)  # a deviation of 0.5
    blurred = F.conv1d(F.pad(lines, (1, 1), "reflect"), (taps / taps.sum()).view(1, 1, 3))
    half = F.interpolate(blurred, scale_factor=0.5, mode="linear")[:, 0].T
    short_lines = torch.eye(padded // 2, dtype=torch.float64)[:, None]
    double = F.interpolate(short_lines, scale_factor=2, mode="linear")[:, 0]
    return torch.stack([cosines @ half @ _padding(size), cosines @ double[:, :size]])


def _padding(size: int) -> Tensor:
    """Repeats the last pixel of a line up to a multiple of 16: (P, S)."""
    place = torch.arange(size + -size % 16).clamp(max=size - 1)
    return F.one_hot(place, size).double()


def _block_cosines(length: int) -> Tensor:
    """The orthonormal cosine transform of each 8 pixels of a line: (length, length)."""
    place = torch.arange(8, dtype=torch.float64)
    block = ((2 * place + 1) * place[:, None] * (math.pi / 16)).cos() / 2
    block[0] /= math.sqrt(2)
    return torch.kron(torch.eye(length // 8, dtype=torch.float64), block)
