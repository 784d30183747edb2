"""From a canvas of photo pixels to the network's input.

Alignment and augmentation are composed to one map for each face, and the pixels are resampled once.

Shape letters: B faces, C side of the canvas, S side of the aligned face.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ageray.experiment import Align
from ageray.faces import geometry
from ageray.faces.constants import constant

_MIDDLE = 0.6
_MEAN, _DEVIATION = 117.0, 55.0  # typical of photographed faces, which pretrained weights expect
_FLATTEST = 4.0  # gray values; a crop with less contrast shows no face


def crop_map(points_B52: Tensor, box_B4: Tensor, align: Align) -> Tensor:
    """The map from source pixels to the aligned face without augmentation: (B, 2, 3).

    The modes `similarity`, `eyes_mouth` and `eyes` read the points. `box` and `none` read the box;
    for `none` it is the whole photo. A face whose points or box are NaN gives NaN.
    `ageray.faces.canvases` raises an error for such faces earlier.
    """
    if align.mode == "similarity":
        target = constant(geometry.template, align.size, align.coverage, like=points_B52)
        return geometry.similarity(points_B52, target)
    if align.mode == "eyes_mouth":
        target = constant(geometry.template, align.size, align.coverage, like=points_B52)
        return geometry.similarity(geometry.eyes_and_mouth(points_B52), geometry.eyes_and_mouth(target))
    if align.mode == "eyes":
        eyes_B22 = points_B52[:, :2]
        distance_B1 = (eyes_B22[:, 1] - eyes_B22[:, 0]).norm(dim=-1, keepdim=True)
        down = constant(_down, like=points_B52)
        centre_B2 = eyes_B22.mean(1) + down * distance_B1
        return geometry.rectangle_to_square(_square(centre_B2, align.eyes_scale * distance_B1), align.size)
    if align.mode == "box":
        side_B1 = (box_B4[:, 2:] - box_B4[:, :2]).amax(-1, keepdim=True) * align.coverage
        return geometry.rectangle_to_square(_square((box_B4[:, :2] + box_B4[:, 2:]) / 2, side_B1), align.size)
    return geometry.rectangle_to_square(box_B4, align.size)


def _down() -> Tensor:
    """From the middle of the eyes to the crop's centre, in eye distances: (2,)."""
    return torch.tensor([0.0, geometry.EYES_TO_CENTRE])


def _square(centre_B2: Tensor, side_B1: Tensor) -> Tensor:
    """The box x0, y0, x1, y1 of each square: (B, 4)."""
    return torch.cat([centre_B2 - side_B1 / 2, centre_B2 + side_B1 / 2], -1)


def warp(canvas_B3CC: Tensor, matrix_B23: Tensor, align: Align) -> Tensor:
    """Resamples each canvas (uint8 or float, 0..255) once by its map: float (B, 3, S, S).

    The interpolation is bilinear. Pixels outside the canvas get the gray value `align.fill`. The
    canvas has the same value outside the photo, so its edge does not show.
    """
    pixels = canvas_B3CC.to(torch.float32, copy=True).sub_(align.fill)
    return resample(pixels, matrix_B23.float(), align.size) + align.fill


def resample(canvas_B3CC: Tensor, matrix_B23: Tensor, size: int) -> Tensor:
    """Kornia's `warp_affine` with a grid in a third of the kernels: (B, 3, size, size).

    Kornia copies its constants to the device in each call, which a CUDA graph does not allow. On a
    CPU it takes twice as long for a few faces, and 0.1 s to import. The faces are equal within 0.01
    gray values.
    """
    inverse_B23 = geometry.closed_form_inverse(matrix_B23)
    inverse_B23 = inverse_B23 * constant(_pixel_steps, *canvas_B3CC.shape[-2:], like=inverse_B23)
    across, down, shift = inverse_B23[:, None, None].unbind(-1)
    place_S = torch.arange(size, dtype=inverse_B23.dtype, device=inverse_B23.device)
    grid_BSS2 = across * place_S[:, None] + down * place_S[:, None, None] + (shift - 1)
    return F.grid_sample(canvas_B3CC, grid_BSS2, "bilinear", "zeros", align_corners=True)


def _pixel_steps(height: int, width: int) -> Tensor:
    """From one pixel to the next across and down, where -1 and 1 are the outermost: (2, 1)."""
    return torch.tensor([[2 / (width - 1)], [2 / (height - 1)]])


def standardize(face_B3SS: Tensor, align: Align) -> Tensor:
    """With `align.standardize`, shifts and scales each channel to mean 117 and deviation 55.

    Mean and deviation are those of the middle 60 % of the crop. In an aligned face that is skin,
    without background and hair. Without the setting the faces are returned unchanged. Same shape;
    values may leave 0..255.
    """
    if not align.standardize:
        return face_B3SS
    edge = round(align.size * (1 - _MIDDLE) / 2)
    middle = face_B3SS[..., edge : align.size - edge, edge : align.size - edge]
    mean = middle.mean((2, 3), keepdim=True)
    deviation = middle.std((2, 3), keepdim=True).clamp_min(_FLATTEST)
    return (face_B3SS - mean) * (_DEVIATION / deviation) + _MEAN


def align_faces(
    canvas_B3CC: Tensor, points_B52: Tensor, box_B4: Tensor, align: Align, augment_B23: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Aligned faces, float (B, 3, S, S) in 0..255, and their five points in the crop (B, 5, 2).

    augment: a map from aligned to augmented pixels. It is composed with the alignment before the
    resampling. If it mirrors a face, left and right points are exchanged.
    """
    matrix_B23 = crop_map(points_B52, box_B4, align)
    if augment_B23 is None:
        return warp(canvas_B3CC, matrix_B23, align), geometry.apply(matrix_B23, points_B52)
    matrix_B23 = geometry.compose(augment_B23, matrix_B23)
    moved_B52 = geometry.apply(matrix_B23, points_B52)
    mirrored_B11 = (geometry.determinant(augment_B23) < 0)[:, None, None]
    moved_B52 = torch.where(mirrored_B11, geometry.exchange_sides(moved_B52), moved_B52)
    return warp(canvas_B3CC, matrix_B23, align), moved_B52
