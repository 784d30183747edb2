"""Regions of a face, cut from a feature map.

They are aligned regions (DHAA, section 2.2) or upright squares (its Figure 5). Coordinates are
normalised to [-1, 1] from the map's left (top) edge to its right (bottom) edge, as in spatial
transformers (Jaderberg et al. 2015). The five points are viewer-left eye, viewer-right eye, nose
tip, viewer-left and viewer-right mouth corner.

Shape letters: B faces, N points, R regions, C channels, H and W sides of the map, S side of a
region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ageray.faces import geometry

_LARGEST_ZOOM = 8.0
"""Largest ratio of the size of a face to that of the template, and of the template to a face."""
_FLATTEST = 1e-3
"""Least determinant over squared trace of the points' scatter: 0.24 for a frontal face, 0 on a
line.
"""
_LARGEST_STRETCH = 4.0
"""Largest stretch of one direction over the other, as by a yaw of 75 degrees."""


@dataclass(frozen=True)
class Region:
    """A square of the template: its centre and half its side.

    Coordinates are normalised to the template's crop. anchor: weights of the five points; their
    weighted mean is the centre of the upright square.
    """

    centre: tuple[float, float]
    half: float
    anchor: tuple[float, float, float, float, float]


def template() -> Tensor:
    """The five points of the frontal template, normalised to its crop: (5, 2).

    The crop reaches from hairline to chin. The points are symmetric about x = 0.
    """
    return 2 * geometry.template(1)  # a crop of side 1 has its centre at (0, 0)


def _local(half: float, anchor: tuple[float, float, float, float, float]) -> Region:
    x, y = (torch.tensor(anchor) @ template()).tolist()
    return Region((x, y), half, anchor)


_NOSE_TIP = (0.0, 0.0, 1.0, 0.0, 0.0)
REGIONS: dict[str, Region] = {
    "G-2": Region((0.0, 0.0), 1.0, _NOSE_TIP),
    "G-3": Region((0.0, 0.0), 1 / 1.2, _NOSE_TIP),
    "L-1": _local(0.5, (1.0, 0.0, 0.0, 0.0, 0.0)),
    "L-2": _local(0.5, (0.25, 0.25, 0.5, 0.0, 0.0)),
    "L-3": _local(0.5, (0.0, 0.0, 0.0, 0.5, 0.5)),
}
"""The five pooled regions. The paper's Figure 2 shows them without numbers; ours are in
docs/dhaa.md.

G-2 is the template's crop: 2.5 eye distances, from hairline to chin. In G-3 the face is 1.2 times
as large. Local regions have half of G-2's side, 1.25 eye distances. Their centres are those that
the paper names for upright squares: the left eye, the middle between nose tip and the middle of the
eyes, the middle of the mouth."""


def targets(names: Sequence[str]) -> Tensor:
    """Target key points R^t of Eq. 1, normalised to each named region: (R, 5, 2).

    Points outside a region have coordinates outside [-1, 1].
    """
    regions = [REGIONS[name] for name in names]
    return torch.stack([(template() - torch.tensor(region.centre)) / region.half for region in regions])


def to_unit(points_BN2: Tensor, side: int) -> Tensor:
    """From pixels of a square map of that side to normalised coordinates.

    The centre of pixel 0 is at -1 + 1 / side.
    """
    return (2 * points_BN2 + 1) / side - 1


def _zoom(points_BN2: Tensor, template_N2: Tensor) -> Tensor:
    """Size of the template over that of the face, by the least-squares similarity: (B,)."""
    zoom_B: Tensor = geometry.similarity(points_BN2, template_N2)[..., 0].norm(dim=-1)
    return zoom_B


def usable_points(points_BN2: Tensor, template_N2: Tensor) -> Tensor:
    """The normalised points, or the template's for a face without usable points: (B, 5, 2).

    Points are not usable if they are NaN or infinite (a face aligned by its box), coincident, or of
    a face more than 8 times as large or as small as the template's. Alignment by points at coverage
    1 puts a face's points on the template's.
    """
    finite_B = torch.isfinite(points_BN2).all(-1).all(-1)
    points_BN2 = torch.where(finite_B[:, None, None], points_BN2, template_N2)
    zoom_B = _zoom(points_BN2, template_N2)
    face_B = (zoom_B < _LARGEST_ZOOM) & (zoom_B > 1 / _LARGEST_ZOOM)
    return torch.where(face_B[:, None, None], points_BN2, template_N2)


def affine(source_BN2: Tensor, target_BN2: Tensor) -> Tensor:
    """The affine map M_A with the least sum_j |q_j - (A p_j + b)|^2 (Eq. 1): (B, 2, 3).

    About the means the optimum is A = (sum q p^T) (sum p p^T)^-1. The least-squares similarity is
    taken instead if the points lie nearly on a line (a profile), so that they do not determine six
    numbers, or if the optimum mirrors the face or stretches it more than fourfold. Leading
    dimensions broadcast.
    """
    source_BN2, target_BN2 = torch.broadcast_tensors(source_BN2, target_BN2)  # type: ignore[no-untyped-call]
    source_B12, target_B12 = source_BN2.mean(-2, keepdim=True), target_BN2.mean(-2, keepdim=True)
    p, q = source_BN2 - source_B12, target_BN2 - target_B12
    xx, yy, xy = p[..., 0].square().sum(-1), p[..., 1].square().sum(-1), (p[..., 0] * p[..., 1]).sum(-1)
    determinant = xx * yy - xy.square()
    flat = determinant <= _FLATTEST * (xx + yy).square()
    adjugate = torch.stack([torch.stack([yy, -xy], -1), torch.stack([-xy, xx], -1)], -2)
    linear = q.transpose(-1, -2) @ p @ adjugate / torch.where(flat, 1.0, determinant)[..., None, None]
    shift = target_B12.squeeze(-2) - (linear @ source_B12.transpose(-1, -2)).squeeze(-1)
    exact = torch.cat([linear, shift[..., None]], -1)
    sound = ~flat & _gentle(linear)
    return torch.where(sound[..., None, None], exact, geometry.similarity(source_BN2, target_BN2))


def _gentle(linear: Tensor) -> Tensor:
    """Whether (..., 2, 2) does not reflect and its singular values differ at most fourfold.

    The singular values are (turn + rest) / 2 and (turn - rest) / 2; the second is negative for a
    reflection. turn is the size of the part that rotates and scales. The factor is
    `_LARGEST_STRETCH`.
    """
    (a, b), (c, d) = (row.unbind(-1) for row in linear.unbind(-2))
    turn, rest = torch.hypot(a + d, c - b), torch.hypot(a - d, c + b)
    return rest <= turn * ((_LARGEST_STRETCH - 1) / (_LARGEST_STRETCH + 1))


def inverse(matrix_B23: Tensor) -> Tensor:
    """The inverse map: (B, 2, 3)."""
    return geometry.closed_form_inverse(matrix_B23)


def sample(features_BCHW: Tensor, maps_BR23: Tensor, size: int) -> list[Tensor]:
    """Samples the feature map at each region's cell centres: R tensors (B, C, size, size).

    The interpolation is bilinear. maps: from the normalised region to the normalised feature map.
    Outside the map its outermost cells are repeated. Zeros would draw an edge whose position
    depends on the pose.
    """
    dtype = torch.promote_types(features_BCHW.dtype, torch.float32)  # bf16 is too coarse for positions
    steps_S = (2 * torch.arange(size, device=features_BCHW.device, dtype=dtype) + 1) / size - 1
    y_SS1, x_SS1 = (axis[..., None] for axis in torch.meshgrid(steps_S, steps_S, indexing="ij"))
    across, down, shift = maps_BR23.to(dtype)[:, :, None, None].unbind(-1)
    grid_BRSS2 = across * x_SS1 + down * y_SS1 + shift
    # One call samples all regions, one below the other, so that the features are not copied for
    # each.
    tall = F.grid_sample(
        features_BCHW.to(dtype), grid_BRSS2.flatten(1, 2), "bilinear", "border", align_corners=False
    )
    return list(tall.to(features_BCHW.dtype).chunk(maps_BR23.shape[1], -2))


class RegionPooling(nn.Module):
    """Cuts the named regions of each face from a feature map.

    pooling: `arp` aligns by all five points, `roi` takes upright squares. stride: pixels of the
    face per cell of the map. Cell j looks at the face around pixel stride * j; pixel 0 is the
    centre of the first pixel.
    """

    def __init__(self, names: Sequence[str], pooling: Literal["arp", "roi"] = "arp", stride: int = 1) -> None:
        super().__init__()
        self.names, self._stride = list(names), stride
        self._aligned = pooling == "arp"
        regions = [REGIONS[name] for name in self.names]
        self.register_buffer("template", template(), persistent=False)
        self.register_buffer("targets", targets(self.names), persistent=False)
        self.register_buffer("anchors", torch.tensor([region.anchor for region in regions]), persistent=False)
        self.register_buffer("halves", torch.tensor([region.half for region in regions]), persistent=False)
        self.template: Tensor
        self.targets: Tensor
        self.anchors: Tensor
        self.halves: Tensor

    def forward(self, features_BCHW: Tensor, points_BN2: Tensor, size: int) -> dict[str, Tensor]:
        """The regions by name, (B, C, size, size) each.

        features: a square map. points: (B, 5, 2) in pixels of the face; `usable_points` replaces
        missing ones. They get no gradient.
        """
        side = features_BCHW.shape[-1]
        with torch.no_grad(), torch.autocast(features_BCHW.device.type, enabled=False):
            unit_BN2 = to_unit(points_BN2.to(self.template.dtype), side * self._stride)
            unit_BN2 = usable_points(unit_BN2, self.template)
            # From the face's pixels to the cells that look at them.
            unit_BN2 = unit_BN2 + (1 - 1 / self._stride) / side
            maps_BR23 = self.aligned(unit_BN2) if self._aligned else self.upright(unit_BN2)
        return dict(zip(self.names, sample(features_BCHW, maps_BR23, size), strict=True))

    def aligned(self, points_BN2: Tensor) -> Tensor:
        """The maps of aligned region pooling, from each region to the feature map: (B, R, 2, 3).

        They are the inverse of Eq. 1's maps.
        """
        return inverse(affine(points_BN2[:, None], self.targets))

    def upright(self, points_BN2: Tensor) -> Tensor:
        """The maps of Figure 5's squares, from each region to the feature map: (B, R, 2, 3).

        The centre of global squares is the nose tip, that of local ones is in `REGIONS`. The paper
        does not give their sides. They are those of the aligned regions at this face's size, so the
        two poolings differ only in rotation, shear and centre.
        """
        half_BR = self.halves / _zoom(points_BN2, self.template)[:, None]
        centre_BR2 = self.anchors @ points_BN2
        return torch.cat([torch.diag_embed(torch.stack([half_BR, half_BR], -1)), centre_BR2[..., None]], -1)
