"""Faces and their five points by YuNet (Wu et al., Machine Intelligence Research 2023).

In goes a photo, out come boxes, points and scores. `search` says where to look. It leaves the
network to its caller: on a CPU `YuNet` runs it for one photo (`ageray.faces.yunet`), on a device
`ageray.faces.detect_batch` for the looks of many photos at once.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from ageray.experiment import Detect
from ageray.faces import yunet
from ageray.faces.images import Photo

# For inputs of up to 32 pixels OpenCV 4.14 reads uninitialised memory and finds faces at random.
_LEAST_SIDE = 64
# Measured on 480 photos of FG-NET, UTKFace, ChaLearn LAP and LFW. On their heads the best score is
# 0.913, on their sides 0.897. Upright, 2 to 12 % have less than 0.915, of which one in three less
# than 0.9. A piece of 1.7 sides of the face, shrunk to 96 pixels, tells the right orientation in
# 660 of 667.
_SURE = 0.915
_SURE_ON_ITS_SIDE = 0.9
_PIECE, _PIECE_SIDE = 1.7, 96
# Least score of a face that is found only in a turned picture: three more looks would find more of
# what is no face.
_SURELY_A_FACE = 0.85
# Pixels of the longer side of a face: where its points are good, and from where on they may be
# bad. Measured on the 829 faces of FG-NET over 300 pixels: where the score is below 0.89 (26
# photos), a look at 110, 150, 200 or 280 takes the mean error of the points from 0.181 to 0.144,
# 0.163, 0.159 or 0.143 of the eyes' distance, and the ages of 400 enlarged photos of UTKFace
# differ in MAE by +0.01, +0.04, -0.06 or +0.06 years (0.07 standard error) from those of the small
# ones. So the cheapest. Over a score of 0.9 it does not help. Enlarged faces of UTKFace have 0.66
# to 0.82.
_GOOD, _LARGE, _GOOD_POINTS = 110, 300, 0.89
_SMALL_LOOK = 320  # pixels of a picture in which no face was found
_TURNS = (2, 1, 3)  # quarter turns against the clock, in the order of the search
_ROTATIONS = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}

Pixels = NDArray[np.uint8]
Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Face:
    """One detected face: box (4,), five points (5, 2), score in 0..1.

    Coordinates are those of the full-size photo.
    """

    box: NDArray[np.float32]
    points: NDArray[np.float32]
    score: float


Found = TypeVar("Found")
Looks = Generator[Pixels, Rows, Found]
"""A search. It yields a BGR picture (H, W, 3), gets the network's rows (N, 15) for it, yields the
next one, and returns what it has found."""


class Picture(NamedTuple):
    """A photo as it is searched: `pixels`, shrunk to `max_side`; how many pixels of the decoded
    photo lie along one of them, `ratio` (x, y); and the photo, whose own pixels are not read."""

    pixels: Pixels
    ratio: NDArray[np.float32]
    photo: Photo


def picture_of(photo: Photo, settings: Detect) -> Picture:
    """The photo, shrunk until its longer side is at most `max_side`."""
    pixels = _shrunk(photo.pixels, settings.max_side)
    return Picture(pixels, _ratio(pixels, photo.pixels), photo)


class YuNet:
    """The detector. It has a network that cannot be pickled, so each process constructs its own."""

    def __init__(self, settings: Detect) -> None:
        self._settings = settings
        self._net = yunet.make_network(settings.threshold)

    def detect(self, photo: Photo) -> list[Face]:
        """Faces of the photo as `search` finds them, best score first."""
        picture = picture_of(photo, self._settings)
        [faces] = in_rounds([search(picture, self._settings)], self._run_each)
        return faces

    def _run_each(self, looks: list[Pixels]) -> list[Rows]:
        return [self._run(look) for look in looks]

    def _run(self, bgr: Pixels) -> Rows:
        """The network's rows (N, 15) of a picture: box, five points, score."""
        bgr = with_least_sides(bgr)
        return inside(self._net.rows(bgr), bgr)


def in_rounds(searches: Sequence[Looks[Found]], rows_of: Callable[[list[Pixels]], list[Rows]]) -> list[Found]:
    """What the searches find. In each round, `rows_of` gets the next look of every search that goes
    on, as one batch, and gives the network's rows (N, 15) of each.
    """
    results: dict[int, Found] = {}
    answers: dict[int, Rows | None] = dict.fromkeys(range(len(searches)))
    while answers:
        looks = {}
        for number, rows in answers.items():
            try:
                looks[number] = next(searches[number]) if rows is None else searches[number].send(rows)
            except StopIteration as end:
                results[number] = end.value
        answers = {}
        if looks:
            answers |= zip(looks, rows_of(list(looks.values())), strict=True)
    return [results[number] for number in range(len(searches))]


def search(picture: Picture, settings: Detect) -> Looks[list[Face]]:
    """Faces of the photo, best score first; an empty list if there is none.

    An ordinary photo is searched once. It is searched again

    - for a face of more than 300 pixels with a score below 0.89: at a size where it has 110,
      because the detector was trained on faces of 10 to 300 pixels;
    - if no face is found: smaller, with a border of `pad` times the side, because the detector
      misses a face that fills the picture; and turned;
    - if no face has a score of 0.915: turned. A photo may lie on its side or on its head without
      EXIF that says so. The detector finds such faces with wrong points, and with lower scores than
      if they were upright. Whether that is so, it finds out from a small piece of the photo around
      the face.

    The points of a face in a turned photo are named as in the upright face: the first is the eye
    that would be left of the other.
    """
    pixels, pad = picture.pixels, settings.pad
    faces, turns = (yield from _look(pixels)), 0
    if faces:
        faces = yield from _large_again(pixels, faces, pad)
        if faces[0].score < _SURE:
            turns = yield from _turns_of(pixels, faces[0])
    else:
        faces, turns = yield from _small_looks(pixels, pad)
        faces = yield from _large_again(pixels, faces, pad, turns)
    if turns:
        faces = (yield from _look(pixels, turns=turns)) or faces
        faces = yield from _large_again(pixels, faces, pad, turns)
    return [_in_full_size(_grown(face, picture.ratio), picture.photo) for face in faces]


def _small_looks(pixels: Pixels, pad: float) -> Looks[tuple[list[Face], int]]:
    """Faces of a picture that seems to have none, and the quarter turns by which they are upright.

    It is shrunk and gets a border, because the face may fill it. If that does not help, it is
    turned.
    """
    small = _shrunk(pixels, _SMALL_LOOK)
    faces, turns = (yield from _look(small, pad)), 0
    if faces and faces[0].score > _SURELY_A_FACE:
        if faces[0].score < _SURE:
            turns = yield from _turns_of(small, faces[0])
            faces = (yield from _look(small, pad, turns)) or faces
    else:
        faces, turns = yield from _best_turned(small, faces, pad)
    return [_grown(face, _ratio(small, pixels)) for face in faces], turns


def _best_turned(small: Pixels, faces: list[Face], pad: float) -> Looks[tuple[list[Face], int]]:
    """The faces of the best of three turned looks, and its quarter turns; `faces` and 0 if they are
    better, or if what the looks find is hardly a face.
    """
    best, best_turns = faces, 0
    best_score = max(_SURELY_A_FACE, faces[0].score if faces else 0.0)
    for turns in _TURNS:
        faces = yield from _look(small, pad, turns)
        if faces and faces[0].score > best_score:
            best, best_turns, best_score = faces, turns, faces[0].score
        if best_score >= _SURE:
            break
    return best, best_turns


def _turns_of(pixels: Pixels, face: Face) -> Looks[int]:
    """By how many quarter turns the picture is to be turned so that this face is upright."""
    piece = _shrunk(_piece(pixels, face), _PIECE_SIDE)
    best, best_score = 0, face.score
    for turns in _TURNS if face.score < _SURE_ON_ITS_SIDE else _TURNS[:1]:
        faces = yield from _look(piece, turns=turns)
        if faces and faces[0].score > best_score:
            best, best_score = turns, faces[0].score
        if best_score >= _SURE:
            break
    return best


def _large_again(pixels: Pixels, faces: list[Face], pad: float, turns: int = 0) -> Looks[list[Face]]:
    """The faces, with those of a smaller look in the place of large ones and of what lies in them,
    if the largest has bad points.
    """
    large = max(faces, key=_side, default=None)
    if large is None or _side(large) <= _LARGE or large.score >= _GOOD_POINTS:
        return faces
    small = _shrunk(pixels, round(max(pixels.shape[:2]) * _GOOD / _side(large)))
    again = (yield from _look(small, turns=turns)) or (yield from _look(small, pad, turns))
    again = [_grown(face, _ratio(small, pixels)) for face in again]
    again = [face for face in again if _side(face) > _side(large) / 2]
    others = []
    for face in faces:
        if not any(_lies_in(face, other) for other in again):
            others.append(face)
    return sorted([*again, *others], key=lambda face: -face.score)


def _look(pixels: Pixels, pad: float = 0.0, turns: int = 0) -> Looks[list[Face]]:
    """Faces of a picture (H, W, 3), best score first, in its pixels.

    The picture is turned `turns` times by 90 degrees against the clock, and gets a border of `pad`
    times the side.
    """
    height, width = pixels.shape[:2]
    bgr = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), np.uint8)
    if turns:
        bgr = np.asarray(cv2.rotate(bgr, _ROTATIONS[turns]), np.uint8)
    border = round(pad * max(bgr.shape[:2]))
    if border:
        bgr = np.asarray(
            cv2.copyMakeBorder(bgr, border, border, border, border, cv2.BORDER_CONSTANT), np.uint8
        )
    rows = yield bgr
    faces = []
    for row in rows:
        corners = np.concatenate([row[0:2], row[0:2] + row[2:4]]).reshape(2, 2)
        points = np.concatenate([corners, row[4:14].reshape(5, 2)]) - border
        points = _turned_back(points, width, height, turns)
        faces.append(_face(points, min(float(row[14]), 1.0)))
    return sorted(faces, key=lambda face: -face.score)


def with_least_sides(bgr: Pixels) -> Pixels:
    """The picture with sides of at least 64 pixels, black below and to the right."""
    below, right = (max(0, _LEAST_SIDE - side) for side in bgr.shape[:2])
    if not (below or right):
        return bgr
    return np.asarray(cv2.copyMakeBorder(bgr, 0, below, 0, right, cv2.BORDER_CONSTANT), np.uint8)


def inside(rows: Rows, bgr: Pixels) -> Rows:
    """The rows (N, 15) whose box lies in the picture. In pictures of a few pixels, or a few pixels
    high, the network gives boxes outside the picture, and infinite ones.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        centre = rows[:, 0:2] + rows[:, 2:4] / 2
        fits = ((centre >= 0) & (centre <= [bgr.shape[1], bgr.shape[0]])).all(1)
        fits &= np.isfinite(rows).all(1)
        points = rows[:, 4:14].reshape(-1, 5, 2)
        fits &= (np.abs(points - centre[:, None]) <= rows[:, None, 2:4]).all((1, 2))
    return np.asarray(rows[fits], np.float32)


_THREAD = threading.local()


def detector(settings: Detect) -> YuNet:
    """The detector of this thread for these settings.

    Each thread has its own, because a detector stores the picture's size between two calls.
    """
    detectors: dict[Detect, YuNet] = _THREAD.__dict__.setdefault("detectors", {})
    if settings not in detectors:
        detectors[settings] = YuNet(settings)
    return detectors[settings]


def _piece(pixels: Pixels, face: Face) -> Pixels:
    """The picture around a face: a square of _PIECE times its side, as far as the picture goes.

    It is thinned out, but has at least twice _PIECE_SIDE pixels a side if there are as many.
    """
    height, width = pixels.shape[:2]
    x0, y0, x1, y1 = face.box.tolist()
    half = _PIECE * _side(face) / 2
    left, right = math.floor((x0 + x1) / 2 - half), math.ceil((x0 + x1) / 2 + half) + 1
    top, bottom = math.floor((y0 + y1) / 2 - half), math.ceil((y0 + y1) / 2 + half) + 1
    piece = pixels[max(0, top) : min(height, bottom), max(0, left) : min(width, right)]
    # every second or third pixel of a large piece is enough to shrink it well, and takes less time
    step = max(1, max(piece.shape[:2]) // (2 * _PIECE_SIDE))
    return np.ascontiguousarray(piece[::step, ::step])


def _shrunk(pixels: Pixels, max_side: int) -> Pixels:
    """The picture, shrunk until its longer side is at most `max_side`."""
    shrink = min(1.0, max_side / max(pixels.shape[:2]))
    if shrink == 1:
        return pixels
    size = (max(1, round(pixels.shape[1] * shrink)), max(1, round(pixels.shape[0] * shrink)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def _ratio(small: Pixels, pixels: Pixels) -> NDArray[np.float32]:
    """Pixels (x, y) of a picture along one of `small`, which was shrunk from it."""
    return np.array([pixels.shape[1] / small.shape[1], pixels.shape[0] / small.shape[0]], np.float32)


def _grown(face: Face, ratio: NDArray[np.float32]) -> Face:
    """A face of a small picture, in the picture that it was shrunk from."""
    points = np.concatenate([face.box.reshape(2, 2), face.points])
    return _face((points + 0.5) * ratio - 0.5, face.score)


def _face(points: NDArray[np.floating[Any]], score: float) -> Face:
    """A face of two opposite corners of its box and its five points, (7, 2)."""
    box = np.concatenate([points[:2].min(0), points[:2].max(0)])
    return Face(box.astype(np.float32), points[2:].astype(np.float32), score)


def _turned_back(points: NDArray[np.float32], width: int, height: int, turns: int) -> NDArray[np.float32]:
    """Points (N, 2) of a picture that was turned `turns` times against the clock, in the picture
    before, which has `width` x `height` pixels.
    """
    x, y = points[:, 0], points[:, 1]
    if turns == 1:
        return np.stack([width - 1 - y, x], 1)
    if turns == 2:
        return np.stack([width - 1 - x, height - 1 - y], 1)
    if turns == 3:
        return np.stack([y, height - 1 - x], 1)
    return points


def _in_full_size(face: Face, photo: Photo) -> Face:
    """A face in pixels of `photo.pixels`, in those of the full-size photo."""
    return Face(photo.grow(face.box.reshape(2, 2)).reshape(4), photo.grow(face.points), face.score)


def _side(face: Face) -> float:
    """The longer side of the face's box."""
    return float(max(face.box[2:] - face.box[:2]))


def _lies_in(face: Face, other: Face) -> bool:
    """Whether half of the smaller of the two boxes lies in the other."""
    low, high = np.maximum(face.box[:2], other.box[:2]), np.minimum(face.box[2:], other.box[2:])
    areas = [float(np.prod(each.box[2:] - each.box[:2])) for each in (face, other)]
    return float(np.prod(np.clip(high - low, 0, None))) > min(areas) / 2


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
