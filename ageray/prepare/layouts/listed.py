"""Sets with lists of labels beside the photos: matches rows of the lists with the files."""

from __future__ import annotations

import itertools
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Any, TypeVar

from ageray import storage
from ageray.errors import UserError
from ageray.faces.images import PHOTOS
from ageray.prepare import manifest
from ageray.prepare.layouts.source import Source
from ageray.prepare.manifest import Problem

Entry = TypeVar("Entry")


class Unusable(ValueError):
    """A row of a list that is left out, with a kind of problem other than 'bad row'."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class Listed:
    """The files below a folder, and the labels that lists give to the photos among them.

    A row may name a photo by the end of its path, in any case: `Album2/a.JPG` matches
    `MORPH/album2/a.jpg`. All paths are relative to the folder. `entries` counts the rows read.
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
        self._photos = dict[str, list[str]]()
        for file in self.files:
            if file.lower().endswith(PHOTOS):
                self._photos.setdefault(_normalize(posixpath.basename(file)), []).append(file)

    def lists(self, name: str) -> list[str]:
        """The files whose whole name matches the pattern `name` in any case, sorted."""
        return [file for file in self.files if re.fullmatch(name, posixpath.basename(file), re.IGNORECASE)]

    def photos(self) -> list[str]:
        """All photos, sorted."""
        return sorted(itertools.chain.from_iterable(self._photos.values()))

    def path(self, file: str) -> str:
        """The uri of a file."""
        return storage.join(self.uri, file)

    def find(self, path: str, near: Callable[[str], bool]) -> str:
        """The photo whose path ends in `path`. Of several, the one for which `near` is true.

        Raises Unusable if there is none, ValueError if there are several.
        """
        parts = [part for part in _normalize(path).split("/") if part not in ("", ".")]
        if not parts:
            raise ValueError("no image path")
        tail = "/" + "/".join(parts)
        namesakes = self._photos.get(parts[-1], ())
        photos = [photo for photo in namesakes if ("/" + _normalize(photo)).endswith(tail)]
        if len(photos) > 1:
            photos = list(filter(near, photos)) or photos
        if not photos:
            raise Unusable("unreadable", f"there is no photo '{path.strip()}' below the source")
        if len(photos) > 1:
            raise ValueError(f"{len(photos)} photos are called '{path.strip()}': {photos[0]}, {photos[1]}")
        return photos[0]

    def read(
        self,
        file: str,
        entries: Iterable[Entry],
        path: Callable[[Entry], str],
        labels: Callable[[Entry], dict[str, Any]],
        near: Callable[[str], bool] | None = None,
    ) -> None:
        """Reads the entries of the list `file`. `path` returns the photo of an entry, `labels` its
        columns of MANIFEST.

        A `key` among the columns (without the set's name) replaces the photo's path. near: which of
        several photos is meant; by default those below the list's folder. A row that raises
        ValueError is a problem. It is named by its number, counted from 1 after the header.
        """
        folder = posixpath.dirname(file)
        near = near or (lambda photo: photo.startswith(folder + "/"))
        for number, entry in enumerate(entries, start=1):
            self.entries += 1
            where = f"row {number} of {file}"
            try:
                photo = self.find(path(entry), near)
                self._named.add(photo)
                columns = labels(entry)
            except ValueError as error:
                self.problems.append(Problem(where, getattr(error, "kind", "bad row"), str(error)))
                continue
            columns["key"] = f"{self.dataset}/{columns.get('key', photo)}"
            self._rows.append({**columns, "uri": self.path(photo), "dataset": self.dataset, "where": where})

    def read_names(
        self,
        name: re.Pattern[str],
        layout: str,
        needs: str,
        labels: Callable[[dict[str, str]], dict[str, Any]],
    ) -> None:
        """Reads the labels from the paths of photos that match `name`, as rows with only a `photo`.

        Raises UserError, which says what the layout `needs`, if no path matches.
        """
        photos = required(list(filter(name.fullmatch, self.photos())), self.uri, layout, needs)
        rows = [{"photo": photo} for photo in photos]
        self.read("the photos' names", rows, itemgetter("photo"), labels)

    def source(self, layout: str, ignored: Callable[[str], bool] = lambda photo: False) -> Source:
        """The rows read. A photo that no list names is a problem, unless it is `ignored`."""
        table = manifest.build(self._rows, self.problems)
        unnamed = [photo for photo in self.photos() if photo not in self._named and not ignored(photo)]
        for photo in unnamed:
            key = f"{self.dataset}/{photo}"
            self.problems.append(Problem(key, "not in a list", "no list names this photo"))
        return Source(layout, table, self.entries + len(unnamed), self.problems)


def required(files: list[str], uri: str, layout: str, needs: str) -> list[str]:
    """`files`. Raises UserError, which says what the layout `needs`, if there are none."""
    if not files:
        raise UserError(
            f"data.source={uri}: layout '{layout}' needs {needs}; check the path or set another data.layout"
        )
    return files


def _normalize(path: str) -> str:
    return unicodedata.normalize("NFC", path.strip().replace("\\", "/")).casefold()
