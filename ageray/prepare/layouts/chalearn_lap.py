"""ChaLearn Looking at People, apparent age: about ten people guessed the age of each photo.

Escalera et al.: ChaLearn Looking at People 2015: Apparent Age and Cultural Event Recognition, ICCV
Workshops 2015, and ChaLearn Looking at People and Faces of the World, CVPR Workshops 2016.
APPA-REAL (Agustsson et al., FG 2017) has the same form.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

from ageray.faces.images import PHOTOS
from ageray.prepare import manifest
from ageray.prepare.layouts import lists
from ageray.prepare.layouts.listed import Listed, required
from ageray.prepare.layouts.lists import Record
from ageray.prepare.layouts.source import Source

LISTS = r"(train|valid|val|test)_gt\.csv|gt_avg_\w+\.csv"
"""Names of lists that only this set has."""

_COLUMNS = {
    "image": ("image", "file_name", "filename", "file", "name"),
    "age": ("mean", "apparent_age_avg", "age"),
    "age_std": ("stdv", "std", "stddev", "sd", "deviation", "apparent_age_std"),
}
_ORDER = ("image", "age", "age_std")
_PART = re.compile(r"train|val|test", re.IGNORECASE)


def read_chalearn_lap(uri: str, dataset: str) -> Source:
    """ChaLearn LAP: lists of photos with mean and standard deviation of the guesses: `age`,
    `age_std`.

    2016: `train_gt.csv`, `valid_gt.csv`, `test_gt.csv` with the columns image, mean, stdv; the
    photos are in train_1, train_2, valid and test. 2015: `Train.csv` and the like, separated by
    semicolons, with or without names of columns, and with or without `.jpg`. APPA-REAL:
    `gt_avg_train.csv` and the like; its crops `X.jpg_face.jpg` are left out. Other CSVs are not
    read.

    Keys are `<dataset>/train/...`, `/val/...` and `/test/...`, then the file's name. The official
    part comes from the list's name, or else from its folder's.
    """
    listed = Listed(uri, dataset)
    for file in required(
        listed.lists(r".*\.csv"), uri, "chalearn_lap", "lists such as train_gt.csv (image, mean, stdv)"
    ):
        columns, rows = lists.records(listed.path(file), _COLUMNS, _ORDER)
        if set(_ORDER) <= columns:
            _read(listed, file, rows)
    if listed.entries == 0:
        required([], uri, "chalearn_lap", "a CSV with the columns image, mean and stdv")
    return listed.source("chalearn_lap", lambda photo: photo.lower().endswith("_face.jpg"))


def part_of(path: str) -> str | None:
    """`train`, `val` or `test`, if the name of the file, or else of a folder, contains it; else
    None.
    """
    for name in reversed(path.split("/")):
        match = _PART.search(name)
        if match:
            return match[0].lower()
    return None


def _read(listed: Listed, file: str, rows: list[Record]) -> None:
    part = part_of(file)

    def labels(row: Record) -> dict[str, Any]:
        age, spread = lists.age(row), manifest.number(row, "age_std", manifest.OLDEST)
        if spread is None:
            raise ValueError("no standard deviation")
        key = posixpath.join(part or "", posixpath.basename(_photo(row)))
        return {"key": key, "age": age, "age_std": spread}

    def same_part(photo: str) -> bool:
        return part_of(posixpath.dirname(photo)) == part

    listed.read(file, rows, _photo, labels, same_part)


def _photo(row: Record) -> str:
    image = row["image"].replace("\\", "/")
    return image if not image or image.lower().endswith(PHOTOS) else f"{image}.jpg"
