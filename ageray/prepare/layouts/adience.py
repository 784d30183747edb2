"""Adience: 26,580 faces of 2,284 people from Flickr albums, labelled with bands of ages, in five
official folds.

Eidinger, Enbar, Hassner: Age and Gender Estimation of Unfiltered Faces, TIFS 2014.
"""

from __future__ import annotations

import posixpath
import re
from functools import partial
from typing import Any

from ageray.errors import UserError
from ageray.prepare import manifest
from ageray.prepare.layouts import lists
from ageray.prepare.layouts.listed import Listed, required
from ageray.prepare.layouts.lists import Record
from ageray.prepare.layouts.source import Source
from ageray.schema import gender

LISTS = r"fold_(frontal_)?\d_data\.txt"

_COLUMNS = {name: (name,) for name in ("user_id", "original_image", "face_id", "age", "gender")}
_BAND = re.compile(r"\(\s*(\d{1,3})\s*,\s*(\d{1,3})\s*\)")
# Faces turned upright and scaled by their landmarks (aligned.tar.gz), and roughly turned crops
# (faces.tar.gz).
_FORMS = ("landmark_aligned_face", "coarse_tilt_aligned_face")


def read_adience(uri: str, dataset: str) -> Source:
    """Adience: `fold_0_data.txt` ... `fold_4_data.txt` with photos, or else `fold_frontal_...`.

    The photos are `aligned/USER/landmark_aligned_face.FACE.IMAGE`, or, if there are none of these,
    `faces/USER/coarse_tilt_aligned_face.FACE.IMAGE`. Keys are `<dataset>/fold_0/USER/...`. The
    subject is `face_id`, which numbers the people of the whole set. `age` and `age_std` come from
    `band`; a face whose age is None is a bad row. Gender `u` is unknown.
    """
    listed = Listed(uri, dataset)
    files = required(listed.lists(LISTS), uri, "adience", "fold_0_data.txt ... fold_4_data.txt")
    files = [file for file in files if "frontal" not in posixpath.basename(file).lower()] or files
    form = _form(listed.photos())
    for file in files:
        columns, rows = lists.records(listed.path(file), _COLUMNS)
        missing = [name for name in _COLUMNS if name not in columns]
        if missing:
            raise UserError(
                f"{listed.path(file)}: needs the columns {', '.join(_COLUMNS)}; {', '.join(missing)} missing"
            )
        fold = "fold_" + re.sub(r"\D", "", posixpath.basename(file))
        listed.read(file, rows, partial(_path, form=form), partial(_labels, fold=fold, form=form))
    return listed.source("adience", lambda photo: not posixpath.basename(photo).lower().startswith(form))


def _form(photos: list[str]) -> str:
    """How the names of the photos to read begin."""
    for photo in photos:
        if posixpath.basename(photo).lower().startswith(_FORMS[0]):
            return _FORMS[0]
    return _FORMS[1] if photos else _FORMS[0]


def band(text: str) -> tuple[float, float | None]:
    """Age and its deviation for a label: the middle and half the width of a band, `(25, 32)` ->
    28.5, 3.5.

    The age lies somewhere in the band, so its middle is the single number with the smallest worst
    error. `age - age_std` and `age + age_std` are the ends of the band. A single age, `35`, has no
    deviation. Raises ValueError for any other text.
    """
    ends = _BAND.fullmatch(text)
    if ends is None:
        return lists.age({"age": "" if text == "None" else text}), None
    low, high = int(ends[1]), int(ends[2])
    if not low <= high <= manifest.OLDEST:
        raise ValueError(f"'{text}' is no band of ages within 0..{manifest.OLDEST}")
    return (low + high) / 2, (high - low) / 2


def _path(row: Record, form: str) -> str:
    return f"{row['user_id']}/{form}.{row['face_id']}.{row['original_image']}"


def _labels(row: Record, fold: str, form: str) -> dict[str, Any]:
    age, spread = band(row["age"])
    key = f"{fold}/{_path(row, form)}"
    return {
        "key": key,
        "age": age,
        "age_std": spread,
        "subject": row["face_id"],
        "gender": gender(row["gender"]),
    }
