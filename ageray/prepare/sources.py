"""Sets of photos as they are found, each read as a light manifest (`ageray.prepare.manifest`): labels first, bytes later.

Keys are `<dataset>/<path relative to the source>`, or begin with the official part where a set has some (ChaLearn LAP,
MegaAge-Asian, Adience): unique, and the same wherever the set lies. What is left out is listed with a reason.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from functools import partial

import pyarrow.compute as pc

from ageray import storage
from ageray.errors import UserError
from ageray.experiment import Data, Filters
from ageray.faces.images import PHOTOS
from ageray.prepare import manifest
from ageray.prepare.layouts import (
    adience,
    cacd,
    chalearn_lap,
    imdb_wiki,
    megaage_asian,
    morph,
    named,
)
from ageray.prepare.layouts.fgnet import five_points, read_fgnet
from ageray.prepare.layouts.source import Source
from ageray.prepare.manifest import Problem

__all__ = ["PHOTOS", "Source", "five_points", "read", "read_fgnet", "read_manifest", "recognise"]

_MANIFESTS = (".csv", ".parquet")
# A set is told by a list that only it comes with, or by the form of most of its photos' paths.
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
    """Reads `data.source` in the layout `data.layout`; `auto` finds out which. Ages that `data.filters` excludes are left out.

    Raises UserError if the source is not set, does not exist, is not of that layout or names no photo that can be used.
    """
    if data.source is None:
        raise UserError("data.source is not set; give the folder or manifest: data.source=PATH")
    uri = storage.absolute(data.source)
    if not storage.exists(uri):
        raise UserError(f"data.source={data.source}: does not exist; check the path or url")
    layout = recognise(uri) if data.layout == "auto" else data.layout
    if (layout == "manifest") == storage.is_folder(uri):
        wanted = "a CSV or Parquet file" if layout == "manifest" else "a folder"
        raise UserError(
            f"data.source={data.source}: layout '{layout}' needs {wanted}; set data.layout=auto or another path"
        )
    source = _reader(layout, data.filters)(uri, data.name)
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


def recognise(uri: str) -> str:
    """The layout of a source: `manifest` for a .csv or .parquet file, `fgnet` for a folder with images/ and points/, else
    the set whose own list lies in it, else the one that most photos are named like, else `folder`.

    Raises UserError for any other file, and if there are lists of several sets.
    """
    if uri.lower().endswith(_MANIFESTS) and not storage.is_folder(uri):
        return "manifest"
    if not storage.is_folder(uri):
        raise UserError(
            f"data.source={uri}: neither a folder nor a manifest ({', '.join(_MANIFESTS)}); give one of these"
        )
    if all(storage.is_folder(storage.join(uri, part)) for part in ("images", "points")):
        return "fgnet"
    files = storage.list_files(uri)
    names = {posixpath.basename(file) for file in files}
    sets = [
        layout
        for layout, form in _LISTS.items()
        if any(re.fullmatch(form, name, re.IGNORECASE) for name in names)
    ]
    if len(sets) > 1:
        raise UserError(
            f"data.source={uri}: holds lists of {' and '.join(sets)}; set data.layout, or give one set's folder"
        )
    if sets:
        return sets[0]
    start = len(uri.rstrip("/")) + 1
    photos = [file[start:] for file in files if file.lower().endswith(PHOTOS)]
    alike = {
        layout: sum(form.fullmatch(photo) is not None for photo in photos) for layout, form in _PATHS.items()
    }
    best = max(alike, key=lambda layout: alike[layout])
    return best if 2 * alike[best] > len(photos) else "folder"


def read_manifest(uri: str, dataset: str) -> Source:
    """A CSV or Parquet manifest; see `manifest.read_file`."""
    problems, notes = list[Problem](), list[Problem]()
    table, rows = manifest.read_file(uri, dataset, problems, notes)
    return Source("manifest", table, rows, problems, notes)


def _reader(layout: str, filters: Filters) -> Callable[[str, str], Source]:
    readers: dict[str, Callable[[str, str], Source]] = {
        "utkface": named.read_utkface,
        "fgnet": read_fgnet,
        "morph": morph.read_morph,
        "cacd": cacd.read_cacd,
        "afad": named.read_afad,
        "agedb": named.read_agedb,
        "chalearn_lap": chalearn_lap.read_chalearn_lap,
        "imdb_wiki": partial(imdb_wiki.read_imdb_wiki, filters=filters),
        "megaage_asian": megaage_asian.read_megaage_asian,
        "adience": adience.read_adience,
        "folder": named.read_folder,
        "manifest": read_manifest,
    }
    return readers[layout]


def _filter_ages(source: Source, filters: Filters) -> None:
    """Moves the faces whose age is known and excluded from the table to the problems."""
    ages = source.table.column("age")
    outside = pc.fill_null(pc.or_(pc.less(ages, filters.min_age), pc.greater(ages, filters.max_age)), False)
    wanted = f"data.filters.min_age={filters.min_age:g} to max_age={filters.max_age:g}"
    dropped = {
        row["key"]: row["age"] for row in source.table.filter(outside).select(["key", "age"]).to_pylist()
    }
    source.problems += [
        Problem(key, "filtered", f"age {age:g} is not within {wanted}") for key, age in dropped.items()
    ]
    source.notes = [note for note in source.notes if note.where not in dropped]
    source.table = source.table.filter(pc.invert(outside))
