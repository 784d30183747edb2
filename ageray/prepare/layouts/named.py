"""Sets whose labels are the names of files and folders (UTKFace, AgeDB, AFAD), and photos without
labels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any

from ageray import storage
from ageray.faces.images import PHOTOS
from ageray.prepare import manifest
from ageray.prepare.layouts.source import Source, photo_rows
from ageray.prepare.manifest import Problem
from ageray.schema import GENDERS, gender

UTKFACE = re.compile(r"(?:.*/)?(\d{1,3})_([01])_([0-4])_\d+\.jpe?g(\.chip\.jpg)?", re.IGNORECASE)
AGEDB = re.compile(r"(?:.*/)?\d+_([^/]+)_(\d{1,3})_([mf])\.jpe?g", re.IGNORECASE)
AFAD = re.compile(r"(?:.*/)?(\d{1,3})/(11[12])/(\d+)-\d+\.[a-z]+", re.IGNORECASE)
"""Paths of photos below the source. In AFAD the folders 15 ... 72 are ages, 111 is male, 112
female.
"""

_GROUPS = ("White", "Black", "Asian", "Indian", "Other")


def read_utkface(uri: str, dataset: str) -> Source:
    """UTKFace: `age_gender_race_datetime.jpg.chip.jpg` (or the uncropped `.jpg`), in any
    sub-folders.

    Zhang, Song, Qi: Age Progression/Regression by Conditional Adversarial Autoencoder, CVPR 2017.
    The set has no subjects and no points. Names of another form, and ages beyond 1..123, are
    problems of kind 'malformed name'.
    """

    def labels(match: re.Match[str]) -> dict[str, Any]:
        return {"age": float(match[1]), "gender": GENDERS[int(match[2])], "group": _GROUPS[int(match[3])]}

    return _read(
        "utkface", uri, dataset, UTKFACE, labels, "age_gender_race_datetime.jpg.chip.jpg", youngest=1
    )


def read_agedb(uri: str, dataset: str) -> Source:
    """AgeDB: `0_MariaCallas_35_f.jpg` (number, name, age, gender), in any sub-folders; the subject
    is the name.

    Moschoglou et al.: AgeDB, the First Manually Collected, In-the-Wild Age Database, CVPR Workshops
    2017.
    """

    def labels(match: re.Match[str]) -> dict[str, Any]:
        return {"subject": match[1], "age": float(match[2]), "gender": gender(match[3])}

    return _read(
        "agedb", uri, dataset, AGEDB, labels, "number_Name_age_gender.jpg, such as 0_MariaCallas_35_f.jpg"
    )


def read_afad(uri: str, dataset: str) -> Source:
    """AFAD (Full or Lite): `15/111/638660-1.jpg`, a folder for each age, in it 111 for men and 112
    for women.

    Niu, Zhou, Wang, Gao, Hua: Ordinal Regression with Multiple Output CNN for Age Estimation, CVPR
    2016. The number before the hyphen counts as the person, as in the benchmark of Paplham and
    Franc (CVPR 2024); the set itself documents no identities. `AFAD-Full.txt` repeats the paths and
    is not read.
    """

    def labels(match: re.Match[str]) -> dict[str, Any]:
        return {"age": float(match[1]), "gender": GENDERS[int(match[2]) - 111], "subject": match[3]}

    return _read("afad", uri, dataset, AFAD, labels, "age/111/person-number.jpg (112: a woman)")


def read_folder(uri: str, dataset: str) -> Source:
    """Any photos, in any sub-folders, without labels."""
    photos, problems = storage.list_files(uri, PHOTOS), list[Problem]()
    rows = map(itemgetter(0), photo_rows(uri, photos, dataset))
    return Source("folder", manifest.build(rows, problems), len(photos), problems)


def _read(
    layout: str,
    uri: str,
    dataset: str,
    path: re.Pattern[str],
    labels: Callable[[re.Match[str]], dict[str, Any]],
    form: str,
    youngest: float = 0,
) -> Source:
    """Photos whose path matches, with the labels of the match. Others are problems, which name the
    `form`.
    """
    photos, problems = storage.list_files(uri, PHOTOS), list[Problem]()
    start = len(uri.rstrip("/")) + 1

    def rows() -> Iterator[dict[str, Any]]:
        for row, _ in photo_rows(uri, photos, dataset):
            match = path.fullmatch(row["uri"][start:])
            columns = labels(match) if match else {}
            if not youngest <= columns.get("age", -1) <= manifest.OLDEST:
                problems.append(Problem(row["key"], "malformed name", f"not {form}"))
            else:
                yield row | columns

    return Source(layout, manifest.build(rows(), problems), len(photos), problems)
