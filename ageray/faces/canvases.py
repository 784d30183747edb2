"""From encoded photos to canvases: the square uint8 piece of a photo that one face's crop is resampled from.

A canvas is cut from the photo without resampling other than whole-number shrinking, so a face crosses the object store as uint8 and is
interpolated once, on the accelerator. Where it is cut depends on the face and the alignment alone, never on augmentation: training and serving
see the same pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from ageray.experiment import Align
from ageray.faces import geometry
from ageray.faces.align import crop_map
from ageray.faces.images import ImageError, Photo, decode

_ROOM = 2.25
"""Side of a canvas over side of the crop: a crop spans less than two canvas pixels a pixel, the rest is room for rotation."""
_DRAFTS = (8, 4, 2, 1)
_SMALLEST_CROP = 2.0
"""A crop of fewer photo pixels than this has no face in it: coincident points, an empty box."""


@dataclass(frozen=True)
class Canvases:
    """Faces of one photo, or of a batch: `pixels` uint8 (N, C, C, 3), `points` float32 (N, 5, 2) and `box` float32 (N, 4) in canvas
    coordinates (NaN where a face has none)."""

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

    data: the encoded photo. points: (N, 5, 2), box: (N, 4), in full-size pixels, None where unknown; `align.mode` says which it needs
    (`none` needs neither: N is then 1). photo: the same photo already decoded at any scale; reused where its scale is the right one.
    Raises ImageError if the photo cannot be decoded, or a face lacks what the alignment needs.
    """
    if photo is None:
        photo = decode(data, max_side=canvas_side(align)) if align.mode == "none" else None
    count = len(points) if points is not None else len(box) if box is not None else 1
    points = (
        np.full((count, 5, 2), np.nan, np.float32)
        if points is None
        else np.asarray(points, np.float32).reshape(count, 5, 2)
    )
    box = (
        np.full((count, 4), np.nan, np.float32)
        if box is None
        else np.asarray(box, np.float32).reshape(count, 4)
    )
    if align.mode == "none":
        assert photo is not None
        box = np.tile(np.array([-0.5, -0.5, photo.width - 0.5, photo.height - 0.5], np.float32), (count, 1))
    corners, spans = _crops(points, box, align)
    decoded = {photo.scale: photo} if photo is not None else {}
    pieces = [_cut(data, decoded, *face, align) for face in zip(points, box, corners, spans, strict=True)]
    side = canvas_side(align)
    return Canvases(
        np.stack([piece[0] for piece in pieces]) if pieces else np.zeros((0, side, side, 3), np.uint8),
        np.stack([piece[1] for piece in pieces]) if pieces else np.zeros((0, 5, 2), np.float32),
        np.stack([piece[2] for piece in pieces]) if pieces else np.zeros((0, 4), np.float32),
    )


def _crops(
    points: NDArray[np.float32], box: NDArray[np.float32], align: Align
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Corners (N, 4, 2) of each face's crop in the photo and how many photo pixels one crop pixel spans (N,)."""
    needed = {"similarity": points, "eyes": points[:, :2]}.get(align.mode, box)
    if not np.isfinite(needed).all():
        raise ImageError(f"no {'box' if needed is box else 'landmarks'} to align by")
    if needed is box and not (box[:, 2:] > box[:, :2]).all():
        raise ImageError("box has no area: no face to align")
    matrix = crop_map(torch.from_numpy(points), torch.from_numpy(box), align)
    spans = 1 / geometry.scale_of(matrix)
    fine = (
        torch.isfinite(matrix).all()
        and torch.isfinite(spans).all()
        and (spans * align.size >= _SMALLEST_CROP).all()
    )
    if not bool(fine):
        raise ImageError("landmarks or box coincide: no face to align")
    low, high = -0.5, align.size - 0.5
    square = torch.tensor([[low, low], [high, low], [low, high], [high, high]])
    corners = geometry.apply(geometry.invert(matrix), square.expand(len(points), 4, 2))
    return corners.numpy(), spans.numpy()


def _cut(
    data: bytes,
    decoded: dict[int, Photo],
    points: NDArray[np.float32],
    box: NDArray[np.float32],
    corners: NDArray[np.float32],
    span: np.float32,
    align: Align,
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    side = canvas_side(align)
    extent = float((corners.max(0) - corners.min(0)).max())
    # Whole-number shrinking: below one crop pixel a canvas pixel, and further only if the turned crop would not fit.
    shrink = max(1, math.floor(float(span)), math.ceil(extent / (side - 4)))
    # A little larger than need be is as good where the decoder can shrink that far: at 4000x3000 it saves most of the decoding.
    photo = _decoded_at(
        data, decoded, next(draft for draft in _DRAFTS if shrink // draft * draft * (side - 4) >= extent)
    )
    if shrink > max(photo.width, photo.height):
        raise ImageError("landmarks or box lie far beyond the photo: no face to align")
    block = shrink // photo.scale
    centre = photo.shrink(corners.mean(0))
    first = np.round((centre + 0.5) / block - side / 2).astype(int)
    canvas = _window(photo.pixels, first, block, side, align.fill)

    def moved(places: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray((photo.shrink(places) - (block - 1) / 2) / block - first, np.float32)

    return canvas, moved(points), moved(box.reshape(2, 2)).reshape(4)


def _decoded_at(data: bytes, decoded: dict[int, Photo], scale: int) -> Photo:
    """The photo decoded at 1/scale where the decoder can (JPEG), else as large as it comes; each only once."""
    for photo in decoded.values():
        if photo.scale == scale or not photo.shrinks:
            return photo
    decoded[scale] = decode(data, scale=scale)
    return decoded[scale]


def _window(
    pixels: NDArray[np.uint8], first: NDArray[np.int_], block: int, side: int, fill: int
) -> NDArray[np.uint8]:
    """`side` x `side` block means starting at block `first` (x, y); `fill` where the photo ends. A block that reaches past the photo's edge is
    the mean of its own pixels, the outermost repeated."""
    height, width = -(-pixels.shape[0] // block), -(-pixels.shape[1] // block)
    x0, y0 = np.clip(first, 0, [width, height])
    x1, y1 = np.clip(first + side, 0, [width, height])
    canvas = np.full((side, side, 3), fill, np.uint8)
    if x1 > x0 and y1 > y0:
        piece = pixels[y0 * block : y1 * block, x0 * block : x1 * block]
        if block > 1:
            below, right = int(y1 - y0) * block - piece.shape[0], int(x1 - x0) * block - piece.shape[1]
            if below or right:
                piece = np.asarray(
                    cv2.copyMakeBorder(piece, 0, below, 0, right, cv2.BORDER_REPLICATE), np.uint8
                )
            piece = np.asarray(
                cv2.resize(piece, (int(x1 - x0), int(y1 - y0)), interpolation=cv2.INTER_AREA), np.uint8
            )
        canvas[y0 - first[1] : y1 - first[1], x0 - first[0] : x1 - first[0]] = piece
    return canvas


def to_tensors(batch: dict[str, Any], device: torch.device) -> dict[str, torch.Tensor]:
    """A batch of numpy columns on the device; canvases become uint8 (B, 3, C, C) in channels-last memory, one copy, nothing converted yet, and
    so do faces that are aligned already (`aligned`, float32)."""
    moved = {}
    for name, values in batch.items():
        # Arrow hands out read-only memory, which torch will not share
        tensor = (
            torch.from_numpy(values if values.flags.writeable else values.copy())
            if isinstance(values, np.ndarray)
            else values
        )
        if device.type == "cuda":
            tensor = tensor.pin_memory()
        tensor = tensor.to(device, non_blocking=True)
        moved[name] = tensor.permute(0, 3, 1, 2) if name in ("canvas", "aligned") else tensor
    return moved
