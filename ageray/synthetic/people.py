"""The drawn people: features that last for life, and the look of a face at an age.

Lengths are in face coordinates. The origin is midway between the eyes, x points to the viewer's
right, y points down. The unit is half the width of the face.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ageray.synthetic.brushes import Array, Head

SKIN = np.array([(240, 204, 184), (228, 180, 150), (202, 148, 112), (156, 106, 76), (104, 70, 54)], float)
HAIR = np.array([(34, 26, 24), (62, 42, 32), (104, 68, 42), (176, 132, 76), (140, 66, 34)], float)
IRIS = np.array([(66, 42, 28), (96, 66, 36), (84, 104, 74), (86, 122, 150)], float)
FAIR, GREY = np.array((196.0, 160, 112)), np.array((152.0, 150, 148))
PERSON, FACE, PHOTO, AGE = range(4)
"""First number of a random stream's seed, so that streams of different kinds differ."""
STRIDE = 10**9
"""Face and person k of a set with seed s have number s * STRIDE + k. So sets with different seeds
show different people."""


@dataclass(frozen=True)
class Person:
    """Features that last for life: colours, factors of lengths, and how and when age shows."""

    skin: Array
    hair: Array
    iris: Array
    eye_x: float
    length: float
    jaw: float
    nose: float
    mouth: float
    lips: float
    brow: float
    wrinkling: float
    grey_at: float
    balding: float
    beard: float
    long_hair: float


def person(number: int) -> Person:
    """Person `number`, the same at every age and in every process."""
    rng = np.random.default_rng((PERSON, number))
    bearded = bool(rng.random() < 0.5)
    tone, steps = rng.random(), np.linspace(0, 1, len(SKIN))
    return Person(
        skin=np.stack([np.interp(tone, steps, channel) for channel in SKIN.T]) + rng.uniform(-6, 6, 3),
        hair=HAIR[rng.integers(len(HAIR))] * rng.uniform(0.8, 1.2),
        iris=IRIS[rng.integers(len(IRIS))] * rng.uniform(0.85, 1.15),
        eye_x=rng.uniform(0.42, 0.48),
        length=rng.uniform(0.94, 1.06),
        jaw=rng.uniform(2.15, 2.6) + 0.15 * bearded,
        nose=rng.uniform(0.85, 1.2),
        mouth=rng.uniform(0.9, 1.1),
        lips=rng.uniform(0.75, 1.25),
        brow=rng.uniform(0.7, 1.1) + 0.3 * bearded,
        wrinkling=rng.uniform(0.75, 1.25),
        grey_at=rng.uniform(42, 62),
        balding=rng.uniform(0, 1) * bearded,
        beard=max(0.0, rng.uniform(-0.7, 0.8)) * bearded,
        long_hair=rng.uniform(0.3, 1) * (not bearded),
    )


class Look:
    """The lengths and colours of a person's face at an age in years.

    `grown` rises from 0 at birth to 1 at 20 years, `old` from 0 at 22 to 1 at 90. `lines` is the
    strength of the wrinkles.
    """

    def __init__(self, who: Person, age: float) -> None:
        self.who, self.age = who, age
        self.grown = 1 - (1 - min(age, 20) / 20) ** 2
        self.old = float(np.clip((age - 22) / 68, 0, 1))
        self.lines = self.old**1.2 * who.wrinkling
        self._measure(who, who.length)
        self._colour(who)

    def _measure(self, who: Person, length: float) -> None:
        old, grow = self.old, self._grow
        self.eye_w, self.eye_h = grow(0.25, 0.215), grow(0.15, 0.105) * (1 - 0.2 * old)
        self.iris = grow(0.125, 0.092)
        self.brow_y = grow(-0.34, -0.30) * length + 0.03 * old
        self.nose_y, self.nose_w = (grow(0.40, 0.58) + 0.05 * old) * length, grow(0.2, 0.24) * who.nose
        self.mouth_y, self.mouth_w = grow(0.78, 1.03) * length + 0.02 * old, grow(0.27, 0.38) * who.mouth
        self.lip = grow(0.095, 0.10) * who.lips * (1 - 0.45 * old)
        self.chin, self.top = grow(1.2, 1.62) * length, grow(-1.62, -1.45) * length
        self.jaw, self.crown = grow(2.35, who.jaw) + 0.35 * old, grow(2.5, 2.2)
        receding = float(np.clip((self.age - 25) / 45, 0, 1)) * who.balding
        self.hairline, self.temple = self.top * (grow(0.78, 0.62) + 0.36 * receding), 0.9 - 0.18 * receding

    def _colour(self, who: Person) -> None:
        young = who.hair + 0.35 * (1 - self.grown) * (FAIR - who.hair)
        grey = 1 / (1 + np.exp((who.grey_at - self.age) / 6))
        self.hair = young + grey * (GREY + 84 * self.old - young)
        self.brows = 0.6 * self.hair + 0.08 * who.skin
        rosy, sallow = (1 - self.grown) * np.array((6.0, 2, 2)), self.old * np.array((-8.0, -14, -18))
        self.skin = who.skin + rosy + sallow
        self.shade, self.cheek = self.skin * (0.52, 0.42, 0.38), self.skin + np.array((26, -6, -8))
        red = self.skin * (0.88, 0.6, 0.58) + (8, 0, 0)
        self.red = red + 0.4 * self.old * (0.88 * self.skin - red)

    def _grow(self, baby: float, adult: float) -> float:
        return baby + (adult - baby) * self.grown

    def bright(self, gain: float) -> Array:
        """The colour of lit skin."""
        return np.minimum(gain * self.skin + 10, 255)

    def outline(self) -> Array:
        """The head's contour (72, 2), clockwise from the top.

        It is a superellipse above the eyes and another one below.
        """
        turn = np.linspace(0, 2 * np.pi, 72, endpoint=False)
        x, y = np.sin(turn), -np.cos(turn)
        power, height = 2 / np.where(y < 0, self.crown, self.jaw), np.where(y < 0, -self.top, self.chin)
        return np.stack([np.sign(x) * np.abs(x) ** power, np.sign(y) * np.abs(y) ** power * height], 1)

    def truth(self, head: Head) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The five points (5, 2) and the box (4,) in pixels.

        The box reaches from the upper forehead to the chin.
        """
        eye, wide, low = self.who.eye_x, self.mouth_w, self.mouth_y
        points = np.array([(-eye, 0), (eye, 0), (0, self.nose_y), (-wide, low), (wide, low)])
        rim = self.outline()
        rim[:, 1] = np.maximum(rim[:, 1], 0.55 * self.hairline - 0.35)
        edge = head(rim)
        box = np.concatenate([edge.min(0), edge.max(0)])
        return head(points, np.array((0, 0, 0.3, 0, 0))).astype(np.float32), box.astype(np.float32)
