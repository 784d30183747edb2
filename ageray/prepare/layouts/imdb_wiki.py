"""IMDB-WIKI: 523,051 photos of celebrities from IMDb and Wikipedia, labelled by an algorithm.

Rothe, Timofte, Van Gool: Deep Expectation of Real and Apparent Age from a Single Image without Facial Landmarks, IJCV
2018.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Iterator
from datetime import date
from typing import Any

from ageray.experiment import Filters
from ageray.prepare import manifest
from ageray.prepare.layouts import matlab
from ageray.prepare.layouts.listed import Listed, Unusable, required
from ageray.prepare.layouts.morph import years
from ageray.prepare.layouts.source import GENDERS, Source

LISTS = r"(imdb|wiki)\.mat"

_FIELDS = ("dob", "photo_taken", "full_path", "gender", "face_score", "second_face_score")


def read_imdb_wiki(uri: str, dataset: str, filters: Filters) -> Source:
    """IMDB-WIKI: `imdb.mat` and `wiki.mat`, one or both, with the photos of `full_path` beside them.

    The age is that in completed years on 1 July of the year `photo_taken`, as the set's page reckons it from `dob`. The
    subject is the person's number that opens the file's name (nm0000001 on IMDb, a page of Wikipedia: both sets may
    have one person); gender 0 is female, 1 male, NaN unknown. Left out as `filtered` are photos in which the set's
    detector found no face, one of a `face_score` below `filters.min_face_score`, or, with `filters.single_face`, a
    second one (`second_face_score`); `sources.read` leaves out ages. `face_location` is not used: the faces are found
    again, as at scoring.
    """
    listed = Listed(uri, dataset)
    for file in required(listed.lists(LISTS), uri, "imdb_wiki", "imdb.mat or wiki.mat"):
        struct = posixpath.basename(file).lower().removesuffix(".mat")
        listed.read(file, _entries(listed.path(file), struct), lambda row: _labels(row, filters))
    return listed.source("imdb_wiki")


def _entries(uri: str, struct: str) -> Iterator[tuple[str, dict[str, Any]]]:
    columns = matlab.fields(uri, struct, _FIELDS)
    for values in zip(*columns.values(), strict=True):
        row = dict(zip(columns, values, strict=True))
        yield row["full_path"], row


def _labels(row: dict[str, Any], filters: Filters) -> dict[str, Any]:
    score, second, gender = (float(row[name]) for name in ("face_score", "second_face_score", "gender"))
    if filters.min_face_score != "any" and not score >= filters.min_face_score:
        raise Unusable(
            "filtered",
            f"face_score {score:g} is below data.filters.min_face_score={filters.min_face_score:g}",
        )
    if filters.single_face and not math.isnan(second):
        raise Unusable("filtered", f"a second face (score {second:g}), and data.filters.single_face=true")
    taken = float(row["photo_taken"])
    if not 1 <= taken <= date.max.year:
        raise ValueError(f"photo_taken {taken:g} is no year")
    try:
        age = years(matlab.day(float(row["dob"])), date(int(taken), 7, 1))
    except ValueError as fault:
        raise ValueError(f"dob {fault}") from None
    if not 0 <= age <= manifest.OLDEST:
        raise ValueError(f"age {age} is not within 0..{manifest.OLDEST}")
    subject = posixpath.basename(row["full_path"]).split("_")[0]
    return {"age": float(age), "subject": subject, "gender": {0.0: GENDERS[1], 1.0: GENDERS[0]}.get(gender)}
