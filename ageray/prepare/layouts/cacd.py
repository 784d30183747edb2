"""CACD: 163,446 photos of 2,000 celebrities aged 14 to 62, collected from the web by name and year.

Chen, Chen, Hsu: Cross-Age Reference Coding for Age-Invariant Face Recognition and Retrieval, ECCV
2014.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from operator import itemgetter
from typing import Any

import numpy as np

from ageray.prepare.layouts import lists, matlab
from ageray.prepare.layouts.listed import Listed
from ageray.prepare.layouts.lists import Record
from ageray.prepare.layouts.source import Source

NAME = re.compile(r"(?:.*/)?(\d{1,3})_([^/]+)_\d{4}\.jpe?g", re.IGNORECASE)
"""A photo's path: age, name of the celebrity, number of the picture
(`CACD2000/53_Robin_Williams_0001.jpg`).
"""

_COLUMNS = {
    "photo": ("file", "name", "filename", "image", "image_name", "path", "img_path"),
    "age": ("age",),
    "identity": ("identity", "id"),
    "rank": ("rank",),
}


def read_cacd(uri: str, dataset: str) -> Source:
    """CACD: the photos with `celebrity2000_meta.mat`, with CSV lists, or without lists.

    The MATLAB file has `celebrityImageData` (age, identity, name: the photo's file name) and
    `celebrityData` (identity, rank). A celebrity's rank among those born in the same year, 1 to 50,
    becomes the `group` `rank_N`: the paper's split and its cleaned parts go by it. Of a CSV the
    columns file (or name, filename, image, path), age, identity and rank are read. What a list
    lacks comes from the names of the photos, `53_Robin_Williams_0001.jpg`: age and person, but no
    rank. An age that contradicts the name is a bad row (some lists have a class that starts at 0 as
    `age`). `celebrity2000.mat`, the same data with features, is a MATLAB 7.3 file and cannot be
    read.
    """
    listed = Listed(uri, dataset)
    # the file without features first: it can be read
    metas = sorted(listed.lists(r"celebrity2000.*\.mat"), key=lambda file: "meta" not in file.lower())
    if metas:
        listed.read(metas[0], _read_matlab(listed.path(metas[0])), itemgetter("photo"), _labels)
    else:
        for file in listed.lists(r".*\.csv"):
            columns, rows = lists.records(listed.path(file), _COLUMNS)
            if "photo" in columns:
                listed.read(file, rows, itemgetter("photo"), _labels)
    if listed.entries == 0:
        needs = (
            "celebrity2000_meta.mat, a CSV with a column 'file', or photos named like "
            "53_Robin_Williams_0001.jpg"
        )
        listed.read_names(NAME, "cacd", needs, _labels)
    return listed.source("cacd")


def _read_matlab(uri: str) -> Iterator[Record]:
    people = matlab.fields(uri, "celebrityData", ("identity", "rank"))
    ranks = dict(zip(map(_text, people["identity"]), map(_text, people["rank"]), strict=True))
    photos = matlab.fields(uri, "celebrityImageData", ("age", "identity", "name"))
    for age, number, name in zip(photos["age"], photos["identity"], photos["name"], strict=True):
        identity = _text(number)
        yield {"photo": name, "age": _text(age), "identity": identity, "rank": ranks.get(identity, "")}


def _labels(row: Record) -> dict[str, Any]:
    name = NAME.fullmatch(row["photo"].replace("\\", "/"))
    values: Record = {"age": name[1], "identity": name[2]} if name else {}
    values |= lists.without_empty(row)
    age = lists.age(values)
    if name and age != float(name[1]):
        raise ValueError(f"age {age:g} contradicts the photo's name, {posixpath.basename(row['photo'])}")
    if "identity" not in values:
        raise ValueError("no identity")
    rank = values.get("rank")
    if rank is not None and not rank.isdecimal():
        raise ValueError(f"rank '{rank}' is not a whole number")
    return {"age": age, "subject": values["identity"], "group": rank and f"rank_{int(rank)}"}


def _text(value: Any) -> str:
    """A number as in a CSV; NaN is empty."""
    if value != value:
        return ""
    return f"{value:g}" if isinstance(value, (float, np.number)) else str(value)
