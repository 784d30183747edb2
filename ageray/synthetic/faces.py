"""Drawn faces of visible age, whose five points are known exactly.

Every random number comes from a `default_rng` that is seeded by numbers only. So a seed gives the
same bytes everywhere.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from ageray import schema
from ageray.synthetic.brushes import Canvas, Head, Pixels, dull
from ageray.synthetic.people import (
    AGE,
    FACE,
    PHOTO,
    STRIDE,
    Look,
    person,
)
from ageray.synthetic.portrait import Painter


@dataclass(frozen=True)
class SyntheticFace:
    """A drawn face: `pixels` (size, size, 3) RGB; `points` (5, 2) and `box` (4,) in pixels.

    Points and box are those of the faces table.
    """

    pixels: Pixels
    points: NDArray[np.float32]
    box: NDArray[np.float32]
    age: float
    subject: str

    def jpeg(self) -> bytes:
        """The picture as JPEG bytes."""
        return _jpeg(self.pixels)


@dataclass(frozen=True)
class SyntheticPhoto:
    """A drawn photo: `pixels` (H, W, 3) RGB, and its N faces from left to right.

    `points` (N, 5, 2) and `boxes` (N, 4) are in pixels, `ages` (N,) in years.
    """

    pixels: Pixels
    points: NDArray[np.float32]
    boxes: NDArray[np.float32]
    ages: NDArray[np.float32]


def draw_face(
    seed: int,
    age: float,
    subject: int | None = None,
    size: int = 256,
    *,
    roll: float | None = None,
    yaw: float | None = None,
    scale: float | None = None,
    shift: tuple[float, float] | None = None,
) -> SyntheticFace:
    """A face of a person at an age in years. `size` is the picture's side in pixels.

    subject: the person's number; None takes `seed`. A pose that is not given comes from the seed:
    `roll` (clockwise) and `yaw` (towards the viewer's right) in degrees; `scale`, half the width of
    the face, and `shift`, from the picture's centre to the middle of the eyes, both as shares of
    `size`. Raises ValueError if `seed` or `subject` is negative.
    """
    rng = np.random.default_rng((FACE, seed))
    turn, look_aside, near, right, down, light = rng.uniform(-1, 1, 6)
    if shift is None:
        shift = (0.03 * right, 0.03 * down - 0.02)
    dx, dy = shift
    head = Head(
        x=(0.5 + dx) * size - 0.5,
        y=(0.5 + dy) * size - 0.5,
        unit=(0.225 + 0.03 * near if scale is None else scale) * size,
        roll=12 * turn if roll is None else roll,
        yaw=14 * look_aside if yaw is None else yaw,
    )
    number = seed if subject is None else subject
    look = Look(person(number), age)
    canvas = _background(rng, size, size)
    painter = Painter(canvas, head, look, 0.8 * light, rng)
    painter.back()
    painter.front()
    return SyntheticFace(_develop(canvas, rng), *look.truth(head), float(age), f"drawn-{number}")


def draw_photo(seed: int, width: int = 640, height: int = 480) -> SyntheticPhoto:
    """One to three people of any age side by side. Their faces do not overlap. Sizes in pixels."""
    rng = np.random.default_rng((PHOTO, seed))
    canvas, light, count = _background(rng, height, width), rng.uniform(-0.8, 0.8), int(rng.integers(1, 4))
    column, painters = width / count, []
    for k in range(count):
        unit = min(rng.uniform(0.075, 0.14) * height, 0.3 * column)
        x = column * k + rng.uniform(1.6 * unit, column - 1.6 * unit)
        head = Head(
            x, rng.uniform(2.1 * unit, height - 2.2 * unit), unit, rng.uniform(-12, 12), rng.uniform(-14, 14)
        )
        look = Look(person(int(rng.integers(STRIDE))), rng.uniform(0, 90))
        painters.append(Painter(canvas, head, look, light, rng))
    for painter in painters:
        painter.back()
    for painter in painters:
        painter.front()
    points, boxes = zip(*(painter.look.truth(painter.head) for painter in painters), strict=True)
    ages = np.array([painter.look.age for painter in painters], np.float32)
    return SyntheticPhoto(_develop(canvas, rng), np.stack(points), np.stack(boxes), ages)


def faces(count: int, seed: int = 0, subjects: int | None = None, size: int = 256) -> Iterator[SyntheticFace]:
    """`count` faces at ages uniform in 0 to 90 years.

    They show `subjects` people in turn, or each another person if it is None. Face k depends only
    on the seed, `subjects` and k, so a longer set begins with the shorter one.
    """
    for k in range(count):
        age = np.random.default_rng((AGE, seed, k)).uniform(0, 90)
        yield draw_face(seed * STRIDE + k, age, seed * STRIDE + (k % subjects if subjects else k), size)


def write_faces_table(
    folder: str | Path,
    count: int,
    seed: int = 0,
    subjects: int | None = None,
    size: int = 200,
    shards: int = 1,
    landmarks: bool = True,
) -> list[str]:
    """Write `faces(count, seed, subjects, size)` as Parquet shards of the faces table.

    Returns the paths. Without `landmarks`, points and box are null, as in a table before detection.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    drawn, paths = faces(count, seed, subjects, size), []
    for shard, numbers in enumerate(np.array_split(np.arange(count), shards)):
        rows = [_row(f"drawn-{seed}-{k:06d}", next(drawn), landmarks) for k in numbers]
        table = pa.Table.from_pylist(rows, schema=schema.FACES)
        paths.append(str(Path(folder) / f"faces-{shard:05d}.parquet"))
        pq.write_table(table, paths[-1])
    return paths


def write_photos(folder: str | Path, count: int, seed: int = 0) -> list[str]:
    """Write `draw_photo(seed * STRIDE + k)` for each k below `count` as a JPEG file.

    Returns the paths.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = [Path(folder) / f"photo-{k:05d}.jpg" for k in range(count)]
    for k, path in enumerate(paths):
        path.write_bytes(_jpeg(draw_photo(seed * STRIDE + k).pixels))
    return [str(path) for path in paths]


def _row(key: str, face: SyntheticFace, landmarks: bool) -> dict[str, object]:
    truth = {"landmarks": face.points.ravel(), "box": face.box} if landmarks else {}
    return {
        "key": key,
        "image": face.jpeg(),
        "age": face.age,
        "subject": face.subject,
        "dataset": "drawn",
        **truth,
    }


def _jpeg(pixels: Pixels) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=92)
    return data.getvalue()


def _background(rng: np.random.Generator, height: int, width: int) -> Canvas:
    """A gradient between two colours, with some blurred shapes."""
    canvas = Canvas(height, width)
    start, end = (dull(rng).astype(np.float32)[:, None, None] for _ in range(2))
    down, across = (np.linspace(0, rng.random() / 2, side, dtype=np.float32) for side in (height, width))
    canvas.planes[:] = start + (end - start) * (down[:, None] + across)
    for _ in range(4):
        centre = rng.random(2) * (width, height)
        axes = np.diag(rng.uniform(0.05, 0.4, 2) * max(width, height))
        canvas.glow(centre, axes, dull(rng), 0.6)
    return canvas


def _develop(canvas: Canvas, rng: np.random.Generator) -> Pixels:
    """Exposure, a colour cast and grain, as uint8 (H, W, 3)."""
    gain = (rng.uniform(0.8, 1.12) * rng.uniform(0.96, 1.04, 3)).astype(np.float32)
    planes = canvas.planes * gain[:, None, None] + rng.integers(-5, 6, canvas.planes.shape[1:], dtype=np.int8)
    return np.ascontiguousarray(np.clip(np.rint(planes), 0, 255).astype(np.uint8).transpose(1, 2, 0))
