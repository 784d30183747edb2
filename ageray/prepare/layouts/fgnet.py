"""FG-NET: 1,002 scanned photos of 82 people, each with 68 points placed by hand.

Lanitis, Taylor, Cootes: Toward Automatic Simulation of Aging Effects on Face Images, PAMI 2002.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Iterator
from typing import Any

from ageray import storage
from ageray.errors import UserError
from ageray.faces.images import PHOTOS
from ageray.prepare import manifest
from ageray.prepare.layouts.source import Source, photo_rows
from ageray.prepare.manifest import Problem

_NAME = re.compile(r"(\d{3})A(\d{2})[a-z]?\.jpe?g", re.IGNORECASE)
# pupils, nose tip and mouth corners among the 68 points, counted from 0; left and right of the
# viewer
_FIVE = (31, 36, 67, 48, 54)


def read_fgnet(uri: str, dataset: str) -> Source:
    """FG-NET: `images/001A02.JPG` (subject 001, aged 2) and its 68 hand-placed points in
    `points/001a02.pts`.

    The points count from 0, the centre of the first pixel. Over the set the dark centres of the
    pupils lie 0.24 px (standard error 0.06) left of them, and YuNet's points, averaged with those
    of the mirrored photo, 0.51 px (0.09); points counted from 1 would lie 1 px off. A photo whose
    points are missing or broken stays without them, with a note.
    """
    photos = storage.list_files(storage.join(uri, "images"), PHOTOS)
    problems, notes = list[Problem](), list[Problem]()
    points: dict[str, str] = {}
    for file in storage.list_files(storage.join(uri, "points"), (".pts",)):
        points[posixpath.basename(file).lower()] = file

    def rows() -> Iterator[dict[str, Any]]:
        for row, name in photo_rows(uri, photos, dataset):
            match = _NAME.fullmatch(name)
            if match is None:
                problems.append(Problem(row["key"], "malformed name", "not like 001A02.JPG"))
                continue
            try:
                row["landmarks"] = _read_points(points.get(posixpath.splitext(name)[0].lower() + ".pts"))
            except (UserError, ValueError) as error:
                notes.append(Problem(row["key"], "no points in the source", str(error)))
            yield row | {"subject": match[1], "age": float(match[2])}

    return Source("fgnet", manifest.build(rows(), problems), len(photos), problems, notes)


def _read_points(file: str | None) -> list[float]:
    if file is None:
        raise ValueError("no .pts file")
    return five_points(storage.read_text(file))


def five_points(pts: str) -> list[float]:
    """The five points, x and y in turn, of a 68-point `.pts` text: lines `x y` between braces.

    Raises ValueError if it is not such a text.
    """
    try:
        lines = pts[pts.index("{") + 1 : pts.index("}")].strip().splitlines()
        points = [tuple(map(float, line.split())) for line in lines]
    except ValueError:
        raise ValueError("the .pts file is not 'x y' lines between braces") from None
    if len(points) != 68 or any(len(point) != 2 for point in points):
        raise ValueError(f"the .pts file has {len(points)} lines of points, not 68 of x and y")
    five: list[float] = []
    for index in _FIVE:
        five += points[index]
    if not all(map(math.isfinite, five)):
        raise ValueError("the .pts file has points that are not finite")
    if five[0] >= five[2]:
        raise ValueError("the .pts file has the left pupil (31) right of the other (36)")
    return five
