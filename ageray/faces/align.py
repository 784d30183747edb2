"""The one warp: from a canvas of photo pixels to the network's input, alignment and augmentation composed, resampled once.

Shape letters: B faces, C side of the canvas, S side of the aligned face.
"""

from __future__ import annotations

import kornia.geometry.transform as kornia_transform
import torch
from torch import Tensor

from ageray.experiment import Align
from ageray.faces import geometry

_MIDDLE = 0.6
_MEAN, _DEVIATION = 117.0, 55.0  # about those of photographed faces, which pretrained weights expect
_FLATTEST = 4.0  # gray values; a flatter picture has no face to bring out


def crop_map(points_B52: Tensor, box_B4: Tensor, align: Align) -> Tensor:
    """The map from source pixels to the aligned face without augmentation: (B, 2, 3).

    `similarity` and `eyes` read the points, `box` and `none` the box (for `none` the box is the whole photo). A face whose needed points or
    box are NaN gives NaN; `ageray.faces.canvases` refuses those earlier.
    """
    if align.mode == "similarity":
        target = geometry.template(align.size, align.coverage).to(points_B52)
        return geometry.similarity(points_B52, target)
    if align.mode == "eyes":
        eyes_B22 = points_B52[:, :2]
        distance_B1 = (eyes_B22[:, 1] - eyes_B22[:, 0]).norm(dim=-1, keepdim=True)
        down = torch.tensor([0.0, geometry.EYES_TO_CENTRE]).to(points_B52)
        return geometry.rectangle_to_square(
            _square(eyes_B22.mean(1) + down * distance_B1, align.eyes_scale * distance_B1), align.size
        )
    if align.mode == "box":
        side_B1 = (box_B4[:, 2:] - box_B4[:, :2]).amax(-1, keepdim=True) * align.coverage
        return geometry.rectangle_to_square(_square((box_B4[:, :2] + box_B4[:, 2:]) / 2, side_B1), align.size)
    return geometry.rectangle_to_square(box_B4, align.size)


def _square(centre_B2: Tensor, side_B1: Tensor) -> Tensor:
    return torch.cat([centre_B2 - side_B1 / 2, centre_B2 + side_B1 / 2], -1)


def warp(canvas_B3CC: Tensor, matrix_B23: Tensor, align: Align) -> Tensor:
    """Resamples each canvas (uint8 or float, 0..255) through its map, bilinearly, once: float (B, 3, S, S).

    Outside the canvas lies the gray value `align.fill`, which the canvas itself uses outside the photo: where a canvas ends does not show.
    """
    pixels = canvas_B3CC.float() - align.fill
    size = (align.size, align.size)
    warped: Tensor = kornia_transform.warp_affine(
        pixels, matrix_B23.float(), size, mode="bilinear", padding_mode="zeros", align_corners=True
    )
    return warped + align.fill


def standardize(face_B3SS: Tensor, align: Align) -> Tensor:
    """With `align.standardize`, faces whose every channel has mean 117 and standard deviation 55 over the middle 60 % of the crop (skin, in an
    aligned face: background and hair do not count); else the faces as they are. Same shape; values may leave 0..255."""
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
    """Aligned faces, float (B, 3, S, S) in 0..255, and their five points in them (B, 5, 2).

    `augment` maps aligned pixels to augmented ones and joins the alignment before the resampling. If it mirrors, left and right points are
    exchanged.
    """
    matrix_B23 = crop_map(points_B52, box_B4, align)
    if augment_B23 is None:
        return warp(canvas_B3CC, matrix_B23, align), geometry.apply(matrix_B23, points_B52)
    matrix_B23 = geometry.compose(augment_B23, matrix_B23)
    moved_B52 = geometry.apply(matrix_B23, points_B52)
    mirrored_B11 = (torch.linalg.det(augment_B23[:, :, :2]) < 0)[:, None, None]
    moved_B52 = torch.where(mirrored_B11, moved_B52[:, list(geometry.MIRRORED)], moved_B52)
    return warp(canvas_B3CC, matrix_B23, align), moved_B52
