"""Paints a face, from back to front."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from ageray.synthetic.brushes import (
    Array,
    Canvas,
    Head,
    coverage,
    dull,
    oval,
    ribbon,
    strokes,
)
from ageray.synthetic.people import Look

WHITE, BLACK = np.array((250.0, 248, 244)), np.array((16.0, 12, 12))


class Painter:
    """Paints a head on a canvas. Lengths are in face coordinates.

    light: the side it comes from, in [-1, 1].
    """

    def __init__(
        self, canvas: Canvas, head: Head, look: Look, light: float, rng: np.random.Generator
    ) -> None:
        self.canvas, self.head, self.look, self.light, self.rng = canvas, head, look, light, rng
        self.rim = head(look.outline())

    def fill(
        self,
        shapes: Sequence[Array] | Array,
        colour: Array,
        opacity: float,
        blur: float,
        inside: Array | None = None,
    ) -> None:
        """Paint polygons in face coordinates.

        inside: a polygon in pixels that limits the painting.
        """
        pixels = self.head(np.concatenate(list(shapes)))
        ends = np.cumsum([len(shape) for shape in shapes])
        self.canvas.fill(np.split(pixels, ends[:-1]), colour, opacity, blur * self.head.unit, inside)

    def glow(
        self,
        at: tuple[float, float],
        size: tuple[float, float],
        colour: Array,
        opacity: float,
        height: float = 0,
    ) -> None:
        """Paint a soft ellipse on the face, foreshortened like the face at that point."""
        near = self.head(np.add(at, [(0, 0), (0.01, 0), (0, 0.01)]), height)
        axes = 100 * (near[1:] - near[0]).T * size
        self.canvas.glow(near[0], axes, colour, opacity, self.rim)

    def back(self) -> None:
        """The parts behind the face: long hair, neck, clothes."""
        look, chin = self.look, self.look.chin
        length = look.who.long_hair * look.grown * (1 - 0.5 * look.old)
        if length > 0.1:
            low = 0.7 + 1.2 * length
            right = np.array([(0.9, -1.0), (1.15, -0.4), (1.2, 0.2), (1.25, low - 0.2), (1.0, low)])
            self.fill([np.concatenate([right, right[::-1] * (-1, 1)])], 0.75 * look.hair, 1, 0.05)
        neck = 0.42 + 0.14 * look.grown
        clothes = np.array([(-0.6, 0.35), (-2.2, 0.8), (-2.6, 12), (2.6, 12), (2.2, 0.8), (0.6, 0.35)])
        column = np.array([(-neck, -0.9), (-neck, 0.35), (0, 0.7), (neck, 0.35), (neck, -0.9)])
        self.fill([np.add(clothes, (0, chin))], dull(self.rng), 1, 0.03)
        self.fill([np.add(column, (0, chin))], 0.86 * look.skin, 1, 0.03)
        shadow = self.head(np.array([(0, chin + 0.02)]))[0]
        self.canvas.glow(shadow, np.diag((1.5 * neck, 0.35)) * self.head.unit, look.shade, 0.7)

    def front(self) -> None:
        """The face itself, from the skin to what lies on it."""
        self.skin()
        self.relief()
        self.beard()
        for side in (-1, 1):
            self.socket(side)
            self.eye(side)
        self.nose()
        self.mouth()
        self.wrinkles()
        self.hair()

    def skin(self) -> None:
        """Ears and head, and the mottling that grows with age."""
        look = self.look
        ears = [oval(side, 0.18, 0.13, 0.28 + 0.05 * look.old) for side in (-1, 1)]
        self.fill(ears, 0.9 * look.skin, 1, 0.02)
        self.fill([look.outline()], look.skin, 1, 0.02)
        x0, y0, x1, y1 = window = self.canvas.window(self.rim.min(0), self.rim.max(0))
        if x0 < x1 and y0 < y1:
            coarse = self.rng.integers(0, 256, (16, 16), dtype=np.uint8)
            mottled = cv2.resize(coarse, (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR_EXACT)
            mottled = np.minimum(mottled, coverage([self.rim], window))
            self.canvas.blend(window, mottled * np.float32((0.08 + 0.2 * look.lines) / 255), look.shade)
        for _ in range(int(16 * look.lines)):
            at = self.rng.uniform((-0.8, look.hairline), (0.8, 0.7 * look.chin))
            self.glow((at[0], at[1]), (0.05, 0.045), look.shade, 0.35)

    def relief(self) -> None:
        """Light and shadow that round the head."""
        look = self.look
        for side in (-1, 1):
            self.glow((1.05 * side, 0.35), (0.5, 1.5), look.shade, 0.5 + 0.35 * side * self.light)
            self.glow((0.5 * side, 0.9 * look.nose_y), (0.42, 0.34), look.cheek, 0.5 - 0.25 * look.old)
            self.glow((0.62 * side, 0.8 * look.mouth_y), (0.2, 0.45), look.shade, 0.3 * look.old)
        self.glow((-0.3 * self.light, 0.55 * look.hairline), (0.75, 0.45), look.bright(1.14), 0.7)
        self.glow((0, look.chin - 0.16), (0.3, 0.2), look.bright(1.14), 0.5)
        self.glow((0, look.chin + 0.02), (0.8, 0.24), look.shade, 0.5)

    def socket(self, side: int) -> None:
        """Shadow around an eye, the bag under it, the brow above it."""
        look, x = self.look, side * self.look.who.eye_x
        self.glow((x, -0.06), (0.36, 0.3), look.shade, 0.38 + 0.15 * look.old)
        self.glow((x - 0.22 * side, -0.08), (0.17, 0.22), look.shade, 0.4)
        self.glow((x, 0.2), (0.3, 0.14), look.shade, 0.1 + 0.5 * look.lines)
        y, droop = look.brow_y, 0.05 * look.old
        curve = np.array(
            [[(x - 0.27 * side, y + 0.05), (x + 0.08 * side, y - 0.13), (x + 0.3 * side, y + 0.06 + droop)]]
        )
        thick = 0.11 * look.who.brow * (0.6 + 0.4 * look.grown)
        self.fill(strokes(curve, thick), look.brows, (0.35 + 0.5 * look.grown) * (1 - 0.35 * look.old), 0.03)

    def eye(self, side: int) -> None:
        """White, iris, the pupil exactly at the point, lids and lashes."""
        look, x = self.look, side * self.look.who.eye_x
        t = np.linspace(0, 1, 11)
        across, rise = x + side * look.eye_w * (2 * t - 1), look.eye_h * np.sin(np.pi * t) ** 0.8
        tilt = 0.03 - 0.05 * (1 - look.old) * t
        upper, lower = np.stack([across, tilt - rise], 1), np.stack([across, tilt + 0.75 * rise], 1)
        almond = np.concatenate([upper, lower[::-1]])
        self.fill([almond], WHITE - (24, 28, 30) - 14 * look.old, 1, 0.012)
        inside, iris = self.head(almond), look.iris
        self.fill([oval(x, 0, iris, iris)], look.who.iris, 1, 0.015, inside)
        self.fill([oval(x, 0, 0.5 * iris, 0.5 * iris)], BLACK, 0.95, 0.01, inside)
        self.fill([oval(x - 0.4 * iris, -0.4 * iris, 0.018, 0.018)], WHITE, 0.9, 0, inside)
        self.fill([ribbon(upper, 0.035, 0.02)], 0.3 * look.shade, 0.85, 0.012)
        self.fill(
            [ribbon(lower, 0.006, 0.014), ribbon(upper * (1, 1.15) - (0, 0.07), 0, 0.02)],
            look.shade,
            0.65,
            0.012,
        )

    def nose(self) -> None:
        """Bridge, ball, wings, nostrils and the shadow below."""
        look, y, w = self.look, self.look.nose_y, self.look.nose_w
        for side in (-1, 1):
            dark = 0.42 + 0.3 * side * self.light
            self.glow((0.15 * side, 0.45 * y), (0.12, 0.6 * y), look.shade, dark)
            self.glow((side * (w + 0.03), y + 0.02), (0.12, 0.16), look.shade, dark)
        self.glow((0, 0.5 * y), (0.09, 0.6 * y), look.bright(1.2), 0.55, 0.15)
        self.glow((0, y - 0.02), (0.16, 0.15), look.bright(1.2), 0.6, 0.3)
        self.glow((0, y + 0.17), (1.15 * w, 0.12), look.shade, 0.6, 0.1)
        wing = np.array([[(0.9 * w, y - 0.1), (1.3 * w, y + 0.06), (0.75 * w, y + 0.13)]])
        self.fill(strokes(_both(wing), 0.04), 0.8 * look.shade, 0.6, 0.018)
        nostrils = [oval(0.45 * side * w, y + 0.115, 0.062, 0.032) for side in (-1, 1)]
        self.fill(nostrils, 0.45 * look.shade, 0.85, 0.022)

    def mouth(self) -> None:
        """Lips, whose corners are exactly at the points."""
        look, y, w, lip = self.look, self.look.mouth_y, self.look.mouth_w, self.look.lip
        t = np.linspace(-1, 1, 15)
        arch = 1 - t**2
        middle = np.stack([t * w, y + 0.035 * arch], 1)
        bow = lip * arch**0.7 * (0.85 - 0.25 * np.maximum(0, 1 - np.abs(t) / 0.3))
        top = middle - np.stack([0 * t, bow], 1)
        bottom = middle + np.stack([0 * t, 1.15 * lip * arch**0.8], 1)
        self.glow((0, y + 1.6 * lip + 0.1), (0.8 * w, 0.12), look.shade, 0.45)
        self.fill([np.concatenate([top, middle[::-1]])], 0.84 * look.red, 0.9, 0.018)
        self.fill([np.concatenate([middle, bottom[::-1]])], look.red, 0.9, 0.02)
        self.glow((0, y + 0.04 + 0.6 * lip), (0.5 * w, 0.6 * lip), np.minimum(1.25 * look.red + 12, 255), 0.5)
        self.fill([ribbon(middle, 0.014, 0.016)], 0.4 * look.shade, 0.85, 0.012)
        for side in (-1, 1):
            self.glow((side * w, y), (0.1, 0.08), 0.7 * look.shade, 0.6)

    def wrinkles(self) -> None:
        """Forehead lines, crow's feet, frown lines and bags.

        Folds run from the nose to the mouth and below it.
        """
        look, lines = self.look, self.look.lines
        if lines < 0.01:
            return
        eye, corner, y = look.who.eye_x, look.who.eye_x + look.eye_w, look.mouth_y
        brow = look.brow_y - 0.17
        forehead = [
            [(-0.6 + k / 20, brow - k / 7), (0, brow - 0.08 - k / 7), (0.6 - k / 20, brow - k / 7)]
            for k in range(4)
        ]
        feet = [
            [(corner + 0.05, 0.05 * k), (corner + 0.12, 0.08 * k), (corner + 0.22, 0.16 * k)]
            for k in (-1, 0, 1)
        ]
        frown = [(0.07, -0.3), (0.05, -0.2), (0.08, -0.1)]
        bag = [(eye - 0.13, 0.2), (eye + 0.06, 0.34), (eye + 0.24, 0.18)]
        fine = np.concatenate([np.array(forehead), _both(np.array([*feet, frown, bag]))])
        self.fill(strokes(fine, 0.045), look.shade, min(1, 1.1 * lines), 0.016)
        fold = [(1.1 * look.nose_w, look.nose_y), (0.5, look.nose_y + 0.15), (look.mouth_w + 0.12, y + 0.1)]
        self.fill(strokes(_both(np.array([fold])), 0.07), look.shade, min(1, 0.15 + 0.8 * lines), 0.025)
        below = [(1.05 * look.mouth_w, y + 0.06), (0.48, y + 0.16), (0.44, y + 0.32)]
        self.fill(strokes(_both(np.array([below])), 0.05), look.shade, min(1, 0.7 * lines), 0.03)

    def beard(self) -> None:
        """The lower face below a line through the cheeks, from the end of the teens."""
        look = self.look
        amount = look.who.beard * float(np.clip((look.age - 17) / 6, 0, 1))
        if amount > 0.05:
            rim, y, w = look.outline() * 0.99, look.mouth_y, look.mouth_w
            upper = np.array([(-0.62, y - 0.1), (-w, y - 0.2), (0, y - 0.22), (w, y - 0.2), (0.62, y - 0.1)])
            self.fill(
                [np.concatenate([rim[rim[:, 1] > look.nose_y + 0.05], upper])], 0.85 * look.hair, amount, 0.08
            )

    def hair(self) -> None:
        """Between the head's enlarged contour and a hairline that recedes; thin in infants."""
        look = self.look
        turn = np.linspace(-1.75, 1.75, 25)
        circle = np.stack([np.sin(turn), np.cos(turn)], 1)
        puff = 1.06 + 0.08 * look.grown * (1 - 0.5 * look.old)
        outer, inner = circle * (puff, puff * look.top), circle * (look.temple, look.hairline)
        strength = 0.45 + 0.55 * min(1, look.age / 6)
        self.fill([np.concatenate([outer, inner[::-1]])], look.hair, strength, 0.035)
        for colour in (0.6 * look.hair, np.minimum(1.3 * look.hair + 8, 255)):
            k = self.rng.integers(0, 25, 30)
            locks = np.stack([inner[k], 0.55 * (inner[k] + outer[k]), outer[np.minimum(24, k + 1)]], 1)
            self.fill(strokes(locks, 0.03), colour, 0.5 * strength, 0.01)


def _both(curves: Array) -> Array:
    """Curves (n, 3, 2) on one side of the face, and their mirror images."""
    return np.concatenate([curves, curves * (-1, 1)])
