"""What a user gives `ageray score` as INPUT: which files it has, without reading the photos."""

from __future__ import annotations

import hashlib
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import pyarrow as pa

from ageray import storage
from ageray.errors import UserError
from ageray.faces.images import PHOTOS
from ageray.score import inventory, tables
from ageray.score.manifest import Manifests
from ageray.score.places import SEGMENT_PATHS, Places, in_segments

TABLES = (".parquet",)
TARS = (".tar",)
_LISTS = (".csv", f"/{inventory.MANIFEST}")
_MOST_ENDINGS = 5  # that are printed
_ARCHIVES = (".tgz", ".gz", ".zip")
_NAMES = {
    "photos": "photos",
    "manifest": "photos in a list",
    "photo table": "photos in tables",
    "face shards": "faces in shards",
}


@dataclass
class PassedOver:
    """What is not scored: files of a folder by their ending, folders that may not be read."""

    files: Counter[str] = field(default_factory=Counter)
    folders: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """In words; empty if there is nothing."""
        kinds = [f"{count:,} {ending}" for ending, count in self.files.most_common(_MOST_ENDINGS)]
        others = self.files.total() - sum(count for _, count in self.files.most_common(_MOST_ENDINGS))
        if others:
            kinds.append(f"{others:,} others")
        kinds += [f"the folder {folder} (may not be read)" for folder in self.folders[:_MOST_ENDINGS]]
        return ", ".join(kinds)

    def add(self, name: str) -> None:
        """Counts a file."""
        self.files[_utf8(posixpath.splitext(name.lower())[1]) or "without an ending"] += 1

    def merge(self, other: PassedOver) -> None:
        """Counts what another INPUT has."""
        self.files.update(other.files)
        self.folders += other.folders


@dataclass(frozen=True)
class Inputs:
    """Photos to score.

    files: absolute uris of the manifests, tables or tars that hold or name the photos.
    columns: of a Parquet table; those of the first file.
    places: the photos of a folder.
    manifests: of the kind of that name.
    passed_over: what else lies in the folder.
    roots: what the user wrote, by the uri with which names of photos begin.
    """

    kind: Literal["photos", "tars", "manifest", "photo table", "face shards"]
    uri: str
    files: list[str]
    columns: tables.Columns | None = None
    places: Places | None = None
    manifests: Manifests | None = None
    passed_over: PassedOver = field(default_factory=PassedOver)
    roots: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open_all(cls, locations: Sequence[str]) -> Inputs:
        """What several INPUTs of one kind are together. A photo or a file that two of them have is
        taken once. Files of other kinds are passed over, as in a folder.

        Raises UserError as `open` does, and for INPUTs of several kinds.
        """
        if len(locations) == 1:
            return cls.open(locations[0])
        passed_over = PassedOver()
        parts: dict[str, Inputs] = {}
        for location in locations:
            if _is_other_file(location):
                passed_over.add(location)
            else:
                parts[location] = cls.open(location)
        if not parts:
            raise UserError(
                f"INPUT: holds neither photos nor tables nor tars: {passed_over}; check the paths"
            )
        (start, first), *_ = parts.items()
        roots: dict[str, str] = {}
        for location, part in parts.items():
            if part.kind != first.kind:
                both = f"{start} ({first.described_kind}) and {location} ({part.described_kind})"
                raise UserError(f"INPUT: {both} are of two kinds; score them one by one")
            roots = part.roots | roots
            passed_over.merge(part.passed_over)
        uris = [part.uri for part in parts.values()]
        whole = replace(first, uri=_names_of(uris), roots=roots, passed_over=passed_over)
        if first.places is not None:
            return replace(whole, places=Places(_without_repeats(parts.values())))
        files = list(dict.fromkeys(file for part in parts.values() for file in part.files))
        manifests = Manifests(files) if first.manifests else None
        return replace(whole, files=files, manifests=manifests)

    @classmethod
    def open(cls, location: str) -> Inputs:
        """`_open`, with what the user wrote."""
        inputs = cls._open(location)
        return replace(inputs, roots={inputs.uri: location.rstrip("/") or "/"})

    @classmethod
    def _open(cls, location: str) -> Inputs:
        """Finds out what INPUT is: a photo, a CSV manifest, an S3 Inventory, a table or a tar; or a
        folder of photos, tables or tars.

        Folders are searched with their sub-folders. Raises UserError if there is nothing to score.
        """
        uri = storage.absolute(location).rstrip("/") or "/"
        if not storage.exists(uri):
            raise UserError(f"{location}: not found; check the path or url")
        if not storage.is_folder(uri):
            return cls._open_file(uri, location)
        if storage.half_written(uri):
            raise UserError(f"{location}: is being written or was left half written; wait, or write it again")
        tars: list[str] = []
        parquet: list[str] = []
        passed_over = PassedOver()
        photos = Places(_photos(uri, tars, parquet, passed_over))
        if photos.photos and tars:
            counts = f"photos ({photos.photos}) and tars ({len(tars)})"
            raise UserError(f"{location}: holds both {counts}; give the folder of one kind")
        if photos.photos:
            passed_over.files.update({".parquet": len(parquet)} if parquet else {})
            return cls("photos", uri, [], places=photos, passed_over=passed_over)
        if tars:
            passed_over.files.update({".parquet": len(parquet)} if parquet else {})
            return cls("tars", uri, tars, passed_over=passed_over)
        if parquet:
            return cls._open_tables(uri, parquet)
        kinds = f"photos ({', '.join(PHOTOS)}) nor tars (.tar) nor tables (.parquet)"
        raise UserError(f"{location}: holds neither {kinds}; check the path")

    @classmethod
    def _open_file(cls, uri: str, location: str) -> Inputs:
        name = uri.lower()
        if name.endswith(PHOTOS):
            return cls("photos", uri, [], places=Places([_uri_table([_utf8(uri)])]))
        if name.endswith(TARS):
            return cls("tars", uri, [uri])
        if name.endswith(TABLES):
            return cls._open_tables(uri, [uri])
        if name.endswith(_LISTS):
            return cls("manifest", uri, [uri], manifests=Manifests([uri]))
        remedy = "give one of these"
        if name.endswith(_ARCHIVES):
            remedy = "unpack it and give the folder"
        kinds = "a folder, a photo, a manifest (.csv), a table (.parquet) nor a tar (.tar)"
        raise UserError(f"{location}: neither {kinds}; {remedy}")

    @classmethod
    def _open_tables(cls, uri: str, files: list[str]) -> Inputs:
        columns = tables.columns(files[0], tables.footer(files[0]).schema.to_arrow_schema())
        manifests = Manifests(files) if columns.kind == "manifest" else None
        return cls(columns.kind, uri, files, columns, manifests=manifests)

    @property
    def described_kind(self) -> str:
        """The kind in words."""
        return _NAMES.get(self.kind, self.kind)

    @property
    def lists_files(self) -> bool:
        """Whether each photo is a file of its own."""
        return self.kind in ("photos", "manifest")

    def describe(self, photos: int | None) -> str:
        """The inputs in words. photos: how many; None for tars, where that is not known before they
        are read.
        """
        if photos is None:
            return f"photos in {len(self.files):,} tar{'s' * (len(self.files) != 1)}"
        noun, _, place = _NAMES[self.kind].partition(" ")
        noun = noun.removesuffix("s") if photos == 1 else noun
        return f"{photos:,} {noun} {place}".rstrip()

    def uris(self) -> Iterator[pa.Table]:
        """Uris of the photos, in tables of SEGMENT_PATHS rows with the column `image`.

        Raises UserError if a manifest cannot be read or lacks the column.
        """
        if self.places is not None:
            yield from self.places.segments()
        else:
            assert self.manifests is not None
            yield from in_segments(table.select(["image"]) for table in self.manifests.photos())

    def list_places(self) -> Places:
        """The photos, of a manifest with its other columns. Raises UserError as `uris` does."""
        if self.places is not None:
            return self.places
        assert self.manifests is not None
        return Places(self.manifests.photos())


def _is_other_file(location: str) -> bool:
    """Whether there is a file of this name that is no input."""
    uri = storage.absolute(location).rstrip("/")
    if uri.lower().endswith((*PHOTOS, *TARS, *TABLES, *_LISTS)):
        return False
    return storage.exists(uri) and not storage.is_folder(uri)


def _names_of(uris: Sequence[str]) -> str:
    """Several uris, as a plan names them."""
    if len(uris) == 1:
        return uris[0]
    digest = hashlib.sha256("\n".join(uris).encode("utf-8", "surrogateescape")).hexdigest()
    return f"{uris[0]} and {len(uris) - 1:,} more ({digest[:8]})"


def _without_repeats(parts: Iterable[Inputs]) -> Iterator[pa.Table]:
    """The photos of several inputs, each once. Only inputs that came before are remembered, not
    their photos."""
    before: set[str] = set()
    for part in parts:
        assert part.places is not None
        for table in part.places.segments():
            new = [uri for uri in table.column("image").to_pylist() if not _is_below(uri, before)]
            yield _uri_table(new)
        before.add(part.uri)


def _is_below(uri: str, roots: set[str]) -> bool:
    """Whether a uri is one of these, or lies below one."""
    while uri not in roots:
        uri, slash, _ = uri.rpartition("/")
        if not slash:
            return False
    return True


def _photos(uri: str, tars: list[str], parquet: list[str], passed_over: PassedOver) -> Iterator[pa.Table]:
    """The photos of a folder, by the segment. `tars` and `parquet` get the uris of such files, and
    `passed_over` all others.
    """
    photos: list[str] = []
    for name in storage.walk(uri, passed_over.folders):
        lower = name.lower()
        if lower.endswith(PHOTOS):
            photos.append(_utf8(storage.below(uri, name)))
        elif lower.endswith(TARS):
            tars.append(storage.below(uri, name))
        elif lower.endswith(TABLES):
            parquet.append(storage.below(uri, name))
        else:
            passed_over.add(lower)
        if len(photos) == SEGMENT_PATHS:
            yield _uri_table(photos)
            photos = []
    if photos:
        yield _uri_table(photos)


def _utf8(uri: str) -> str:
    """A file name as a table can hold it. A name that is not UTF-8 is changed, and later reported
    as not found.
    """
    return uri.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _uri_table(uris: Iterable[str]) -> pa.Table:
    return pa.table({"image": pa.array(list(uris), pa.string())})
