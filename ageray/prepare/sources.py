"""Reads a data set as a light manifest (`ageray.prepare.manifest`): labels and uris, without
photos.

Keys are `<dataset>/<path relative to the source>`. If a set has official parts (ChaLearn LAP,
MegaAge-Asian, Adience), the part comes first. Keys are unique and do not depend on where the set
is. Everything that is left out is listed with a reason.
"""

from __future__ import annotations

import importlib
import posixpath
import re
from collections.abc import Callable
from functools import partial

import pyarrow.compute as pc

from ageray import storage
from ageray.errors import UserError
from ageray.experiment import Data, Filters
from ageray.faces.images import PHOTOS
from ageray.prepare.layouts import adience, cacd, chalearn_lap, imdb_wiki, megaage_asian, morph, named
from ageray.prepare.layouts.catalog import LAYOUTS
from ageray.prepare.layouts.fgnet import five_points, read_fgnet
from ageray.prepare.layouts.source import Source
from ageray.prepare.manifest import Problem

__all__ = ["PHOTOS", "Source", "five_points", "read", "read_fgnet", "reader", "recognise"]

_MANIFESTS = (".csv", ".parquet")
# a set is recognised by a list that only it has, or by the form of most of its photos' paths
_LISTS = {
    "imdb_wiki": imdb_wiki.LISTS,
    "cacd": r"celebrity2000.*\.mat",
    "adience": adience.LISTS,
    "megaage_asian": megaage_asian.LISTS,
    "chalearn_lap": chalearn_lap.LISTS,
    "morph": r"morph.*\.csv",
}
_PATHS = {
    "utkface": named.UTKFACE,
    "agedb": named.AGEDB,
    "cacd": cacd.NAME,
    "morph": morph.NAME,
    "afad": named.AFAD,
}


def read(data: Data) -> Source:
    """Reads `data.source` in the layout `data.layout`. Leaves out ages that `data.filters`
    excludes.

    Raises UserError if the source is not set, does not exist, is not of that layout, or has no
    photo that can be used.
    """
    if data.source is None:
        raise UserError("data.source is not set; give the folder or manifest: data.source=PATH")
    uri = storage.absolute(data.source)
    if not storage.exists(uri):
        raise UserError(f"data.source={data.source}: does not exist; check the path or url")
    layout = recognise(uri) if data.layout == "auto" else data.layout
    if (layout == "manifest") == storage.is_folder(uri):
        needs = {"manifest": "a CSV or Parquet file"}.get(layout, "a folder")
        raise UserError(
            f"data.source={data.source}: layout '{layout}' needs {needs}; "
            "set data.layout=auto or another path"
        )
    source = reader(layout, data.filters)(uri, data.name)
    if source.photos == 0:
        raise UserError(f"data.source={data.source}: holds no photos ({', '.join(PHOTOS)}); check the path")
    _filter_ages(source, data.filters)
    if source.table.num_rows == 0:
        first = source.problems[0]
        raise UserError(
            f"data.source={data.source}: none of {source.photos} photos can be used as layout '{layout}' "
            f"({first.where}: {first.reason}); set data.layout or mend the source"
        )
    return source


def reader(layout: str, filters: Filters) -> Callable[[str, str], Source]:
    """The function that reads a source of this layout: (uri, name of the set) -> Source."""
    module = next(entry.module for entry in LAYOUTS if entry.name == layout)
    function = getattr(importlib.import_module(f"ageray.prepare.layouts.{module}"), f"read_{layout}")
    if layout == "imdb_wiki":
        return partial(function, filters=filters)
    return function  # type: ignore[no-any-return]


def recognise(uri: str) -> str:
    """The layout of a source.

    `manifest`: a .csv or .parquet file. `fgnet`: a folder with images/ and points/. Else the set
    whose own list is in the folder, else the set whose form most paths of photos have, else
    `folder`.

    Raises UserError for any other file, and for a folder with lists of several sets.
    """
    if uri.lower().endswith(_MANIFESTS) and not storage.is_folder(uri):
        return "manifest"
    if not storage.is_folder(uri):
        raise UserError(
            f"data.source={uri}: neither a folder nor a manifest ({', '.join(_MANIFESTS)}); give one of these"
        )
    if storage.is_folder(storage.join(uri, "images")) and storage.is_folder(storage.join(uri, "points")):
        return "fgnet"
    files = storage.list_files(uri)
    sets = _sets_with_lists(set(map(posixpath.basename, files)))
    if len(sets) > 1:
        raise UserError(
            f"data.source={uri}: holds lists of {' and '.join(sets)}; "
            "set data.layout, or give one set's folder"
        )
    if sets:
        return sets[0]
    start = len(uri.rstrip("/")) + 1
    photos = [file[start:] for file in files if file.lower().endswith(PHOTOS)]
    matches = {layout: _count_matches(form, photos) for layout, form in _PATHS.items()}
    best = max(matches, key=matches.__getitem__)
    return best if 2 * matches[best] > len(photos) else "folder"


def _count_matches(form: re.Pattern[str], paths: list[str]) -> int:
    return len(list(filter(form.fullmatch, paths)))


def _sets_with_lists(names: set[str]) -> list[str]:
    """The sets that have one of these files as their list."""
    sets = []
    for layout, form in _LISTS.items():
        pattern = re.compile(form, re.IGNORECASE)
        if any(map(pattern.fullmatch, names)):
            sets.append(layout)
    return sets


def _filter_ages(source: Source, filters: Filters) -> None:
    """Moves the faces whose age is known and excluded from the table to the problems."""
    ages = source.table.column("age")
    outside = pc.fill_null(pc.or_(pc.less(ages, filters.min_age), pc.greater(ages, filters.max_age)), False)
    limits = f"data.filters.min_age={filters.min_age:g} to max_age={filters.max_age:g}"
    dropped = source.table.filter(outside)
    keys = dropped.column("key").to_pylist()
    for key, age in zip(keys, dropped.column("age").to_pylist(), strict=True):
        source.problems.append(Problem(key, "filtered", f"age {age:g} is not within {limits}"))
    source.notes = [note for note in source.notes if note.where not in set(keys)]
    source.table = source.table.filter(pc.invert(outside))
