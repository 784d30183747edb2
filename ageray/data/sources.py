"""Sets of photos as they are found, each read as a light manifest (`ageray.data.manifest`): labels first, bytes later.

Keys are `<dataset>/<path relative to the source>`: unique, and the same wherever the set lies. What is left out is
listed with a reason.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from ageray import storage
from ageray.data import manifest
from ageray.data.manifest import Problem
from ageray.errors import UserError
from ageray.experiment import Data

PHOTOS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Endings (any case) of the files that are taken for photos."""

_UTKFACE = re.compile(r"(\d{1,3})_([01])_([0-4])_\d+\.jpe?g(\.chip\.jpg)?", re.IGNORECASE)
_GENDERS = ("male", "female")
_GROUPS = ("White", "Black", "Asian", "Indian", "Other")
_FGNET = re.compile(r"(\d{3})A(\d{2})[a-z]?\.jpe?g", re.IGNORECASE)
# Pupils, nose tip, mouth corners among FG-NET's 68 points, counted from 0; left and right as the viewer sees them.
_FIVE = (31, 36, 67, 48, 54)
_MANIFESTS = (".csv", ".parquet")


@dataclass
class Source:
    """What a source holds: its layout, its manifest (schema MANIFEST, sorted by key), how many photos (rows, for a
    manifest file) it names in all, `problems` (what was left out) and `notes` (what was kept but lacks something)."""

    layout: str
    table: pa.Table
    photos: int
    problems: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)


def read(data: Data) -> Source:
    """Reads `data.source` in the layout `data.layout`; `auto` finds out which.

    Raises UserError if the source is not set, does not exist, is not of that layout or names no photo that can be used.
    """
    if data.source is None:
        raise UserError("data.source is not set; give the folder or manifest: data.source=PATH")
    uri = storage.absolute(data.source)
    if not storage.exists(uri):
        raise UserError(f"data.source={data.source}: does not exist; check the path or url")
    layout = recognise(uri) if data.layout == "auto" else data.layout
    if (layout == "manifest") == storage.is_folder(uri):
        wanted = "a CSV or Parquet file" if layout == "manifest" else "a folder"
        raise UserError(f"data.source={data.source}: layout '{layout}' needs {wanted}; set data.layout=auto or another path")
    source = _READERS[layout](uri, data.name)
    if source.photos == 0:
        raise UserError(f"data.source={data.source}: holds no photos ({', '.join(PHOTOS)}); check the path")
    if source.table.num_rows == 0:
        first = source.problems[0]
        raise UserError(
            f"data.source={data.source}: none of {source.photos} photos can be used as layout '{layout}' "
            f"({first.where}: {first.reason}); set data.layout or mend the source"
        )
    return source


def recognise(uri: str) -> str:
    """The layout of a source: `manifest` for a .csv or .parquet file, `fgnet` for a folder with images/ and points/,
    `utkface` where most photos are named like it, else `folder`. Raises UserError for any other file."""
    if uri.lower().endswith(_MANIFESTS) and not storage.is_folder(uri):
        return "manifest"
    if not storage.is_folder(uri):
        raise UserError(f"data.source={uri}: neither a folder nor a manifest ({', '.join(_MANIFESTS)}); give one of these")
    if all(storage.is_folder(storage.join(uri, part)) for part in ("images", "points")):
        return "fgnet"
    photos = storage.list_files(uri, PHOTOS)
    alike = sum(_UTKFACE.fullmatch(posixpath.basename(photo)) is not None for photo in photos)
    return "utkface" if 2 * alike > len(photos) else "folder"


def read_utkface(uri: str, dataset: str) -> Source:
    """UTKFace: `age_gender_race_datetime.jpg.chip.jpg` (or the uncropped `.jpg`), in any sub-folders.

    It knows no subjects and no points. Names of another form, and ages beyond 1..123, are problems of kind 'malformed
    name'.
    """
    photos, problems = storage.list_files(uri, PHOTOS), list[Problem]()

    def rows() -> Iterator[dict[str, Any]]:
        for row, name in _rows(uri, photos, dataset):
            match = _UTKFACE.fullmatch(name)
            if match is None or not 1 <= int(match[1]) <= manifest.OLDEST:
                problems.append(Problem(row["key"], "malformed name", "not age_gender_race_datetime.jpg.chip.jpg"))
                continue
            gender, group = _GENDERS[int(match[2])], _GROUPS[int(match[3])]
            yield row | {"age": float(match[1]), "gender": gender, "group": group}

    return Source("utkface", manifest.build(rows(), problems), len(photos), problems)


def read_fgnet(uri: str, dataset: str) -> Source:
    """FG-NET: `images/001A02.JPG` (subject 001, aged 2) and its 68 hand-placed points in `points/001a02.pts`.

    The points count from 0 (centre of the first pixel), nearly: over the set the pupils' dark centres lie 0.24 px
    (standard error 0.06) left of them and YuNet's points, averaged with those of the mirrored photo, 0.51 px (0.09);
    points counted from 1 would show 1 px. A photo whose points are missing or broken is kept without them, with a
    note.
    """
    photos = storage.list_files(storage.join(uri, "images"), PHOTOS)
    problems, notes = list[Problem](), list[Problem]()
    points = {posixpath.basename(file).lower(): file for file in storage.list_files(storage.join(uri, "points"), (".pts",))}

    def rows() -> Iterator[dict[str, Any]]:
        for row, name in _rows(uri, photos, dataset):
            match = _FGNET.fullmatch(name)
            if match is None:
                problems.append(Problem(row["key"], "malformed name", "not like 001A02.JPG"))
                continue
            try:
                file = points.get(posixpath.splitext(name)[0].lower() + ".pts")
                row["landmarks"] = None if file is None else five_points(storage.read_text(file))
                reason = "no .pts file"
            except (UserError, ValueError) as error:
                row["landmarks"], reason = None, str(error)
            if row["landmarks"] is None:
                notes.append(Problem(row["key"], "no points in the source", reason))
            yield row | {"subject": match[1], "age": float(match[2])}

    return Source("fgnet", manifest.build(rows(), problems), len(photos), problems, notes)


def five_points(pts: str) -> list[float]:
    """The five points, x and y in turn, of a 68-point `.pts` text (a line `x y` for each, between braces).

    Raises ValueError if it is not one.
    """
    try:
        body = pts[pts.index("{") + 1 : pts.index("}")]
        places = [tuple(map(float, line.split())) for line in body.strip().splitlines()]
    except ValueError:
        raise ValueError("the .pts file is not 'x y' lines between braces") from None
    if len(places) != 68 or any(len(place) != 2 for place in places):
        raise ValueError(f"the .pts file has {len(places)} lines of points, not 68 of x and y")
    five = [value for index in _FIVE for value in places[index]]
    if not all(map(math.isfinite, five)):
        raise ValueError("the .pts file has points that are not finite")
    if five[0] >= five[2]:
        raise ValueError("the .pts file has the left pupil (31) right of the other (36)")
    return five


def read_folder(uri: str, dataset: str) -> Source:
    """Any photos, in any sub-folders; nothing is known of them."""
    photos, problems = storage.list_files(uri, PHOTOS), list[Problem]()
    rows = (row for row, _ in _rows(uri, photos, dataset))
    return Source("folder", manifest.build(rows, problems), len(photos), problems)


def read_manifest(uri: str, dataset: str) -> Source:
    """A CSV or Parquet manifest; see `manifest.read_file`."""
    problems = list[Problem]()
    table, rows = manifest.read_file(uri, dataset, problems)
    return Source("manifest", table, rows, problems)


_READERS: dict[str, Callable[[str, str], Source]] = {
    "utkface": read_utkface,
    "fgnet": read_fgnet,
    "folder": read_folder,
    "manifest": read_manifest,
}


def _rows(uri: str, photos: list[str], dataset: str) -> Iterator[tuple[dict[str, Any], str]]:
    """For each photo the columns that every layout has, and its file name."""
    start = len(uri.rstrip("/")) + 1
    for photo in photos:
        yield {"key": f"{dataset}/{photo[start:]}", "uri": photo, "dataset": dataset}, posixpath.basename(photo)
