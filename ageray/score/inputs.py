"""What a user points `jobs.score` at: where its photos are, without their bytes."""

from __future__ import annotations

import csv
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ageray import errors, storage
from ageray.errors import UserError
from ageray.faces.images import PHOTOS
from ageray.score import tables

TABLES = (".parquet",)
TARS = (".tar",)
LIST = 8192
"""Photos of a list that are one stretch (see `ageray.score.chunks`)."""

_HEADER_BYTES = 2**16
_NAMES = {
    "photos": "photos",
    "manifest": "photos in a list",
    "photo table": "photos in tables",
    "face shards": "faces in shards",
}


@dataclass(frozen=True)
class Collection:
    """Photos to score. `files` are the photos themselves, the manifests, the tables or the tars; all uris are absolute.

    columns: of a Parquet table (the first file's).
    """

    kind: Literal["photos", "tars", "manifest", "photo table", "face shards"]
    uri: str
    files: list[str]
    columns: tables.Columns | None = None

    @classmethod
    def of(cls, inputs: str) -> Collection:
        """Finds out what `inputs` is: a folder (with any sub-folders) of photos, of tars or of Parquet tables, or one of these, or a CSV manifest.

        Raises UserError if there is nothing, or nothing of these.
        """
        uri = storage.absolute(inputs).rstrip("/") or "/"
        if not storage.exists(uri):
            raise UserError(f"{inputs}: not found; check the path or url")
        if not storage.is_folder(uri):
            return cls._of_file(uri, inputs)
        if storage.exists(storage.join(uri, storage.UNFINISHED)):
            raise UserError(f"{inputs}: is being written or was left half written; wait, or write it again")
        files = storage.list_files(uri, (*PHOTOS, *TARS, *TABLES))
        photos, tars, parquet = (
            [file for file in files if file.lower().endswith(ends)] for ends in (PHOTOS, TARS, TABLES)
        )
        if photos and tars:
            raise UserError(
                f"{inputs}: holds both photos ({len(photos)}) and tars ({len(tars)}); give the folder of one kind"
            )
        if photos or tars:
            return cls("photos" if photos else "tars", uri, photos or tars)
        if parquet:
            return cls._of_tables(uri, parquet)
        raise UserError(
            f"{inputs}: holds neither photos ({', '.join(PHOTOS)}) nor tars (.tar) nor tables (.parquet); check the path"
        )

    @classmethod
    def _of_file(cls, uri: str, inputs: str) -> Collection:
        name = uri.lower()
        if name.endswith(PHOTOS):
            return cls("photos", uri, [uri])
        if name.endswith(TARS):
            return cls("tars", uri, [uri])
        if name.endswith(TABLES):
            return cls._of_tables(uri, [uri])
        if name.endswith(".csv"):
            return cls("manifest", uri, [uri])
        hint = (
            "unpack it and give the folder" if name.endswith((".tgz", ".gz", ".zip")) else "give one of these"
        )
        raise UserError(
            f"{inputs}: neither a folder, a photo, a manifest (.csv), a table (.parquet) nor a tar (.tar); {hint}"
        )

    @classmethod
    def _of_tables(cls, uri: str, files: list[str]) -> Collection:
        known = tables.columns(files[0], tables.footer(files[0]).schema.to_arrow_schema())
        return cls(known.kind, uri, files, known)

    @property
    def lists_files(self) -> bool:
        """Whether its photos are files of their own."""
        return self.kind in ("photos", "manifest")

    def describe(self, photos: int | None) -> str:
        """Itself for a reader."""
        if self.kind == "tars":
            return f"photos in {len(self.files):,} tar{'s' * (len(self.files) != 1)}"
        return f"{photos:,} {_NAMES[self.kind]}"

    def places(self) -> Iterator[pa.Table]:
        """Uris of photos in tables of LIST rows, column `image`. A manifest's relative paths start at its folder.

        Raises UserError if a manifest cannot be read or lacks the column.
        """
        assert self.lists_files
        if self.kind == "photos":
            for start in range(0, len(self.files), LIST):
                yield _places(map(_text, self.files[start : start + LIST]))
            return
        waiting: list[str] = []
        for file in self.files:
            folder = posixpath.dirname(file) or "/"
            for column in _columns(file):
                # An empty place stays a row: reading it fails and says so in the scores.
                waiting += [storage.join(folder, place) if place else "" for place in column.to_pylist()]
                while len(waiting) >= LIST:
                    yield _places(waiting[:LIST])
                    del waiting[:LIST]
        if waiting:
            yield _places(waiting)


def _text(uri: str) -> str:
    """A file name that is not UTF-8 cannot stand in a table; what can be said of it will be reported as not found."""
    return uri.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _places(uris: Iterable[str]) -> pa.Table:
    return pa.table({"image": pa.array(list(uris), pa.string())})


def _columns(uri: str) -> Iterator[pa.Array]:
    try:
        yield from _csv_column(uri) if uri.lower().endswith(".csv") else _parquet_column(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(
            f"{uri}: cannot be read ({errors.one_line(error)}); write it again as comma-separated UTF-8 or Parquet"
        ) from None


def _csv_column(uri: str) -> Iterator[pa.Array]:
    text = storage.read_bytes(uri, _HEADER_BYTES).decode("utf-8-sig", errors="replace")
    column = tables.place_column(uri, tuple(next(csv.reader(text.splitlines()[:1]), [])))
    filesystem, path = storage.filesystem(uri)
    options = pyarrow.csv.ConvertOptions(
        include_columns=[column], column_types={column: pa.string()}, strings_can_be_null=False
    )
    with (
        filesystem.open_input_stream(path) as stream,
        pyarrow.csv.open_csv(stream, convert_options=options) as reader,
    ):
        for batch in reader:
            yield batch.column(0)


def _parquet_column(uri: str) -> Iterator[pa.Array]:
    filesystem, path = storage.filesystem(uri)
    with pq.ParquetFile(path, filesystem=filesystem) as file:
        column = tables.place_column(uri, tuple(file.schema_arrow.names))
        for batch in file.iter_batches(LIST, columns=[column]):
            yield batch.column(0).cast(pa.string())
