"""What the reader of a layout returns, and the columns that every layout fills."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from ageray.prepare.manifest import Problem

GENDERS = ("male", "female")


@dataclass
class Source:
    """What a source holds: its layout, its manifest (schema MANIFEST, sorted by key), how many photos it holds or names
    in all, `problems` (what was left out) and `notes` (what was kept but lacks something)."""

    layout: str
    table: pa.Table
    photos: int
    problems: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)


def photo_rows(uri: str, photos: list[str], dataset: str) -> Iterator[tuple[dict[str, Any], str]]:
    """For each photo below `uri` the columns that every layout has, and its file name."""
    start = len(uri.rstrip("/")) + 1
    for photo in photos:
        yield (
            {"key": f"{dataset}/{photo[start:]}", "uri": photo, "dataset": dataset},
            posixpath.basename(photo),
        )
