"""What a face's picture is like, in numbers that say whether an age can be read from it: size,
sharpness, turn, light.

Measured on the aligned face before its colours are standardised. Shape letters: B faces, S side of
the aligned face, M measures.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ageray.experiment import Align
from ageray.faces import geometry
from ageray.faces.align import crop_map
from ageray.faces.constants import constant

MEASURES = ("resolution", "sharpness", "grain", "turn", "nod", "misfit", "contrast", "brightness", "colour")
"""Names of the columns of `measure`, in order:

resolution   log2 of photo pixels per pixel of the aligned face, at most 0: -1 is a face enlarged
             twofold
sharpness    log2 of the deviation of the 3x3 Laplacian over that of the gray values: low where
             blurred or enlarged
grain        log2 of the deviation of the Laplacian over that of the Laplacian of the half-size
             face: high where noisy
turn         distance of the nose tip from the middle line of eyes and mouth over the distance of
             the eyes: 0 is frontal
nod          |height of the nose tip between eyes and mouth, as a share, minus its usual 0.49|
misfit       root mean square distance of the five points from the template's, over the side of the
             aligned face
contrast     log2 of the deviation of the gray values
brightness   |log2 of the mean gray value over 117|
colour       log2 of the mean distance of the channels from gray, plus 1: 0 is a gray photo
"""

_MIDDLE = 0.6
_USUAL_GRAY, _USUAL_NOD = 117.0, 0.49
_LEAST = 1e-3
_LUMINANCE = (0.299, 0.587, 0.114)
_LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


def measure(
    face_B3SS: Tensor, points_B52: Tensor, canvas_points_B52: Tensor, box_B4: Tensor, align: Align
) -> Tensor:
    """The measures MEASURES of each face: (B, M), float32. A measure that needs points a face does
    not have is 0.

    face: (B, 3, S, S), 0..255, aligned and not standardised. points: its five points in it.
    canvas_points, box: the same points and the box in pixels of the canvas that it was resampled
    from.
    """
    resolution_B = 1 / geometry.scale_of(crop_map(canvas_points_B52, box_B4, align))
    return measure_aligned(face_B3SS, points_B52, resolution_B, align.size)


def measure_aligned(face_B3SS: Tensor, points_B52: Tensor, resolution_B: Tensor, size: int) -> Tensor:
    """As `measure`, of an aligned face of side `size`. resolution: photo pixels per pixel of it."""
    edge = round(size * (1 - _MIDDLE) / 2)
    middle_B3HH = face_B3SS.float()[..., edge : size - edge, edge : size - edge]
    weights = constant(_luminance, like=middle_B3HH)
    gray_B1HH = (middle_B3HH * weights).sum(1, keepdim=True)
    deviation_B = _deviation(gray_B1HH)
    fine_B = _deviation(_laplacian(gray_B1HH))
    coarse_B = _deviation(_laplacian(F.avg_pool2d(gray_B1HH, 2)))
    chroma_B = (middle_B3HH - gray_B1HH).abs().mean((1, 2, 3))
    mean_B = gray_B1HH.mean((1, 2, 3))
    columns = (
        torch.log2(resolution_B).clamp_max(0),
        torch.log2((fine_B + _LEAST) / (deviation_B + 1)),
        torch.log2((fine_B + _LEAST) / (coarse_B + _LEAST)),
        *_pose(points_B52, size),
        torch.log2(deviation_B + 1),
        torch.log2((mean_B + 1) / _USUAL_GRAY).abs(),
        torch.log2(chroma_B + 1),
    )
    return torch.nan_to_num(torch.stack([column.float() for column in columns], -1))


def _pose(points_B52: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Turn, nod and misfit: (B,) each."""
    eyes_B2, mouth_B2 = points_B52[:, :2].mean(1), points_B52[:, 3:].mean(1)
    nose_B2 = points_B52[:, 2] - eyes_B2
    line_B2 = mouth_B2 - eyes_B2
    length_B = line_B2.norm(dim=-1).clamp_min(_LEAST)
    apart_B = (points_B52[:, 1] - points_B52[:, 0]).norm(dim=-1).clamp_min(_LEAST)
    beside_B = (nose_B2[:, 0] * line_B2[:, 1] - nose_B2[:, 1] * line_B2[:, 0]).abs() / length_B
    along_B = (nose_B2 * line_B2).sum(-1) / length_B.square()
    template_52 = constant(geometry.template, size, 1.0, like=points_B52)
    fitted_B52 = geometry.apply(geometry.similarity(points_B52, template_52), points_B52)
    misfit_B = (fitted_B52 - template_52).square().sum(-1).mean(-1).sqrt() / size
    return beside_B / apart_B, (along_B - _USUAL_NOD).abs(), misfit_B


def _laplacian(gray_B1HH: Tensor) -> Tensor:
    return F.conv2d(gray_B1HH, constant(_kernel, like=gray_B1HH))


def _kernel() -> Tensor:
    return torch.tensor(_LAPLACIAN).view(1, 1, 3, 3)


def _luminance() -> Tensor:
    return torch.tensor(_LUMINANCE).view(1, 3, 1, 1)


def _deviation(gray_B1HH: Tensor) -> Tensor:
    return gray_B1HH.std((1, 2, 3))
