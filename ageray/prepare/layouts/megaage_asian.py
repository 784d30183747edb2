"""MegaAge-Asian: 43,945 faces of Asians aged 0 to 70, with an official test part.

Zhang, Liu, Loy: Quantifying Facial Age by Posterior of Age Comparisons, BMVC 2017.
"""

from __future__ import annotations

import posixpath
from typing import Any

from ageray.errors import UserError
from ageray.prepare.layouts import lists
from ageray.prepare.layouts.listed import Listed, required
from ageray.prepare.layouts.source import Source

LISTS = r"train_age\.txt"


def read_megaage_asian(uri: str, dataset: str) -> Source:
    """MegaAge-Asian (and MegaAge): `list/train_name.txt` with `list/train_age.txt`, line by line, photos in `train`.

    The same for `test`. Keys are `<dataset>/train/1.jpg` and `<dataset>/test/1.jpg`. Nothing tells who is who.
    Raises UserError if the two lists of a part differ in length: nobody knows then whose the ages are.
    """
    listed = Listed(uri, dataset)
    for ages in required(
        listed.lists(r"(train|test)_age\.txt"), uri, "megaage_asian", "train_name.txt and train_age.txt"
    ):
        part = posixpath.basename(ages).lower().removesuffix("_age.txt")
        names = ages[: -len("age.txt")] + "name.txt"
        name_lines, age_lines = (lists.lines(listed.path(file)) for file in (names, ages))
        if len(name_lines) != len(age_lines):
            raise UserError(
                f"{listed.path(ages)}: {len(age_lines)} ages for {len(name_lines)} names; download the lists again"
            )

        def labels(entry: tuple[str, str], part: str = part) -> dict[str, Any]:
            return {"key": f"{part}/{entry[0]}", "age": lists.age({"age": entry[1]})}

        entries = zip(name_lines, age_lines, strict=True)
        listed.read(ages, ((f"{part}/{name}" if name else "", (name, age)) for name, age in entries), labels)
    return listed.source("megaage_asian")
