"""Plane geometry of five-point faces: template, least squares, mirroring.

All functions are batched and differentiable. A map is a (..., 2, 3) matrix from source pixels to
target pixels. Pixel (0, 0) is the *centre* of the first pixel.

Shape letters: B faces, N points.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Five points of a frontal face in eye distances; the origin is between the eyes, y points down.
# The usual 112x112 template of face recognition (ArcFace, Deng et al. 2019), made symmetric.
_FRONTAL = ((-0.5, 0.0), (0.5, 0.0), (0.0, 0.571), (-0.414, 1.155), (0.414, 1.155))
EYES_TO_CENTRE = 0.5
"""How far below the eyes the crop's centre lies, in eye distances. It is midway between hairline
and chin."""
TEMPLATE_SIDE = 2.5
"""Side of the crop at coverage 1, in eye distances: from hairline to chin."""
_BOX_CENTRE = (0.0, -0.15)
_BOX_SIDES = (2.35, 3.03)
"""Centre, from the crop's centre, and sides of a detector's box in eye distances: medians of
YuNet's boxes over 185 photos of FG-NET, ChaLearn LAP and LFW, which spread by 0.08 to 0.19."""
MIRRORED = (1, 0, 2, 4, 3)
"""Order of the five points after a reflection, which exchanges left and right."""


def template(size: int, coverage: float = 1.0) -> Tensor:
    """The five points in a crop of `size` pixels: (5, 2), symmetric about its vertical axis."""
    points_N2 = torch.tensor(_FRONTAL, dtype=torch.float32)
    points_N2 = points_N2 - torch.tensor([0.0, EYES_TO_CENTRE])
    return points_N2 * (size / (TEMPLATE_SIDE * coverage)) + (size - 1) / 2


def eyes_and_mouth(points_N52: Tensor) -> Tensor:
    """The middle between the eyes and the middle between the mouth's corners: (..., 2, 2).

    Two points fix a similarity. DHAA takes the eyes' centre and the upper lip, which is not among
    the five points. In a frontal face the lip lies on the line of these two points, so both pairs
    give the same map once the framing is chosen.
    """
    eyes_N2 = points_N52[..., :2, :].mean(-2)
    mouth_N2 = points_N52[..., 3:, :].mean(-2)
    return torch.stack([eyes_N2, mouth_N2], -2)


def similarity(source_BN2: Tensor, target_N2: Tensor) -> Tensor:
    """The least-squares map of source points to targets by rotation, uniform scale and shift.

    It does not reflect. With points as complex numbers p, q about their means, the optimum is
    a = sum conj(p) q / sum |p|^2 (Umeyama 1991 in the plane). Returns (B, 2, 3). Coincident source
    points have no solution; they give a matrix of zeros and the targets' mean.
    """
    target_BN2 = target_N2.expand_as(source_BN2)
    source_mean = source_BN2.mean(-2, keepdim=True)
    target_mean = target_BN2.mean(-2, keepdim=True)
    p, q = source_BN2 - source_mean, target_BN2 - target_mean
    norm = p.square().sum((-1, -2)).clamp_min(torch.finfo(p.dtype).tiny)
    real = (p * q).sum((-1, -2)) / norm
    imag = (p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0]).sum(-1) / norm
    linear = torch.stack([torch.stack([real, -imag], -1), torch.stack([imag, real], -1)], -2)
    shift = target_mean.squeeze(-2) - (linear @ source_mean.transpose(-1, -2)).squeeze(-1)
    return torch.cat([linear, shift.unsqueeze(-1)], -1)


def box_of_points(points_B52: Tensor) -> Tensor:
    """The box x0, y0, x1, y1 that the detector would draw around five points: (B, 4).

    It stands upright, as the detector's do. NaN points give a NaN box.
    """
    frontal_N2 = torch.tensor(_FRONTAL) - torch.tensor([0.0, EYES_TO_CENTRE])
    matrix_B23 = similarity(points_B52, frontal_N2.to(points_B52))
    scale_B1 = 1 / scale_of(matrix_B23)[:, None]
    middle = torch.tensor([_BOX_CENTRE]).to(points_B52).expand(len(points_B52), 1, 2)
    centre_B2 = apply(invert(matrix_B23), middle).squeeze(1)
    half_B2 = scale_B1 * torch.tensor(_BOX_SIDES).to(points_B52) / 2
    return torch.cat([centre_B2 - half_B2, centre_B2 + half_B2], -1)


def rectangle_to_square(box_B4: Tensor, size: int) -> Tensor:
    """The map that stretches each box x0, y0, x1, y1 onto a crop of `size` pixels: (B, 2, 3).

    A box gives outer edges: a whole W x H image is -0.5, -0.5, W - 0.5, H - 0.5.
    """
    scale_B2 = size / (box_B4[:, 2:] - box_B4[:, :2])
    shift_B2 = -0.5 - scale_B2 * box_B4[:, :2]
    return torch.cat([torch.diag_embed(scale_B2), shift_B2.unsqueeze(-1)], -1)


def apply(matrix_B23: Tensor, points_BN2: Tensor) -> Tensor:
    """Points through the maps: (B, N, 2)."""
    return points_BN2 @ matrix_B23[..., :2].transpose(-1, -2) + matrix_B23[..., 2].unsqueeze(-2)


def compose(second_B23: Tensor, first_B23: Tensor) -> Tensor:
    """The map that applies `first`, then `second`: (B, 2, 3)."""
    linear = second_B23[..., :2] @ first_B23[..., :2]
    shift = second_B23[..., :2] @ first_B23[..., 2:] + second_B23[..., 2:]
    return torch.cat([linear, shift], -1)


def invert(matrix_B23: Tensor) -> Tensor:
    """The inverse map: (B, 2, 3)."""
    inverse = torch.linalg.inv(matrix_B23[..., :2])
    return torch.cat([inverse, -inverse @ matrix_B23[..., 2:]], -1)


def closed_form_inverse(matrix_B23: Tensor) -> Tensor:
    """The inverse map, written out: (B, 2, 3). On a GPU `torch.linalg.inv` makes the host wait."""
    (a, b, x), (c, d, y) = (row.unbind(-1) for row in matrix_B23.unbind(-2))
    rows = [torch.stack([d, -b, b * y - d * x], -1), torch.stack([-c, a, c * x - a * y], -1)]
    return torch.stack(rows, -2) / closed_form_determinant(matrix_B23)[..., None, None]


def determinant(matrix_B23: Tensor) -> Tensor:
    """Of the linear part of each map: (B,). On a CPU by LAPACK, whose way takes a GPU several
    kernels."""
    if matrix_B23.device.type != "cpu":
        return closed_form_determinant(matrix_B23)
    by_lapack_B: Tensor = torch.linalg.det(matrix_B23[..., :2])
    return by_lapack_B


def closed_form_determinant(matrix_B23: Tensor) -> Tensor:
    """Of the linear part of each map, written out: (B,)."""
    (a, b), (c, d) = (row.unbind(-1) for row in matrix_B23[..., :2].unbind(-2))
    return a * d - b * c


def scale_of(matrix_B23: Tensor) -> Tensor:
    """Target pixels per source pixel along a side, from the ratio of areas: (B,)."""
    return determinant(matrix_B23).abs().sqrt()


def zoom_map(size: int, zoom: float) -> Tensor:
    """The enlargement of a crop by `zoom` about its centre: (2, 3)."""
    shift = (1 - zoom) * (size - 1) / 2
    return torch.tensor([[zoom, 0.0, shift], [0.0, zoom, shift]])


def mirror_map(size: int) -> Tensor:
    """The reflection of a crop about its vertical axis: (2, 3)."""
    return torch.tensor([[-1.0, 0.0, size - 1.0], [0.0, 1.0, 0.0]])


def mirror_points(points_BN2: Tensor, size: int) -> Tensor:
    """The five points of the mirrored crop: (B, 5, 2).

    Left and right are exchanged, so that the first point still is the viewer-left eye.
    """
    x, y = points_BN2[..., 0], points_BN2[..., 1]
    return exchange_sides(torch.stack([size - 1 - x, y], -1))


def exchange_sides(points_BN2: Tensor) -> Tensor:
    """The five points in the order MIRRORED: (B, 5, 2). Unlike an index by a list, this sends no
    numbers to the device."""
    points = points_BN2.unbind(-2)
    return torch.stack([points[place] for place in MIRRORED], -2)
