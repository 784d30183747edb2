"""Sets whose labels stand in lists beside the photos: rows of the lists are matched with the files."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from ageray import storage
from ageray.errors import UserError
from ageray.faces.images import PHOTOS
from ageray.prepare import manifest
from ageray.prepare.layouts.source import Source
from ageray.prepare.manifest import Problem

Entry = TypeVar("Entry")


class Unusable(ValueError):
    """Why a row of a list is left out, where the kind of problem is another than 'bad row'."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class Listed:
    """The files below a folder, and what its lists say of the photos among them.

    Places are found whatever the folder above the photos is called and however names are cased: `Album2/a.JPG` finds
    `MORPH/album2/a.jpg`. All paths are relative to the folder. `entries` counts the rows that were read.
    """

    def __init__(self, uri: str, dataset: str) -> None:
        """Lists the folder `uri`; keys start with `dataset`."""
        self.uri, self.dataset = uri, dataset
        self.problems = list[Problem]()
        start = len(uri.rstrip("/")) + 1
        self.files = [file[start:] for file in storage.list_files(uri)]
        self._rows = list[dict[str, Any]]()
        self.entries = 0
        self._named = set[str]()
        self._places = dict[str, list[str]]()
        for file in self.files:
            if file.lower().endswith(PHOTOS):
                self._places.setdefault(_plain(posixpath.basename(file)), []).append(file)

    def lists(self, name: str) -> list[str]:
        """The files whose name (any case) is matched whole by the pattern `name`, sorted."""
        return [file for file in self.files if re.fullmatch(name, posixpath.basename(file), re.IGNORECASE)]

    def photos(self) -> list[str]:
        """All photos, sorted."""
        return sorted(photo for places in self._places.values() for photo in places)

    def path(self, file: str) -> str:
        """The uri of a file."""
        return storage.join(self.uri, file)

    def find(self, place: str, near: Callable[[str], bool]) -> str:
        """The photo whose path ends in `place`; of several, the one that is `near`.

        Raises Unusable if there is none, ValueError if there are several.
        """
        parts = [part for part in _plain(place).split("/") if part not in ("", ".")]
        if not parts:
            raise ValueError("no image path")
        tail = "/" + "/".join(parts)
        found = [photo for photo in self._places.get(parts[-1], ()) if ("/" + _plain(photo)).endswith(tail)]
        if len(found) > 1:
            found = [photo for photo in found if near(photo)] or found
        if not found:
            raise Unusable("unreadable", f"there is no photo '{place.strip()}' below the source")
        if len(found) > 1:
            raise ValueError(f"{len(found)} photos are called '{place.strip()}': {found[0]}, {found[1]}")
        return found[0]

    def read(
        self,
        file: str,
        entries: Iterable[tuple[str, Entry]],
        labels: Callable[[Entry], dict[str, Any]],
        near: Callable[[str], bool] | None = None,
    ) -> None:
        """Takes the entries of the list `file`: the place of a photo, and what `labels` turns into columns of MANIFEST.

        A `key` among the columns (without the set's name) replaces the photo's path. `near` tells which of several
        photos is meant (default: those below the list's folder). A row that raises ValueError is a problem, told by
        its number, from 1, a header apart.
        """
        folder = posixpath.dirname(file)
        near = near or (lambda photo: photo.startswith(folder + "/"))
        for number, (place, entry) in enumerate(entries, start=1):
            self.entries += 1
            where = f"row {number} of {file}"
            try:
                photo = self.find(place, near)
                self._named.add(photo)
                columns = labels(entry)
            except ValueError as fault:
                self.problems.append(Problem(where, getattr(fault, "kind", "bad row"), str(fault)))
                continue
            key = f"{self.dataset}/{columns.pop('key', photo)}"
            self._rows.append(
                {**columns, "key": key, "uri": self.path(photo), "dataset": self.dataset, "where": where}
            )

    def source(self, layout: str, ignored: Callable[[str], bool] = lambda photo: False) -> Source:
        """What was read. Photos that no list names are problems too, but for those that are `ignored` on purpose."""
        table = manifest.build(self._rows, self.problems)
        unnamed = [photo for photo in self.photos() if photo not in self._named and not ignored(photo)]
        self.problems += [
            Problem(f"{self.dataset}/{photo}", "not in a list", "no list names this photo")
            for photo in unnamed
        ]
        return Source(layout, table, self.entries + len(unnamed), self.problems)


def required(files: list[str], uri: str, layout: str, wanted: str) -> list[str]:
    """`files`, or a UserError that tells which lists the layout needs."""
    if not files:
        raise UserError(
            f"data.source={uri}: layout '{layout}' needs {wanted}; check the path or set another data.layout"
        )
    return files


def _plain(path: str) -> str:
    return unicodedata.normalize("NFC", path.strip().replace("\\", "/")).casefold()
