"""The result of a layout's reader, and the columns that every layout fills."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from ageray.prepare.manifest import Problem


@dataclass
class Source:
    """The content of a source.

    table: its manifest, schema MANIFEST, sorted by key. photos: how many photos the source has or
    names.
    problems: what was left out. notes: what is incomplete but stays.
    """

    layout: str
    table: pa.Table
    photos: int
    problems: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)


def photo_rows(uri: str, photos: list[str], dataset: str) -> Iterator[tuple[dict[str, Any], str]]:
    """For each photo below `uri`: the columns that every layout has, and the name of its file."""
    start = len(uri.rstrip("/")) + 1
    for photo in photos:
        yield (
            {"key": f"{dataset}/{photo[start:]}", "uri": photo, "dataset": dataset},
            posixpath.basename(photo),
        )
