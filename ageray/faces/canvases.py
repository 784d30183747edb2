"""From encoded photos to canvases.

A canvas is the square uint8 piece of a photo that a face's crop is resampled from. It is cut from
the photo and shrunk by a whole number, without other resampling. So a face crosses the object store
as uint8, and is interpolated once, on the accelerator. The cut depends on the face and the
alignment, never on augmentation. So training and serving see the same pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.dlpack import from_dlpack

from ageray.experiment import Align
from ageray.faces import geometry
from ageray.faces.align import crop_map
from ageray.faces.images import ImageError, Photo, decode

_ROOM = 2.25
"""Side of a canvas over side of the crop. A crop pixel spans less than two canvas pixels; the rest
is room for rotation."""
_DRAFTS = (8, 4, 2, 1)
_TILTED = 60
"""Degrees by which a head may be tilted before its photo counts as turned."""
_SMALLEST_CROP = 2.0
"""Side in photo pixels. A smaller crop comes from coincident points or an empty box."""
_FARTHEST = 1e15
"""Greatest coordinate of a crop, and of points that suggest a box. The square of one of 1e19 is
infinite in float32."""
_FAR = "landmarks or box lie far beyond the photo: no face to align"


@dataclass(frozen=True)
class Canvases:
    """N faces of one photo, or of a batch.

    `pixels` is uint8 (N, C, C, 3). `points` (N, 5, 2) and `box` (N, 4) are float32 in canvas
    coordinates, NaN if a face has none.
    """

    pixels: NDArray[np.uint8]
    points: NDArray[np.float32]
    box: NDArray[np.float32]


def canvas_side(align: Align) -> int:
    """Side C of the canvases of this alignment, in pixels."""
    return 2 * math.ceil(align.size * _ROOM / 2)


def face_canvases(
    data: bytes,
    points: NDArray[np.float32] | None,
    box: NDArray[np.float32] | None,
    align: Align,
    photo: Photo | None = None,
) -> Canvases:
    """Canvases of the N faces of one photo.

    data: the encoded photo. points: (N, 5, 2), box: (N, 4), in full-size pixels, None if unknown.
    `align.mode` decides which of them is needed; `none` needs neither, and N is 1; `box` takes the
    points of a face without a box. photo: the same
    photo decoded at any scale; it is used if its scale is the right one.

    Raises ImageError if the photo cannot be decoded, or if a face lacks what the alignment needs.
    """
    if photo is None and align.mode == "none":
        photo = decode(data, max_side=canvas_side(align))
    count = 1
    if points is not None:
        count = len(points)
    elif box is not None:
        count = len(box)
    points = _or_nan(points, (count, 5, 2))
    box = _or_nan(box, (count, 4))
    if align.mode == "none":
        assert photo is not None
        box = np.tile(np.array([-0.5, -0.5, photo.width - 0.5, photo.height - 0.5], np.float32), (count, 1))
    if align.mode == "box":
        box = _or_of_points(box, points)
    crops = _crops(points, box, align)
    for problem in crops.problems:
        if problem:
            raise ImageError(problem)
    decoded: dict[int, Photo] = {}
    if photo is not None:
        decoded[photo.scale] = photo
    canvases = _empty(count, align)
    for face in range(count):
        _cut(data, decoded, points[face], box[face], crops, face, align, canvases)
    return canvases


def canvases_of_rows(
    images: Sequence[bytes], points: NDArray[np.float32], box: NDArray[np.float32], align: Align
) -> tuple[Canvases, NDArray[np.object_]]:
    """Canvases of the faces of N photos, one each, and why a face has none ('' if it has).

    images: the encoded photos. points: (N, 5, 2), box: (N, 4), in full-size pixels, NaN if unknown.
    Equal to `face_canvases` of each row. A face without a canvas has the fill and NaN.
    """
    canvases = _empty(len(images), align)
    if align.mode == "none":  # the crop is the photo, whose size only the decoder knows
        problems = np.full(len(images), "", object)
        for row, data in enumerate(images):
            try:
                own = face_canvases(data, points[row : row + 1], box[row : row + 1], align)
            except ImageError as error:
                problems[row] = str(error)
                continue
            canvases.pixels[row], canvases.points[row] = own.pixels[0], own.points[0]
            canvases.box[row] = own.box[0]
        return canvases, problems
    if align.mode == "box":
        box = _or_of_points(box, points)
    crops = _crops(points, box, align)
    for row, data in enumerate(images):
        if crops.problems[row]:
            continue
        try:
            _cut(data, {}, points[row], box[row], crops, row, align, canvases)
        except ImageError as error:
            crops.problems[row] = str(error)
    return canvases, crops.problems


def _empty(count: int, align: Align) -> Canvases:
    """Canvases of the fill, with unknown points and boxes."""
    side = canvas_side(align)
    return Canvases(
        np.full((count, side, side, 3), align.fill, np.uint8),
        np.full((count, 5, 2), np.nan, np.float32),
        np.full((count, 4), np.nan, np.float32),
    )


def _or_nan(values: NDArray[np.float32] | None, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The values as float32 of that shape, or NaN if there are none."""
    if values is None:
        return np.full(shape, np.nan, np.float32)
    return np.asarray(values, np.float32).reshape(shape)


def _or_of_points(box: NDArray[np.float32], points: NDArray[np.float32]) -> NDArray[np.float32]:
    """The boxes (N, 4); for a face without one, such as FG-NET's with its own points, the box that
    its points suggest."""
    missing = ~np.isfinite(box).all(-1) & np.isfinite(points).all((1, 2))
    missing &= (np.abs(points) < _FARTHEST).all((1, 2))
    with np.errstate(all="ignore"):  # unknown points and far ones
        missing &= np.ptp(points, axis=1).min(-1) > 0  # points on a line fix no box
    if missing.any():
        box = box.copy()
        box[missing] = geometry.box_of_points(torch.from_numpy(points[missing])).numpy()
    return box


@dataclass(frozen=True)
class _Crops:
    """Crops of N faces: their `corners` (N, 4, 2) in the photo, photo pixels per crop pixel `spans`
    (N,), quarter `turns` (N,) that make the face upright, and `problems` (N,): why there is no
    crop, else ''. Without a crop, corners and spans are NaN."""

    corners: NDArray[np.float32]
    spans: NDArray[np.float32]
    turns: NDArray[np.int64]
    problems: NDArray[np.object_]


def _crops(points: NDArray[np.float32], box: NDArray[np.float32], align: Align) -> _Crops:
    """The crops of N faces, of one photo or of several."""
    problems = np.full(len(points), "", object)
    if align.mode in ("box", "none"):
        problems[~(box[:, 2:] > box[:, :2]).all(1)] = "box has no area: no face to align"
        problems[~np.isfinite(box).all(1)] = "no box to align by"
    else:
        needed = points[:, :2] if align.mode == "eyes" else points
        problems[~np.isfinite(needed).all((1, 2))] = "no landmarks to align by"
    turns = _turns(points, align)
    if align.mode == "similarity":
        corners, spans = _similar_corners(points, align)
    else:
        corners, spans = _mapped_corners(_turn(points, turns), _turn_boxes(box, turns), align)
    fine = np.isfinite(spans) & (spans >= _SMALLEST_CROP / align.size)
    problems[(problems == "") & ~fine] = "landmarks or box coincide: no face to align"
    far = ~(np.abs(corners) < _FARTHEST).all((1, 2))
    problems[(problems == "") & far] = _FAR
    corners[problems != ""] = np.nan
    return _Crops(_turn(corners, -turns), spans, turns, problems)


def _mapped_corners(
    points: NDArray[np.float32], box: NDArray[np.float32], align: Align
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The corners (N, 4, 2) of the crops of upright faces, and photo pixels per crop pixel (N,);
    not finite where the map is singular."""
    matrix = crop_map(torch.from_numpy(points), torch.from_numpy(box), align)
    spans = 1 / geometry.scale_of(matrix)
    corners = torch.full((len(points), 4, 2), math.nan)
    usable = torch.isfinite(matrix).all(-1).all(-1) & torch.isfinite(spans)
    square = torch.from_numpy(_square(align.size).view(np.float64).reshape(4, 2)).float()
    inverse = geometry.invert(matrix[usable])
    corners[usable] = geometry.apply(inverse, square.expand(len(inverse), 4, 2))
    return corners.numpy(), spans.where(usable, torch.nan).numpy()


def _similar_corners(
    points: NDArray[np.float32], align: Align
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """`_mapped_corners` for `align.mode: similarity`, of faces as they are.

    It is `geometry.similarity` with points as complex numbers. Torch takes ten times as long for
    the single face of a photo, as much as a tenth of its detection.
    """
    target_5 = _template(align.size, align.coverage)
    source_N5 = np.ascontiguousarray(points, np.float64).view(np.complex128)[..., 0]
    with np.errstate(all="ignore"):  # NaN for unknown points, infinity for coincident ones
        middle_N1 = source_N5.mean(1, keepdims=True)
        p, q = source_N5 - middle_N1, target_5 - target_5.mean()
        factor_N1 = (p.conj() * q).sum(1, keepdims=True) / (abs(p) ** 2).sum(1, keepdims=True)
        spans = 1 / abs(factor_N1[:, 0])
        corners = (_square(align.size) - target_5.mean()) / factor_N1 + middle_N1
        return corners.view(np.float64).reshape(-1, 4, 2).astype(np.float32), spans.astype(np.float32)


@cache
def _template(size: int, coverage: float) -> NDArray[np.complex128]:
    """`geometry.template` as complex numbers: (5,)."""
    points = geometry.template(size, coverage).numpy().astype(np.float64)
    return points.view(np.complex128)[:, 0]


@cache
def _square(size: int) -> NDArray[np.complex128]:
    """The corners of a crop as complex numbers: (4,)."""
    low, high = -0.5, size - 0.5
    return np.array([complex(x, y) for y in (low, high) for x in (low, high)])


def _turns(points: NDArray[np.float32], align: Align) -> NDArray[np.int64]:
    """By how many quarter turns against the clock each face (N,) is upright.

    A photo may lie on its side or on its head. The modes `eyes` and `box` cut an upright square, so
    the canvas is turned; `similarity` turns every face itself. 0 if the points are unknown, and for
    a head that is tilted by less than 60 degrees.
    """
    turns = np.zeros(len(points), np.int64)
    if align.mode not in ("eyes", "box"):
        return turns
    with np.errstate(all="ignore"):  # sums of huge numbers overflow
        down = points[:, 3:].mean(1) - points[:, :2].mean(1)
    angles = np.degrees(np.arctan2(down[:, 0], down[:, 1]))
    lying = np.abs(angles) > _TILTED  # not where the angle is NaN
    turns[lying] = -np.rint(angles[lying] / 90).astype(np.int64) % 4
    return turns


def _turn(points: NDArray[np.float32], turns: NDArray[np.int64]) -> NDArray[np.float32]:
    """Points (N, K, 2), each row turned about the origin by its quarter turns against the clock."""
    turned = points.copy()
    if not turns.any():
        return turned
    for turn in range(1, 4):
        rows = turns % 4 == turn
        x, y = points[rows, :, 0], points[rows, :, 1]
        turned[rows] = np.stack([(y, -x), (-x, -y), (-y, x)][turn - 1], -1)
    return turned


def _turn_boxes(box: NDArray[np.float32], turns: NDArray[np.int64]) -> NDArray[np.float32]:
    """Boxes (N, 4) turned about the origin; the corner of the least coordinates stays the first."""
    corners = _turn(box.reshape(-1, 2, 2), turns)
    corners[turns != 0] = np.sort(corners[turns != 0], 1)
    return corners.reshape(-1, 4)


def _cut(
    data: bytes,
    decoded: dict[int, Photo],
    points: NDArray[np.float32],
    box: NDArray[np.float32],
    crops: _Crops,
    face: int,
    align: Align,
    canvases: Canvases,
) -> None:
    """Writes canvas, points and box of one face into its row of `canvases`.

    decoded: the photo by the scale asked for; a further scale is added.
    """
    side, corners, span = canvas_side(align), crops.corners[face], crops.spans[face]
    extent = float((corners.max(0) - corners.min(0)).max())
    # A canvas pixel spans no more of the photo than a crop pixel, unless the rotated crop would not
    # fit.
    shrink = max(1, math.floor(float(span)), math.ceil(extent / (side - 4)))
    # If the decoder can shrink by 2, 4 or 8, a slightly smaller shrink than necessary is as good.
    # For a 4000x3000 photo that saves most of the decoding.
    scale = next(draft for draft in _DRAFTS if shrink // draft * draft * (side - 4) >= extent)
    photo = _decoded_at(data, decoded, scale)
    if shrink > max(photo.width, photo.height):
        raise ImageError(_FAR)
    block = max(1, shrink // photo.scale)  # a photo of very many pixels comes smaller than asked for
    centre = photo.shrink(corners.mean(0))
    first = np.round((centre + 0.5) / block - side / 2).astype(int)
    _draw_window(canvases.pixels[face], photo.pixels, first, block)

    def to_canvas(coordinates: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray((photo.shrink(coordinates) - (block - 1) / 2) / block - first, np.float32)

    canvases.points[face] = to_canvas(points)
    canvases.box[face] = to_canvas(box.reshape(2, 2)).reshape(4)
    turns = crops.turns[face : face + 1]
    if turns[0]:
        middle = np.float32((side - 1) / 2)
        canvases.pixels[face] = np.rot90(canvases.pixels[face], turns[0]).copy()
        canvases.points[face] = _turn(canvases.points[face : face + 1] - middle, turns)[0] + middle
        canvases.box[face] = _turn_boxes(canvases.box[face : face + 1] - middle, turns)[0] + middle


def _decoded_at(data: bytes, decoded: dict[int, Photo], scale: int) -> Photo:
    """The photo at 1/scale if its decoder can shrink (JPEG), else in full size.

    Each scale is decoded only once.
    """
    if scale in decoded:
        return decoded[scale]
    for photo in decoded.values():
        if photo.scale == scale or not photo.shrinks:
            return photo
    decoded[scale] = decode(data, scale=scale)
    return decoded[scale]


def _draw_window(
    canvas: NDArray[np.uint8], pixels: NDArray[np.uint8], first: NDArray[np.int_], block: int
) -> None:
    """Writes means of blocks of pixels, from block `first` (x, y) on, into the canvas (C, C, 3).

    Blocks outside the photo are left as they are. A block across the photo's edge is the mean of
    its pixels, with the outermost ones repeated.
    """
    side = len(canvas)
    height, width = -(-pixels.shape[0] // block), -(-pixels.shape[1] // block)
    x0, y0 = np.clip(first, 0, [width, height])
    x1, y1 = np.clip(first + side, 0, [width, height])
    if x1 <= x0 or y1 <= y0:
        return
    piece = pixels[y0 * block : y1 * block, x0 * block : x1 * block]
    if block > 1:
        columns, rows = int(x1 - x0), int(y1 - y0)
        below, right = rows * block - piece.shape[0], columns * block - piece.shape[1]
        if below or right:
            bordered = cv2.copyMakeBorder(piece, 0, below, 0, right, cv2.BORDER_REPLICATE)
            piece = np.asarray(bordered, np.uint8)
        piece = np.asarray(cv2.resize(piece, (columns, rows), interpolation=cv2.INTER_AREA), np.uint8)
    canvas[y0 - first[1] : y1 - first[1], x0 - first[0] : x1 - first[0]] = piece


def to_tensors(batch: dict[str, Any], device: torch.device) -> dict[str, torch.Tensor]:
    """A batch of numpy columns, or of tensors, on the device.

    `canvas` (uint8) and `aligned` (float32) become (B, 3, C, C) in channels-last memory, with one
    copy and no conversion. On a CPU the tensors share the arrays' memory and must not be written
    to.
    """
    tensors = {}
    for name, values in batch.items():
        tensor = _to_tensor(values)
        if device.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()
        tensor = tensor.to(device, non_blocking=True)
        if name in ("canvas", "aligned"):
            tensor = tensor.permute(0, 3, 1, 2)
        tensors[name] = tensor
    return tensors


def _to_tensor(values: NDArray[Any] | torch.Tensor) -> torch.Tensor:
    if isinstance(values, torch.Tensor):
        return values
    if not values.flags.writeable:  # Arrow's memory, which nothing here writes to
        return from_dlpack(np.ascontiguousarray(values))
    return torch.from_numpy(values)
