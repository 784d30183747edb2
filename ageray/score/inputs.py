"""What a user gives `ageray score` as INPUT: which files it has, without reading the photos."""

from __future__ import annotations

import csv
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from ageray import errors, storage
from ageray.errors import UserError
from ageray.faces.images import PHOTOS
from ageray.score import inventory, tables
from ageray.score.places import SEGMENT_PATHS, Places, in_segments
from ageray.storage import delimited

TABLES = (".parquet",)
TARS = (".tar",)
_HEADER_BYTES = 2**16
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


@dataclass(frozen=True)
class Inputs:
    """Photos to score.

    files: absolute uris of the manifests, tables or tars that hold or name the photos.
    columns: of a Parquet table; those of the first file.
    places: the photos of a folder.
    passed_over: what else lies in the folder.
    """

    kind: Literal["photos", "tars", "manifest", "photo table", "face shards"]
    uri: str
    files: list[str]
    columns: tables.Columns | None = None
    places: Places | None = None
    passed_over: PassedOver = field(default_factory=PassedOver)

    @classmethod
    def open(cls, location: str) -> Inputs:
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
        if name.endswith((".csv", f"/{inventory.MANIFEST}")):
            return cls("manifest", uri, [uri])
        remedy = "give one of these"
        if name.endswith(_ARCHIVES):
            remedy = "unpack it and give the folder"
        kinds = "a folder, a photo, a manifest (.csv), a table (.parquet) nor a tar (.tar)"
        raise UserError(f"{location}: neither {kinds}; {remedy}")

    @classmethod
    def _open_tables(cls, uri: str, files: list[str]) -> Inputs:
        columns = tables.columns(files[0], tables.footer(files[0]).schema.to_arrow_schema())
        return cls(columns.kind, uri, files, columns)

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
        return f"{photos:,} {_NAMES[self.kind]}"

    def uris(self) -> Iterator[pa.Table]:
        """Uris of the photos, in tables of SEGMENT_PATHS rows with the column `image`.

        Relative paths of a manifest start at its folder. Raises UserError if a manifest cannot be
        read or lacks the column.
        """
        assert self.lists_files
        if self.places is not None:
            yield from self.places.segments()
        else:
            yield from in_segments(self._listed())

    def _listed(self) -> Iterator[pa.Table]:
        """The photos that the manifests name."""
        for file in self.files:
            folder = posixpath.dirname(file) or "/"
            for column in _path_columns(file):
                yield pa.table({"image": _absolute(column, folder)})


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
            passed_over.files[_utf8(posixpath.splitext(lower)[1]) or "without an ending"] += 1
        if len(photos) == SEGMENT_PATHS:
            yield _uri_table(photos)
            photos = []
    if photos:
        yield _uri_table(photos)


def _absolute(paths: pa.Array, folder: str) -> pa.Array:
    """Paths of a manifest as uris. An empty path stays a row, so that the scores table says that it
    cannot be read.
    """
    paths = paths.fill_null("")
    whole = pc.or_(pc.match_substring(paths, "://"), pc.starts_with(paths, "/"))
    whole = pc.or_(whole, pc.equal(paths, ""))
    if pc.all(whole).as_py():
        return paths
    return pc.if_else(whole, paths, pc.binary_join_element_wise(folder.rstrip("/"), paths, "/"))


def _utf8(uri: str) -> str:
    """A file name as a table can hold it. A name that is not UTF-8 is changed, and later reported
    as not found.
    """
    return uri.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _uri_table(uris: Iterable[str]) -> pa.Table:
    return pa.table({"image": pa.array(list(uris), pa.string())})


def _path_columns(uri: str) -> Iterator[pa.Array]:
    try:
        read = _csv_column if uri.lower().endswith(".csv") else _parquet_column
        if uri.lower().endswith(inventory.MANIFEST):
            read = inventory.paths
        yield from read(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        remedy = "write it again as comma-separated UTF-8 or Parquet"
        raise UserError(f"{uri}: cannot be read ({errors.one_line(error)}); {remedy}") from None


def _csv_column(uri: str) -> Iterator[pa.Array]:
    data = storage.read_bytes(uri, _HEADER_BYTES)
    encoding = delimited.encoding(data)
    lines = (
        data[: len(data) // 2 * 2 if encoding == "utf-16" else None].decode(encoding, "replace").splitlines()
    )
    delimiter = delimited.delimiter(lines[0] if lines else "")
    header = next(csv.reader(lines[:1], delimiter=delimiter), [])
    column = tables.uri_column(uri, tuple(header))
    filesystem, path = storage.filesystem(uri)
    options = pyarrow.csv.ConvertOptions(
        include_columns=[column], column_types={column: pa.string()}, strings_can_be_null=False
    )
    with (
        filesystem.open_input_stream(path) as stream,
        pyarrow.csv.open_csv(
            stream,
            pyarrow.csv.ReadOptions(encoding=encoding.removesuffix("-sig")),
            pyarrow.csv.ParseOptions(delimiter=delimiter),
            options,
        ) as reader,
    ):
        for batch in reader:
            yield batch.column(0)


def _parquet_column(uri: str) -> Iterator[pa.Array]:
    filesystem, path = storage.filesystem(uri)
    with pq.ParquetFile(path, filesystem=filesystem) as file:
        column = tables.uri_column(uri, tuple(file.schema_arrow.names))
        for batch in file.iter_batches(SEGMENT_PATHS, columns=[column]):
            yield batch.column(0).cast(pa.string())
