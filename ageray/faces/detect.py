"""Faces and their five points by YuNet (Wu et al., Machine Intelligence Research 2023).

CPU workers run the network (`ageray.faces.yunet`). In goes a photo, out come boxes, points and
scores.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ageray.experiment import Detect
from ageray.faces import yunet
from ageray.faces.images import Photo

# For inputs of up to 32 pixels OpenCV 4.14 reads uninitialised memory and finds faces at random.
_LEAST_SIDE = 64


@dataclass(frozen=True)
class Face:
    """One detected face: box (4,), five points (5, 2), score in 0..1.

    Coordinates are those of the full-size photo.
    """

    box: NDArray[np.float32]
    points: NDArray[np.float32]
    score: float


class YuNet:
    """The detector. It has a network that cannot be pickled, so each process constructs its own."""

    def __init__(self, settings: Detect) -> None:
        self._settings = settings
        self._net = yunet.make_network(settings.threshold)

    def detect(self, photo: Photo) -> list[Face]:
        """Faces of the photo, best score first; an empty list if there is none.

        The photo is shrunk until its longer side is at most `max_side`. If no face is found, it is
        searched again with a border of `pad` times the side, because the detector was trained on
        faces with surroundings and misses a face that fills the picture.
        """
        pixels = photo.pixels
        shrink = min(1.0, self._settings.max_side / max(pixels.shape[:2]))
        if shrink < 1:
            size = (max(1, round(pixels.shape[1] * shrink)), max(1, round(pixels.shape[0] * shrink)))
            pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
        bgr = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), np.uint8)
        rows, border = self._run(bgr), 0
        if len(rows) == 0 and self._settings.pad > 0:
            border = round(self._settings.pad * max(bgr.shape[:2]))
            wider = cv2.copyMakeBorder(bgr, border, border, border, border, cv2.BORDER_CONSTANT)
            rows = self._run(np.asarray(wider, np.uint8))
        height, width = photo.pixels.shape[:2]
        ratio = np.array([width / pixels.shape[1], height / pixels.shape[0]], np.float32)
        faces = [_face(row, border, ratio, photo) for row in rows]
        return sorted(faces, key=lambda face: -face.score)

    def _run(self, bgr: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The network's rows (N, 15): box, five points, score.

        Rows whose box lies outside the picture are left out.
        """
        below, right = (max(0, _LEAST_SIDE - side) for side in bgr.shape[:2])
        if below or right:
            bgr = np.asarray(cv2.copyMakeBorder(bgr, 0, below, 0, right, cv2.BORDER_CONSTANT), np.uint8)
        rows = self._net.rows(bgr)
        # In pictures of a few pixels, or a few pixels high, the network gives boxes outside the
        # picture, and infinite ones.
        with np.errstate(invalid="ignore", over="ignore"):
            centre = rows[:, 0:2] + rows[:, 2:4] / 2
            inside = ((centre >= 0) & (centre <= [bgr.shape[1], bgr.shape[0]])).all(1)
            inside &= np.isfinite(rows).all(1)
            points = rows[:, 4:14].reshape(-1, 5, 2)
            inside &= (np.abs(points - centre[:, None]) <= rows[:, None, 2:4]).all((1, 2))
        return np.asarray(rows[inside], np.float32)


_THREAD = threading.local()


def detector(settings: Detect) -> YuNet:
    """The detector of this thread for these settings.

    Each thread has its own, because a detector stores the picture's size between two calls.
    """
    detectors: dict[Detect, YuNet] = _THREAD.__dict__.setdefault("detectors", {})
    if settings not in detectors:
        detectors[settings] = YuNet(settings)
    return detectors[settings]


def _face(row: NDArray[np.float32], border: int, ratio: NDArray[np.float32], photo: Photo) -> Face:
    """A row of the network in full-size coordinates.

    ratio: (2,), photo pixels per pixel of the searched picture.
    """
    corners = np.concatenate([row[0:2], row[0:2] + row[2:4]]).reshape(2, 2)
    points = np.concatenate([corners, row[4:14].reshape(5, 2)]) - border
    full = photo.grow(((points + 0.5) * ratio - 0.5).astype(np.float32))
    return Face(full[:2].reshape(4), full[2:], float(min(row[14], 1.0)))


def subject_of(faces: list[Face], width: int, height: int) -> Face:
    """The face that the photo's label belongs to.

    It is the one with the largest product of score, size and nearness to the photo's centre.
    `width` and `height` are the photo's, in the pixels of the boxes.
    """

    def prominence(face: Face) -> float:
        x0, y0, x1, y1 = face.box.tolist()
        offset = np.hypot((x0 + x1 + 1) / width - 1, (y0 + y1 + 1) / height - 1) / np.sqrt(2)
        return float(face.score * np.sqrt(max(x1 - x0, 0) * max(y1 - y0, 0)) * max(1 - offset, 0))

    return max(faces, key=prominence)
