"""MegaAge-Asian: 43,945 faces of Asians aged 0 to 70, with an official test part.

Zhang, Liu, Loy: Quantifying Facial Age by Posterior of Age Comparisons, BMVC 2017.
"""

from __future__ import annotations

import posixpath
from operator import itemgetter
from typing import Any

from ageray.errors import UserError
from ageray.prepare.layouts import lists
from ageray.prepare.layouts.listed import Listed, required
from ageray.prepare.layouts.source import Source

LISTS = r"train_age\.txt"


def read_megaage_asian(uri: str, dataset: str) -> Source:
    """MegaAge-Asian (and MegaAge): line by line `list/train_name.txt` and `list/train_age.txt`,
    with the photos in `train`; the same for `test`.

    Keys are `<dataset>/train/1.jpg` and `<dataset>/test/1.jpg`. The set does not say who is who.
    Raises UserError if the two lists of a part differ in length: then nobody knows whose the ages
    are.
    """
    listed = Listed(uri, dataset)
    files = listed.lists(r"(train|test)_age\.txt")
    for ages in required(files, uri, "megaage_asian", "train_name.txt and train_age.txt"):
        part = posixpath.basename(ages).lower().removesuffix("_age.txt")
        name_lines = lists.lines(listed.path(ages[: -len("age.txt")] + "name.txt"))
        age_lines = lists.lines(listed.path(ages))
        if len(name_lines) != len(age_lines):
            raise UserError(
                f"{listed.path(ages)}: {len(age_lines)} ages for {len(name_lines)} names; "
                "download the lists again"
            )
        paths = [f"{part}/{name}" if name else "" for name in name_lines]
        listed.read(ages, zip(paths, age_lines, strict=True), itemgetter(0), _labels)
    return listed.source("megaage_asian")


def _labels(entry: tuple[str, str]) -> dict[str, Any]:
    path, age = entry
    return {"key": path, "age": lists.age({"age": age})}
