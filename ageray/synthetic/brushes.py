"""The tools that faces are drawn with: soft shapes on a canvas, and a head's own coordinates.

Colours are RGB, 0 to 255. Shapes become 8-bit masks, which separate float32 operations blend. So a
drawing gives the same bytes on every processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Window = tuple[int, int, int, int]


class Canvas:
    """Colour planes (3, H, W), float32.

    A mask is broadcast over planes several times faster than over interleaved pixels.
    """

    def __init__(self, height: int, width: int) -> None:
        self.planes = np.zeros((3, height, width), np.float32)

    def window(self, low: Array, high: Array) -> Window:
        """The pixels x0, y0, x1, y1 between two corners, cut to the canvas.

        The window is empty if the corners lie outside.
        """
        _, height, width = self.planes.shape
        (x0, y0), (x1, y1) = np.floor(low), np.ceil(high) + 1
        x0, y0 = min(width, max(0, int(x0))), min(height, max(0, int(y0)))
        return x0, y0, max(x0, min(width, int(x1))), max(y0, min(height, int(y1)))

    def blend(self, window: Window, mask: Mask, colour: Array) -> None:
        """Mix `colour` into the window's pixels; `mask` (h, w) is its share."""
        x0, y0, x1, y1 = window
        patch = self.planes[:, y0:y1, x0:x1]
        patch += mask * (colour.astype(np.float32)[:, None, None] - patch)

    def fill(
        self, shapes: Sequence[Array], colour: Array, opacity: float, blur: float, inside: Array | None = None
    ) -> None:
        """Paint polygons, each (n, 2) in pixels.

        blur: of the edges, in pixels. inside: a polygon that limits the painting.
        """
        margin, points = 3 * blur + 2, np.concatenate(shapes)
        window = self.window(points.min(0) - margin, points.max(0) + margin)
        mask = coverage(shapes, window)
        if blur > 0.3 and mask.size:
            mask = np.asarray(cv2.GaussianBlur(mask, (0, 0), blur), np.uint8)
        if inside is not None:
            mask = np.minimum(mask, coverage([inside], window))
        self.blend(window, mask * np.float32(opacity / 255), colour)

    def glow(
        self, centre: Array, axes: Array, colour: Array, opacity: float, inside: Array | None = None
    ) -> None:
        """Paint a soft ellipse that fades out at its rim.

        axes: (2, 2), its half axes in pixels, as columns. inside: a polygon that limits the
        painting.
        """
        reach = np.abs(axes).sum(1)
        x0, y0, x1, y1 = window = self.window(centre - reach, centre + reach)
        (a, b), (c, d) = axes / (axes[0, 0] * axes[1, 1] - axes[0, 1] * axes[1, 0])
        x = (np.arange(x0, x1) - centre[0]).astype(np.float32)
        y = (np.arange(y0, y1)[:, None] - centre[1]).astype(np.float32)
        u, v = np.float32(d) * x - np.float32(b) * y, np.float32(a) * y - np.float32(c) * x
        mask = np.maximum(1 - u * u - v * v, 0) ** 2 * np.float32(opacity)
        if inside is not None:
            mask *= coverage([inside], window) / np.float32(255)
        self.blend(window, mask, colour)


def coverage(shapes: Sequence[Array], window: Window) -> Pixels:
    """The polygons as a mask over the window: 255 inside, less at their edges."""
    x0, y0, x1, y1 = window
    mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
    if mask.size:
        for shape in shapes:
            corners = np.rint((shape - (x0, y0)) * 16).astype(np.int32)
            cv2.fillPoly(mask, [corners], (255,), cv2.LINE_AA, 4)
    return mask


def strokes(curves: Array, width: float) -> Array:
    """Polygons (n, 18, 2) of lines along quadratic curves (n, 3, 2).

    The lines are `width` thick midway and pointed at the ends.
    """
    t = np.linspace(0, 1, 9)[:, None]
    start, bend, end = (curves[:, k, None] for k in range(3))
    line = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
    along = (1 - t) * (bend - start) + t * (end - bend)
    across = along[..., ::-1] * (-1, 1) / np.hypot(along[..., :1], along[..., 1:])
    side = across * width / 2 * np.sin(np.pi * np.clip(t, 0.04, 0.96))
    return np.concatenate([line + side, (line - side)[:, ::-1]], 1)


def ribbon(line: Array, above: float, below: float) -> Array:
    """The polygon between a line (n, 2) moved up by `above` and moved down by `below`."""
    return np.concatenate([np.subtract(line, (0, above)), np.add(line, (0, below))[::-1]])


def oval(x: float, y: float, rx: float, ry: float) -> Array:
    """An upright ellipse as a polygon (20, 2)."""
    turn = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    return np.stack([x + rx * np.cos(turn), y + ry * np.sin(turn)], 1)


@dataclass(frozen=True)
class Head:
    """The position of a head.

    `x`, `y` is the middle between the eyes (before yaw) and `unit` half the head's width, in
    pixels. `roll` is clockwise and `yaw` towards the viewer's right, in degrees.
    """

    x: float
    y: float
    unit: float
    roll: float = 0
    yaw: float = 0

    def __call__(self, points: Array, height: float | Array = 0) -> Array:
        """From face coordinates (n, 2) to pixels (n, 2).

        height: of the points above the ellipsoid of the head.
        """
        x, y = points[:, 0], points[:, 1]
        depth = 0.85 * np.sqrt(np.maximum(0, 1 - x**2 - (y / 1.75) ** 2)) + height
        yaw, roll = np.radians(self.yaw), np.radians(self.roll)
        x = x * np.cos(yaw) + depth * np.sin(yaw)
        turned = np.stack([x * np.cos(roll) - y * np.sin(roll), x * np.sin(roll) + y * np.cos(roll)], 1)
        return turned * self.unit + (self.x, self.y)


def dull(rng: np.random.Generator) -> Array:
    """A random colour of low saturation."""
    return rng.uniform(40, 210) + rng.uniform(-35, 35, 3)
