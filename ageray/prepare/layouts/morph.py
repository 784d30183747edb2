"""MORPH Album 2: 55,134 police photos of 13,617 people, several a person.

Ricanek, Tesafaye: MORPH: A Longitudinal Image Database of Normal Adult Age-Progression, FG 2006.
"""

from __future__ import annotations

import posixpath
import re
from datetime import date, datetime
from operator import itemgetter
from typing import Any

from ageray.prepare.layouts import lists
from ageray.prepare.layouts.listed import Listed
from ageray.prepare.layouts.lists import Record
from ageray.prepare.layouts.source import Source
from ageray.schema import gender

NAME = re.compile(r"(?:.*/)?(\d+)_\d+([MF])(\d{1,3})\.jpe?g", re.IGNORECASE)
"""A photo's path: person, number of the picture, gender, age (`Album2/009055_1M54.JPG`)."""

_COLUMNS = {
    "photo": ("photo", "filename", "file", "image", "path"),
    "id_num": ("id_num", "id", "subject"),
    "dob": ("dob",),
    "doa": ("doa",),
    "race": ("race",),
    "gender": ("gender", "sex"),
    "age": ("age",),
}
_RACES = {"w": "White", "b": "Black", "a": "Asian", "h": "Hispanic", "i": "American Indian", "o": "Other"}
_DATES = ("%Y-%m-%d", "%m/%d/%Y", "%m/%d/%y")


def read_morph(uri: str, dataset: str) -> Source:
    """MORPH II: a CSV such as `morph_2008_nonCommercial.csv` with its photos,
    `Album2/009055_1M54.JPG`.

    Columns: photo (or filename, file, image, path), age (or dob and doa, the dates of birth and of
    the arrest, year or month first), id_num, gender (M, F), race (W, B, A, H, I, O: written out in
    `group`). Others, such as picture_num, facial_hair, age_diff and glasses, are not used. Several
    CSVs are read one after the other. What the CSV lacks comes from the photo's name: person,
    gender and age. Without any CSV, all of it does, and no race is known. An age that contradicts
    the name is a bad row.
    """
    listed = Listed(uri, dataset)
    for file in listed.lists(r".*\.csv"):
        columns, rows = lists.records(listed.path(file), _COLUMNS)
        if "photo" in columns and ("age" in columns or {"dob", "doa"} <= columns):
            listed.read(file, rows, itemgetter("photo"), _labels)
    if listed.entries == 0:
        needs = "a CSV with the columns photo and age (or dob, doa), or photos named like 009055_1M54.JPG"
        listed.read_names(NAME, "morph", needs, _labels)
    return listed.source("morph")


def _labels(row: Record) -> dict[str, Any]:
    name = NAME.fullmatch(row["photo"].replace("\\", "/"))
    own = lists.without_empty(row)
    if "age" not in own and {"dob", "doa"} <= set(own):
        own["age"] = str(years(_day(own["dob"]), _day(own["doa"])))
    values: Record = {"id_num": name[1], "gender": name[2], "age": name[3]} if name else {}
    values |= own
    age = lists.age(values)
    if name and age != float(name[3]):
        raise ValueError(f"age {age:g} contradicts the photo's name, {posixpath.basename(row['photo'])}")
    person = values.get("id_num")
    if not person:
        raise ValueError("no id_num")
    return {
        "age": age,
        # spreadsheets turn 009055 into the number 9055
        "subject": person.zfill(6) if person.isdecimal() else person,
        "gender": gender(values.get("gender")),
        "group": _RACES.get(row.get("race", "").lower(), row.get("race") or None),
    }


def years(birth: date, later: date) -> int:
    """The completed years from a birth to a later day; negative before the birth."""
    return later.year - birth.year - ((later.month, later.day) < (birth.month, birth.day))


def _day(text: str) -> date:
    for form in _DATES:
        try:
            return datetime.strptime(text.split()[0], form).date()
        except ValueError:
            continue
    raise ValueError(f"'{text}' is no date like 1954-12-31 or 12/31/1954")
