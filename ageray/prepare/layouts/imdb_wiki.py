"""IMDB-WIKI: 523,051 photos of celebrities from IMDb and Wikipedia, labelled by an algorithm.

Rothe, Timofte, Van Gool: Deep Expectation of Real and Apparent Age from a Single Image without
Facial Landmarks, IJCV 2018.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Iterator
from datetime import date
from functools import partial
from operator import itemgetter
from typing import Any

from ageray.experiment import Filters
from ageray.prepare import manifest
from ageray.prepare.layouts import matlab
from ageray.prepare.layouts.listed import Listed, Unusable, required
from ageray.prepare.layouts.morph import years
from ageray.prepare.layouts.source import Source

_GENDERS = {0.0: "female", 1.0: "male"}

LISTS = r"(imdb|wiki)\.mat"

_FIELDS = ("dob", "photo_taken", "full_path", "gender", "face_score", "second_face_score")


def read_imdb_wiki(uri: str, dataset: str, filters: Filters) -> Source:
    """IMDB-WIKI: `imdb.mat` and `wiki.mat`, one or both, with the photos of `full_path` beside
    them.

    age: completed years on 1 July of the year `photo_taken`, counted from `dob`, as on the set's
    page.
    subject: the person's number that opens the file's name (nm0000001 on IMDb, a page of Wikipedia;
    one person may be in both sets). gender: 0 is female, 1 male, NaN unknown. `face_location` is
    not used: faces are detected again, as in scoring.

    Left out as `filtered`: photos without a face of the set's detector, with a `face_score` below
    `filters.min_face_score`, or, with `filters.single_face`, with a second face
    (`second_face_score`), or only with one above `filters.max_second_score` where that is set.
    `sources.read` leaves out ages.
    """
    listed = Listed(uri, dataset)
    for file in required(listed.lists(LISTS), uri, "imdb_wiki", "imdb.mat or wiki.mat"):
        struct = posixpath.basename(file).lower().removesuffix(".mat")
        rows = _rows(listed.path(file), struct)
        listed.read(file, rows, itemgetter("full_path"), partial(_labels, filters=filters))
    return listed.source("imdb_wiki")


def _rows(uri: str, struct: str) -> Iterator[dict[str, Any]]:
    columns = matlab.fields(uri, struct, _FIELDS)
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def _labels(row: dict[str, Any], filters: Filters) -> dict[str, Any]:
    score, second, gender = map(float, (row["face_score"], row["second_face_score"], row["gender"]))
    if filters.min_face_score != "any" and not score >= filters.min_face_score:
        raise Unusable(
            "filtered",
            f"face_score {score:g} is below data.filters.min_face_score={filters.min_face_score:g}",
        )
    most = filters.max_second_score
    if filters.single_face and not math.isnan(second):
        if most is None:
            raise Unusable("filtered", f"a second face (score {second:g}), and data.filters.single_face=true")
        if second > most:
            raise Unusable(
                "filtered",
                f"a second face of score {second:g}, above data.filters.max_second_score={most:g}",
            )
    year = float(row["photo_taken"])
    if not 1 <= year <= date.max.year:
        raise ValueError(f"photo_taken {year:g} is no year")
    try:
        age = years(matlab.day(float(row["dob"])), date(int(year), 7, 1))
    except ValueError as error:
        raise ValueError(f"dob {error}") from None
    if not 0 <= age <= manifest.OLDEST:
        raise ValueError(f"age {age} is not within 0..{manifest.OLDEST}")
    subject = posixpath.basename(row["full_path"]).split("_")[0]
    return {"age": float(age), "subject": subject, "gender": _GENDERS.get(gender)}
