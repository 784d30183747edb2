"""Makes a good photo a hard one: small, blurred, gray, noisy, recompressed, masked, turned. For
measuring, not for training.

Photos are uint8 RGB (H, W, 3); points (5, 2) and boxes (4,) are in pixels of the photo.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Points = NDArray[np.float32]
Degradation = Callable[[Pixels, Points, np.random.Generator], Pixels]

_EYES, _HEIGHT = (
    0.4,
    0.462,
)  # eye to eye and eyes to mouth over the side of the face, as in `geometry.template`
_MASK = (120, 150, 190)  # the blue of a surgical mask


def degrade(pixels: Pixels, points: Points, kind: str, seed: int = 0) -> Pixels:
    """The photo with the degradation `kind`, one of KINDS; the same seed gives the same photo.

    `small_*` shrinks the whole photo, so that the points must be found anew or multiplied by the
    ratio of the widths. All others leave points where they are. Raises KeyError if there is no such
    kind.
    """
    return KINDS[kind](pixels, points, np.random.default_rng(seed))


def face_side(points: Points) -> float:
    """Side in pixels, hairline to chin, of the face that five points belong to: by the distance of
    the eyes, or for turned faces that of eyes and mouth, whichever gives more."""
    eyes = float(np.linalg.norm(points[1] - points[0])) / _EYES
    height = float(np.linalg.norm(points[3:].mean(0) - points[:2].mean(0))) / _HEIGHT
    return max(eyes, height, 1.0)


def _small(side: float) -> Degradation:
    def shrink(pixels: Pixels, points: Points, _: np.random.Generator) -> Pixels:
        ratio = min(1.0, side / face_side(points))
        size = (max(8, round(pixels.shape[1] * ratio)), max(8, round(pixels.shape[0] * ratio)))
        return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)

    return shrink


def _blur(share: float) -> Degradation:
    def blur(pixels: Pixels, points: Points, _: np.random.Generator) -> Pixels:
        return np.asarray(cv2.GaussianBlur(pixels, (0, 0), share * face_side(points)), np.uint8)

    return blur


def _jpeg(quality: int) -> Degradation:
    def recompress(pixels: Pixels, _: Points, __: np.random.Generator) -> Pixels:
        bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
        encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        decoded = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), np.uint8)
        return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), np.uint8)

    return recompress


def _noise(deviation: float) -> Degradation:
    def add(pixels: Pixels, _: Points, draw: np.random.Generator) -> Pixels:
        return np.clip(pixels + draw.normal(0, deviation, pixels.shape), 0, 255).astype(np.uint8)

    return add


def _gray(pixels: Pixels, _: Points, __: np.random.Generator) -> Pixels:
    return np.repeat(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None], 3, -1).astype(np.uint8)


def _scan(pixels: Pixels, points: Points, draw: np.random.Generator) -> Pixels:
    """A faded print: less contrast, a warm tint, soft, with grain."""
    soft = cv2.GaussianBlur(pixels, (0, 0), 0.008 * face_side(points)).astype(np.float32)
    faded = 60 + 0.6 * soft
    tinted = faded * np.array([1.08, 1.0, 0.82], np.float32)
    grain = draw.normal(0, 6, pixels.shape[:2])[..., None]
    return np.clip(tinted + grain, 0, 255).astype(np.uint8)


def _dark(pixels: Pixels, _: Points, draw: np.random.Generator) -> Pixels:
    dark = 255 * (pixels / 255.0) ** 1.2 * 0.25
    return np.clip(dark + draw.normal(0, 3, pixels.shape), 0, 255).astype(np.uint8)


def _masked(pixels: Pixels, points: Points, _: np.random.Generator) -> Pixels:
    """A mask over nose tip, mouth and chin."""
    across = points[1] - points[0]
    down = points[3:].mean(0) - points[:2].mean(0)
    top = points[2] - 0.15 * down
    chin = points[3:].mean(0) + 0.75 * down
    corners = [top - 0.85 * across, top + 0.85 * across, chin + 0.5 * across, chin - 0.5 * across]
    covered = pixels.copy()
    cv2.fillConvexPoly(covered, np.round(corners).astype(np.int32), _MASK)
    return covered


def _glasses(pixels: Pixels, points: Points, _: np.random.Generator) -> Pixels:
    """Dark glasses."""
    covered = pixels.copy()
    apart = float(np.linalg.norm(points[1] - points[0]))
    for eye in points[:2]:
        cv2.circle(
            covered, tuple(int(value) for value in np.round(eye)), round(0.36 * apart), (20, 20, 22), -1
        )
    left, right = (tuple(int(value) for value in np.round(eye)) for eye in points[:2])
    cv2.line(covered, left, right, (20, 20, 22), max(1, round(0.08 * apart)))
    return covered


def _turned(share: float) -> Degradation:
    """The far half of the face squeezed, as a turn by about 60 * share degrees would; a picture, no
    true profile."""

    def turn(pixels: Pixels, points: Points, draw: np.random.Generator) -> Pixels:
        height, width = pixels.shape[:2]
        middle = float(points[:, 0].mean())
        reach = 1.2 * face_side(points) / 2
        side = 1 if draw.random() < 0.5 else -1
        x = np.arange(width, dtype=np.float32)
        offset = (x - middle) / reach * side
        inside = np.clip(offset, 0, 1)
        stretched = np.clip(offset, -1, 1)
        moved = offset + share * inside * (1 - inside) * 1.6 + 0.25 * share * (1 - stretched**2)
        source = middle + side * moved * reach
        grid_x = np.repeat(source[None].astype(np.float32), height, 0)
        grid_y = np.repeat(np.arange(height, dtype=np.float32)[:, None], width, 1)
        return np.asarray(
            cv2.remap(pixels, grid_x, grid_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8
        )

    return turn


def _none(pixels: Pixels, _: Points, __: np.random.Generator) -> Pixels:
    return pixels


KINDS: dict[str, Degradation] = {
    "none": _none,
    "small_40": _small(40),
    "small_20": _small(20),
    "blur": _blur(0.03),
    "gray": _gray,
    "scan": _scan,
    "jpeg_20": _jpeg(20),
    "jpeg_8": _jpeg(8),
    "noise": _noise(25),
    "dark": _dark,
    "masked": _masked,
    "dark_glasses": _glasses,
    "turned": _turned(0.6),
}
"""Every degradation by name. Sides are those of the face in pixels; blur's deviation is a share of
it."""
