"""Regions of a face cut from a feature map: aligned region pooling (DHAA, section 2.2) and upright squares (its Figure 5).

Coordinates are normalised to [-1, 1] from the map's left (top) edge to its right (bottom) edge, as in spatial transformers (Jaderberg et al.
2015). The five points are viewer-left eye, viewer-right eye, nose tip, viewer-left and viewer-right mouth corner.

Shape letters: B faces, N points, R regions, C channels, H and W sides of the map, S side of a region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ageray.faces import geometry

_LARGEST_ZOOM = (
    8.0  # between the face and the place where alignment puts one; beyond, the points are no face's
)
_FLATTEST = (
    1e-3  # determinant over squared trace of the points' scatter: 0.24 for a frontal face, 0 on a line
)
_LARGEST_STRETCH = 4.0  # of one direction against the other; a yaw of 75 degrees foreshortens as much


@dataclass(frozen=True)
class Region:
    """A square of the template, in the normalised coordinates of the template's own crop: its centre and half its side.

    anchor: weights of the five points whose mean is the centre of the upright square.
    """

    centre: tuple[float, float]
    half: float
    anchor: tuple[float, float, float, float, float]


def template() -> Tensor:
    """The five points in the frontal template's crop, hairline to chin, normalised: (5, 2), symmetric about x = 0."""
    return 2 * geometry.template(1)  # its crop of side 1 has its centre at (0, 0)


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
"""The five pooled regions, which the paper's Figure 2 shows without numbers (ours: docs/dhaa.md). G-2 is the template's own crop, 2.5 eye
distances from hairline to chin; in G-3 the face is 1.2 times as large. Local regions have half of G-2's side, 1.25 eye distances, about the
centres that the paper names for upright squares: left eye, the middle between nose tip and the middle of the eyes, middle of the mouth."""


def targets(names: Sequence[str]) -> Tensor:
    """Target key points R^t of Eq. 1, normalised to each named region: (R, 5, 2). A point outside a region lies beyond [-1, 1]."""
    return torch.stack(
        [(template() - torch.tensor(REGIONS[name].centre)) / REGIONS[name].half for name in names]
    )


def to_unit(points_BN2: Tensor, side: int) -> Tensor:
    """Pixels of a square map of that side to normalised coordinates; pixel 0 has its centre at -1 + 1 / side."""
    return (2 * points_BN2 + 1) / side - 1


def _zoom(points_BN2: Tensor, template_N2: Tensor) -> Tensor:
    """How much smaller than in the template the face is, by the least-squares similarity: (B,)."""
    zoom_B: Tensor = geometry.similarity(points_BN2, template_N2)[..., 0].norm(dim=-1)
    return zoom_B


def usable_points(points_BN2: Tensor, template_N2: Tensor) -> Tensor:
    """The normalised points, or the template's own for a face whose points are none: (B, 5, 2).

    Those are NaN or infinite (a face aligned by its box), coincident, or of a face over 8 times as large or as small as the template's. The
    template's points lie where alignment by points at coverage 1 puts a face's.
    """
    known_B = torch.isfinite(points_BN2).all(-1).all(-1)
    points_BN2 = torch.where(known_B[:, None, None], points_BN2, template_N2)
    zoom_B = _zoom(points_BN2, template_N2)
    face_B = (zoom_B < _LARGEST_ZOOM) & (zoom_B > 1 / _LARGEST_ZOOM)
    return torch.where(face_B[:, None, None], points_BN2, template_N2)


def affine(source_BN2: Tensor, target_BN2: Tensor) -> Tensor:
    """The affine map M_A that takes source points closest to the targets: sum_j |q_j - (A p_j + b)|^2 is least (Eq. 1); (B, 2, 3).

    About the means the optimum is A = (sum q p^T) (sum p p^T)^-1. Points that do not fix six numbers (on a line, or nearly: a profile) or whose
    optimum mirrors the face or stretches it more than fourfold take the least-squares similarity instead. Leading dimensions broadcast.
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
    """Whether (..., 2, 2) keeps orientation and its singular values differ at most by the factor `_LARGEST_STRETCH`.

    They are (turn + rest) / 2 and (turn - rest) / 2, negative for a reflection, where turn is the size of its part that turns and scales.
    """
    (a, b), (c, d) = (row.unbind(-1) for row in linear.unbind(-2))
    turn, rest = torch.hypot(a + d, c - b), torch.hypot(a - d, c + b)
    return rest <= turn * ((_LARGEST_STRETCH - 1) / (_LARGEST_STRETCH + 1))


def inverse(matrix_B23: Tensor) -> Tensor:
    """The map back, (B, 2, 3); written out, since torch.linalg.inv makes a GPU wait."""
    (a, b, x), (c, d, y) = (row.unbind(-1) for row in matrix_B23.unbind(-2))
    rows = [torch.stack([d, -b, b * y - d * x], -1), torch.stack([-c, a, c * x - a * y], -1)]
    return torch.stack(rows, -2) / (a * d - b * c)[..., None, None]


def sample(features_BCHW: Tensor, maps_BR23: Tensor, size: int) -> list[Tensor]:
    """The feature map on each region's grid of `size` x `size` cell centres, bilinear: R tensors (B, C, size, size).

    maps: from the normalised region to the normalised feature map. Beyond the map its outermost cells go on: zeros there would draw an edge
    whose place depends on the pose.
    """
    kind = torch.promote_types(features_BCHW.dtype, torch.float32)  # bf16 has too few bits for a place
    steps_S = (2 * torch.arange(size, device=features_BCHW.device, dtype=kind) + 1) / size - 1
    y_SS1, x_SS1 = (axis[..., None] for axis in torch.meshgrid(steps_S, steps_S, indexing="ij"))
    across, down, shift = maps_BR23.to(kind)[:, :, None, None].unbind(-1)
    grid_BRSS2 = across * x_SS1 + down * y_SS1 + shift
    # all regions one below the other in one call: no copy of the features for each
    tall = F.grid_sample(
        features_BCHW.to(kind), grid_BRSS2.flatten(1, 2), "bilinear", "border", align_corners=False
    )
    return list(tall.to(features_BCHW.dtype).chunk(maps_BR23.shape[1], -2))


class RegionPooling(nn.Module):
    """The named regions of each face from a feature map. pooling: `arp`, aligned by all five points, or `roi`, upright squares.

    stride: of the map; its cell j looks at the face around pixel stride * j (pixel 0 is the centre of the first).
    """

    def __init__(self, names: Sequence[str], pooling: Literal["arp", "roi"] = "arp", stride: int = 1) -> None:
        super().__init__()
        self.names, self._stride = list(names), stride
        self._aligned = pooling == "arp"
        chosen = [REGIONS[name] for name in self.names]
        self.register_buffer("template", template(), persistent=False)
        self.register_buffer("targets", targets(self.names), persistent=False)
        self.register_buffer("anchors", torch.tensor([region.anchor for region in chosen]), persistent=False)
        self.register_buffer("halves", torch.tensor([region.half for region in chosen]), persistent=False)
        self.template: Tensor
        self.targets: Tensor
        self.anchors: Tensor
        self.halves: Tensor

    def forward(self, features_BCHW: Tensor, points_BN2: Tensor, size: int) -> dict[str, Tensor]:
        """Each named region, (B, C, size, size).

        features: a square map. points: (B, 5, 2) in pixels of the face; see `usable_points` for missing ones. They are data: no gradient goes
        to them.
        """
        side = features_BCHW.shape[-1]
        with torch.no_grad(), torch.autocast(features_BCHW.device.type, enabled=False):
            unit_BN2 = usable_points(
                to_unit(points_BN2.to(self.template.dtype), side * self._stride), self.template
            )
            unit_BN2 = (
                unit_BN2 + (1 - 1 / self._stride) / side
            )  # from the face's pixels to the cells that look at them
            maps_BR23 = self.aligned(unit_BN2) if self._aligned else self.upright(unit_BN2)
        return dict(zip(self.names, sample(features_BCHW, maps_BR23, size), strict=True))

    def aligned(self, points_BN2: Tensor) -> Tensor:
        """Aligned region pooling: from each region to the feature map, the inverse of Eq. 1's map; (B, R, 2, 3)."""
        return inverse(affine(points_BN2[:, None], self.targets))

    def upright(self, points_BN2: Tensor) -> Tensor:
        """Figure 5's squares: from each region to the feature map; (B, R, 2, 3).

        Global ones about the nose tip, local ones about the centres in `REGIONS`. Their sides, which the paper does not give, are the aligned
        regions' at this face's size: the two poolings differ in turn, shear and centre alone.
        """
        half_BR = self.halves / _zoom(points_BN2, self.template)[:, None]
        centre_BR2 = self.anchors @ points_BN2
        return torch.cat([torch.diag_embed(torch.stack([half_BR, half_BR], -1)), centre_BR2[..., None]], -1)
